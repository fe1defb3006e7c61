"""The hematoma in a section: its outline, its blood, its edema, and the hypodensities that are the marker."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from threefold.phantoms.head_parameters import Hematoma
from threefold.phantoms.head_protocol import BLOOD_HU, MARKER_HU
from threefold.phantoms.head_section import Section, Skull
from threefold.phantoms.shapes import cover, soft
from threefold.phantoms.smooth_noise import Plane, smooth_noise

_HALF = np.float32(0.5)
_LEAST_MARKER = 25.0  # mm²
_MARKER_SLOPE = np.float32(3.0)  # of the border between blood and hypodensity, per unit of the blobs' noise


@dataclass(frozen=True)
class Lesion:
    """A hematoma in a section.

    Attributes:
        blood: (I, J) share of a pixel that is hematoma, hypodensities included.
        marker: (I, J) share of a pixel that is hypodensity.
    """

    blood: Plane
    marker: Plane


def draw_hematoma(hu: Plane, hematoma: Hematoma, section: Section, skull: Skull) -> Lesion:
    """Draw edema, blood and hypodensities in place."""
    distance, position = outline(hematoma, section, skull)
    texture = smooth_noise((hematoma.seed, 2), (32, 32, 16), (3.0, 3.0, 4.0)).plane(
        section.rows, section.columns, section.level
    )
    inside = soft(skull.distance + np.float32(1), section.pixel)
    edema = soft(distance - np.float32(hematoma.edema_width) * (1 + np.float32(0.25) * texture), 2.5)
    cover(hu, edema * inside * np.float32(0.9), hematoma.edema_density + texture)
    blood = soft(distance, hematoma.edge)
    density = hematoma.density + hematoma.gradient / 2 * position + hematoma.texture * texture
    density = np.clip(density, *BLOOD_HU)
    marker = np.zeros_like(blood)
    if hematoma.marker and blood.max() > _HALF:
        marker = _hypodensities(hematoma, section, distance, blood)
        density += marker * (np.clip(hematoma.marker_density + 0.8 * texture, *MARKER_HU) - density)
    cover(hu, blood, density)
    return Lesion(blood, marker)


def outline(hematoma: Hematoma, section: Section, skull: Skull) -> tuple[Plane, Plane]:
    """Return the distance to the outline (mm, negative inside) and the position along the gradient, -1..1."""
    x, y = section.x - np.float32(hematoma.centre[0]), section.y - np.float32(hematoma.centre[1])
    above = section.level_at(hematoma.centre[1]) - hematoma.centre[2] + np.float32(section.slope) * y
    cosine, sine = math.cos(hematoma.angle), math.sin(hematoma.angle)
    first, second, third = hematoma.semi_axes
    u = (np.float32(cosine) * x + np.float32(sine) * y) / np.float32(first)
    v = (np.float32(cosine) * y - np.float32(sine) * x) / np.float32(second)
    radius = math.sqrt(first * second)
    distance = (np.sqrt(u * u + v * v + (above / np.float32(third)) ** 2) - 1) * np.float32(radius)
    coarse = smooth_noise((hematoma.seed, 1), (12, 12, 12), (0.55 * radius,) * 3)
    fine = smooth_noise((hematoma.seed, 4), (32, 32, 12), (3.6, 3.6, 6.0))
    noise = coarse.plane(section.rows, section.columns, section.level)
    noise += np.float32(0.3) * fine.plane(section.rows, section.columns, section.level)
    distance += np.float32(hematoma.irregularity * radius) * noise
    # It stops at the skull's inner table and at the falx.
    distance = np.maximum(distance, skull.distance + np.float32(1.5))
    distance = np.maximum(distance, 1 - math.copysign(1, hematoma.centre[0]) * section.x)
    cosine, sine = math.cos(hematoma.gradient_angle), math.sin(hematoma.gradient_angle)
    along = np.float32(cosine) * x + np.float32(sine) * y
    return distance.astype(np.float32), np.clip(along / np.float32(radius), -1, 1)


def _hypodensities(hematoma: Hematoma, section: Section, distance: Plane, blood: Plane) -> Plane:
    """Return blobs, away from the border, that fill the hematoma's `marker_share`."""
    blobs = smooth_noise((hematoma.seed, 3), (24, 24, 8), (4.6, 4.6, 25.0))
    score = blobs.plane(section.rows, section.columns, section.level)
    border = hematoma.edge / 2 + 2.5
    score = score - np.float32(0.8) * np.clip(distance + np.float32(border), 0, None)
    inside = score[blood > _HALF]
    least = _LEAST_MARKER / section.pixel**2 / inside.size
    share = min(0.8, max(hematoma.marker_share, least))
    threshold = np.quantile(inside, 1 - share)
    fraction = np.clip(_HALF + (score - threshold) * _MARKER_SLOPE, 0, 1)
    return np.asarray(fraction * (blood > _HALF), np.float32)
