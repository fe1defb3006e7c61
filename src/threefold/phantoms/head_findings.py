"""What may lie in a head: bleeding of every compartment, and what only looks like it.

Lengths in mm, densities in HU; head frame as in `head_section`: x to the patient's left, y to the front.
Arrays are (I, J) float32 on the scanner's grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from threefold.phantoms.head_parameters import Hematoma
from threefold.phantoms.head_section import ANGLES, Section, Skull, waves
from threefold.phantoms.hematoma import outline
from threefold.phantoms.shapes import cover, ellipse, soft
from threefold.phantoms.smooth_noise import Plane, smooth_noise

Bleeding = Literal[
    "intraparenchymal", "epidural", "subdural", "interhemispheric", "intraventricular", "subarachnoid"
]
Mimic = Literal["hygroma", "infarct", "calcification", "scalp", "vessel", "dense falx"]


@dataclass(frozen=True)
class Finding:
    """A bleeding, or something that looks like one.

    Attributes:
        kind: what it is.
        blood: whether it belongs to the mask.
        seed: of outline and texture.
        hematoma: where it is and how large, and for `intraparenchymal` and `infarct` its whole shape.
        direction: of what lies along the skull, radians from the patient's left to the front.
        reach: half the angle that it covers there, radians; of what fills CSF, the share of it.
        thickness: of what is flat, at its thickest.
        density: its mean.
        texture: standard deviation of the density.
    """

    kind: Bleeding | Mimic
    blood: bool
    seed: int
    hematoma: Hematoma
    direction: float
    reach: float
    thickness: float
    density: float
    texture: float


def draw_finding(hu: Plane, finding: Finding, section: Section, skull: Skull, fluid: Plane) -> Plane:
    """Draw a finding in place.

    Args:
        hu: (I, J) of the head so far.
        finding: what to draw.
        section, skull: the same grid.
        fluid: (I, J) share of each pixel that is CSF.

    Returns:
        (I, J) share of each pixel that it covers.
    """
    share = _SHARES[finding.kind](finding, section, skull, fluid)
    coarse = smooth_noise((finding.seed, 2), (24, 24, 12), (6.0, 6.0, 8.0))
    texture = coarse.plane(section.rows, section.columns, section.level)
    density = finding.density + finding.texture * texture
    gradient = finding.hematoma.gradient
    if gradient:  # a fluid level, or old blood beside fresh
        angle = finding.hematoma.gradient_angle
        along = math.cos(angle) * section.x + math.sin(angle) * section.y
        density = density + gradient / 2 * np.clip(along / 25, -1, 1)
    if finding.kind in ("intraparenchymal", "infarct") and finding.blood:
        _draw_edema(hu, finding.hematoma, section, skull)
    cover(hu, share, density)
    return share


def _draw_edema(hu: Plane, hematoma: Hematoma, section: Section, skull: Skull) -> None:
    distance, _ = outline(hematoma, section, skull)
    edema = soft(distance - np.float32(hematoma.edema_width), 2.5)
    cover(hu, edema * soft(skull.distance + np.float32(1), section.pixel), hematoma.edema_density)


def _inside_brain(finding: Finding, section: Section, skull: Skull, fluid: Plane) -> Plane:
    distance, _ = outline(finding.hematoma, section, skull)
    return soft(distance, max(finding.hematoma.edge, section.pixel))


def _under_skull(finding: Finding, section: Section, skull: Skull, fluid: Plane) -> Plane:
    """A lens (epidural), or a crescent that thins out only at its ends (subdural, hygroma)."""
    power = 2 if finding.kind == "epidural" else 6
    thickness = _along_skull(finding, power)[skull.angle]
    depth = -skull.distance
    distance = np.maximum(depth - thickness, np.float32(0.3) - depth)
    return soft(distance, max(finding.hematoma.edge, section.pixel))


def _along_skull(finding: Finding, power: int) -> Plane:
    """Return the thickness over the angle, (ANGLES,)."""
    angles = np.arange(ANGLES) * (2 * math.pi / ANGLES)
    away = (angles - finding.direction + math.pi) % (2 * math.pi) - math.pi
    profile = np.clip(1 - np.abs(away / finding.reach) ** power, 0, None)
    uneven = 1 + finding.hematoma.irregularity * waves((finding.seed, 1), 3, 14, 0.8)
    return np.asarray(finding.thickness * profile * np.clip(uneven, 0.3, 1.7), np.float32)


def _along_falx(finding: Finding, section: Section, skull: Skull, fluid: Plane) -> Plane:
    centre = finding.hematoma.centre
    side = math.copysign(1, centre[0])
    length = finding.hematoma.semi_axes[1]
    profile = np.clip(1 - np.abs((section.y - centre[1]) / np.float32(length)) ** 3, 0, 1)
    across = section.x * np.float32(side)
    width = np.float32(finding.thickness) * profile
    distance = np.maximum(np.maximum(across - width, -across - np.float32(0.5)), skull.distance + 1)
    distance = np.where(profile > 0, distance, np.float32(9))
    return soft(distance, section.pixel)


def _in_ventricles(finding: Finding, section: Section, skull: Skull, fluid: Plane) -> Plane:
    """Blood settles at the back, and fills one side first."""
    deep = soft(np.float32(16) + skull.distance, 3.0) * soft(np.abs(section.x) - 36, 3.0)
    level = -58 + 100 * finding.reach
    settled = soft(section.y - np.float32(level), 2.0)
    side = math.copysign(1, finding.hematoma.centre[0])
    other = np.float32(1.0 if finding.reach > 0.5 else 0.25)
    return np.asarray(fluid * deep * settled * np.where(section.x * side >= -3, np.float32(1), other))


def _in_sulci(finding: Finding, section: Section, skull: Skull, fluid: Plane) -> Plane:
    """Blood in a patch of the CSF spaces, wider than these are: it is never seen as sharp."""
    from scipy.ndimage import gaussian_filter

    patch = smooth_noise((finding.seed, 3), (8, 8, 4), (30.0, 30.0, 30.0))
    there = soft(
        np.float32(0.6 - finding.reach) - patch.plane(section.rows, section.columns, section.level), 0.4
    )
    spread = gaussian_filter(fluid * there, 0.9 / section.pixel)
    return np.asarray(np.clip(1.4 * spread, 0, 1) * soft(skull.distance, section.pixel), np.float32)


def _spot(finding: Finding, section: Section, skull: Skull, fluid: Plane) -> Plane:
    hematoma = finding.hematoma
    axes = (hematoma.semi_axes[0], hematoma.semi_axes[1])
    distance = ellipse(section.x, section.y, (hematoma.centre[0], hematoma.centre[1]), axes)
    return soft(np.maximum(distance, skull.distance + 1), max(1.0, section.pixel))


def _scalp(finding: Finding, section: Section, skull: Skull, fluid: Plane) -> Plane:
    """A swelling outside the skull."""
    thickness = _along_skull(finding, 2)[skull.angle]
    outside = skull.distance - np.float32(finding.hematoma.semi_axes[0])  # of the bone
    distance = np.maximum(outside - thickness, np.float32(1) - outside)
    return soft(distance, section.pixel)


_SHARES: Mapping[str, Callable[[Finding, Section, Skull, Plane], Plane]] = {
    "intraparenchymal": _inside_brain,
    "infarct": _inside_brain,
    "epidural": _under_skull,
    "subdural": _under_skull,
    "hygroma": _under_skull,
    "interhemispheric": _along_falx,
    "dense falx": _along_falx,
    "intraventricular": _in_ventricles,
    "subarachnoid": _in_sulci,
    "calcification": _spot,
    "vessel": _spot,
    "scalp": _scalp,
}
