"""A section through a head, drawn in HU from a patient's parameters.

Lengths in mm. Head frame: x to the patient's left, y to the front, level upwards from the third ventricle's
floor. Arrays are (I, J) float32 on the scanner's grid.
"""

from __future__ import annotations

import math

import numpy as np

from threefold.phantoms.head_parameters import Head, Hematoma
from threefold.phantoms.head_section import ANGLES, Section, Skull, about, waves
from threefold.phantoms.shapes import bump, capsule, cover, ellipse, soft
from threefold.phantoms.smooth_noise import Plane, smooth_noise

_AIR, _FAT, _SKIN, _MUSCLE = -1000.0, -95.0, 75.0, 54.0


def draw_outside(hu: Plane, head: Head, section: Section, skull: Skull) -> None:
    """Draw scalp and skull in place."""
    level, pixel = section.level, section.pixel
    low = min(1.0, max(0.0, (28 - level) / 25))  # how far down towards the base, 0..1
    front = about(90, 19)
    bone_table = head.skull * skull.oblique * (1 + 0.18 * waves((head.seed, 2), 2, 9, 0.8))
    bone_table = bone_table * (1 + 0.35 * about(270, 12) + (0.2 + 0.9 * max(0.0, low - 0.4)) * front)
    bone_table = np.maximum(bone_table, 3).astype(np.float32)
    muscle_table = (11 * low * (about(28, 16) + about(152, 16))).astype(np.float32)
    scalp_table = head.scalp * skull.oblique**0.5 * (1 + 0.25 * waves((head.seed, 3), 1, 8, 1.0))
    scalp_table = np.maximum(scalp_table, 2.5).astype(np.float32)

    bone = bone_table[skull.angle]
    outside = skull.distance - bone  # mm outside the outer table
    muscle = muscle_table[skull.angle]
    skin = muscle + scalp_table[skull.angle]
    texture = smooth_noise((head.seed, 4), (48, 48, 12), (2.6, 2.6, 6.0)).plane(
        section.rows, section.columns, level
    )
    cover(hu, soft(outside - skin, pixel), _SKIN)
    cover(hu, soft(outside - skin + 2.6, pixel), _FAT + 25 * texture)
    cover(hu, soft(outside - np.maximum(muscle, 1.6), pixel), _MUSCLE + 6 * texture)
    # Two dense tables with the spongy diploe between them.
    depth = skull.distance / bone
    spongy = np.clip(1.6 - np.abs(depth - np.float32(0.5)) * np.float32(5.5), 0, 1)
    spongy *= np.clip((bone - 4) / 3, 0, 1)
    density = 1250 + 90 * texture - spongy * (620 - 160 * texture)
    cover(hu, soft(outside, pixel), density)
    if level < 14:  # frontal sinus
        lobes = ellipse(section.x - 7, section.y, (0, head.half_length * skull.scale + 6.5), (9, 3.6))
        lobes = np.minimum(
            lobes, ellipse(section.x + 9, section.y, (0, head.half_length * skull.scale + 6), (7, 3.2))
        )
        lobes += np.float32(0.35) * texture + np.float32(4 * (1 - bump(level, -6, 20)))
        cover(hu, soft(lobes, pixel), _AIR)


def draw_brain(hu: Plane, head: Head, hematoma: Hematoma, section: Section, skull: Skull) -> None:
    """Draw everything inside the skull but the hematoma, in place."""
    brain = _tissue(head, hematoma, section, skull)
    cover(hu, soft(skull.distance, section.pixel), brain)


def _tissue(head: Head, hematoma: Hematoma, section: Section, skull: Skull) -> Plane:
    pixel, level = section.pixel, section.level
    warp = smooth_noise((head.seed, 5), (16, 16, 12), (17.0, 17.0, 20.0))
    warp_x = warp.plane(section.rows, section.columns, level)
    warp_y = warp.plane(section.rows + 131, section.columns + 57, level)
    x, y, near = _displaced(section, hematoma)
    x, y = x + np.float32(1.5) * warp_x, y + np.float32(1.8) * warp_y
    ripple = smooth_noise((head.seed, 7), (32, 32, 16), (6.5, 6.5, 9.0))
    x = x + np.float32(0.7) * ripple.plane(section.rows, section.columns, level)
    y = y + np.float32(0.9) * ripple.plane(section.rows + 71, section.columns + 33, level)

    # Cortex and sulci.
    depth = -skull.distance
    sulcus, width = _sulci(head, section, skull, depth)
    midline = np.abs(x) + np.float32(0.001)
    if level < 34:  # the corpus callosum and the deep nuclei join the hemispheres
        midline = midline + np.clip(30 - np.abs(y + 6), 0, 4) * np.float32(min(1.0, (34 - level) / 6))
    width = width * (1 - np.float32(0.85) * near)
    cortex = np.minimum(np.minimum(sulcus, midline), depth - np.float32(head.rim))
    tissue = head.white + np.float32(head.grey - head.white) * soft(cortex - np.float32(4.6), 1.8)
    tissue = tissue.astype(np.float32)
    tissue += np.float32(1.5) * warp_x - np.clip((depth - 14) / 12, 0, 1) * np.float32(1.0)
    _deep_grey(tissue, head, section, x, y)
    rim = head.rim * (1 + 0.6 * warp_y)
    fluid = np.minimum(sulcus - width, depth - rim)
    fluid = np.minimum(fluid, midline - np.float32(0.45 + 0.6 * head.rim) * (1 + 0.5 * warp_y))
    fluid = np.minimum(fluid, _cisterns(head, section, x, y))
    cover(tissue, soft(fluid, pixel), head.csf)
    _falx(tissue, head, section, x, y, depth)
    _ventricles(tissue, head, section, x, y)
    _base(tissue, head, section, x, y, depth)
    return tissue


def _displaced(section: Section, hematoma: Hematoma) -> tuple[Plane, Plane, Plane]:
    """Return where each point's tissue came from (the hematoma pushes it away), and how near it is (0..1)."""
    x, y = section.x - np.float32(hematoma.centre[0]), section.y - np.float32(hematoma.centre[1])
    above = section.level_at(hematoma.centre[1]) - hematoma.centre[2]
    radius = math.sqrt(hematoma.semi_axes[0] * hematoma.semi_axes[1])
    near = np.exp(-(x * x + y * y + np.float32(above**2)) / np.float32(2 * (1.5 * radius) ** 2))
    pull = np.float32(0.42) * near
    return section.x - pull * x, section.y - pull * y, near


def _sulci(head: Head, section: Section, skull: Skull, depth: Plane) -> tuple[Plane, Plane]:
    """Return the distance to the nearest sulcus's middle and the half width there.

    Sulci are the zero lines of a noise that is drawn over angle, depth and level, stretched along the depth,
    so that they run inwards from the surface.
    """
    turns = 58
    folds = smooth_noise((head.seed, 6), (turns, 8, 16), (1.0, 15.0, 11.0))
    angles = np.arange(ANGLES, dtype=np.float32) * np.float32(turns / ANGLES)
    depths = np.arange(96, dtype=np.float32) * np.float32(0.5)
    table = folds.plane(angles, depths, section.level)
    bins = np.clip(depth * 2, 0, 95).astype(np.intp)
    folding = table[skull.angle, bins]
    first, second = np.gradient(folding)
    slope = np.sqrt(first * first + second * second) / np.float32(section.pixel) + np.float32(0.03)
    distance = np.abs(folding) / slope
    # Each sulcus ends at a depth of its own.
    reach = folds.plane(angles + np.float32(0.5 * turns), np.zeros(1, np.float32), section.level + 200)[:, 0]
    reach = (15 + 7 * reach)[skull.angle]
    distance += np.clip(depth - reach, 0, None)
    width = np.float32(head.sulcus) * np.clip(1.2 - depth / np.float32(26), 0.3, 1.1)
    return distance, width * np.float32(0.55)


def _deep_grey(tissue: Plane, head: Head, section: Section, x: Plane, y: Plane) -> None:
    """Caudate, lentiform nucleus and thalamus."""
    side = np.abs(x)
    for middle, axes, level, half in (
        ((12.5, 21.0), (5.0, 9.0), 18.0, 16.0),
        ((25.0, 4.0), (6.5, 14.0), 13.0, 16.0),
        ((10.0, -13.0), (8.5, 12.0), 14.0, 15.0),
    ):
        size = bump(section.level_at(middle[1]), level, half)
        if size > 0.2:
            shape = ellipse(side, y, middle, (axes[0] * size, axes[1] * size))
            cover(tissue, soft(shape, 2.0) * np.float32(0.85), head.grey)
    insula = bump(section.level_at(0), 10, 16)
    if insula > 0.2:
        shape = capsule(side, y, (37, 16), (38, -8), (2.2, 2.2))
        cover(tissue, soft(shape, 1.5), head.grey)


def _cisterns(head: Head, section: Section, x: Plane, y: Plane) -> Plane:
    """Return the distance to the Sylvian fissures and the basal cisterns (negative inside)."""
    side = np.abs(x)
    distance = np.full_like(x, 99)
    open_ = 0.5 + 0.5 * head.sulcus
    sylvian = bump(section.level_at(5), 8, 20)
    if sylvian > 0:
        for start, end, radii in (
            ((64, 2), (44, 12), (1.2, 1.0)),
            ((44, 12), (40, -8), (0.9, 0.5)),
            ((44, 12), (38, 22), (1.0, 0.6)),
        ):
            shape = capsule(side, y, start, end, (radii[0] * open_ * sylvian, radii[1] * open_ * sylvian))
            distance = np.minimum(distance, shape)
    basal = bump(section.level_at(0), -4, 11)
    if basal > 0:
        for start, end, radii in (
            ((0, 16), (11, 8), (3.0, 3.0)),  # suprasellar star
            ((11, 8), (30, 14), (2.5, 1.0)),
            ((11, 8), (12, -6), (2.5, 1.6)),
            ((12, -6), (17, -22), (1.6, 1.6)),  # ambient
            ((17, -22), (0, -33), (1.6, 2.4)),  # quadrigeminal
            ((0, 16), (0, 34), (2.0, 1.0)),
            ((0, 10), (0, 16), (4.5, 4.0)),
        ):
            shape = capsule(side, y, start, end, (radii[0] * basal * open_, radii[1] * basal * open_))
            distance = np.minimum(distance, shape)
    upper = bump(section.level_at(-33), 10, 9)
    if upper > 0:  # the cistern behind the pineal gland
        shape = capsule(side, y, (0, -31), (9, -27), (3.2 * upper, 0.8 * upper))
        distance = np.minimum(distance, shape)
    return distance


def _falx(tissue: Plane, head: Head, section: Section, x: Plane, y: Plane, depth: Plane) -> None:
    """The thin bright falx in the midline, and the sagittal sinus at its back."""
    reach = np.clip((section.level - 6) / 40, 0.25, 1.0) * head.half_length * 1.5
    shape = np.abs(x) - np.float32(0.45)
    strength = soft(depth - np.float32(reach * 0.55), 4.0)
    if section.level < 30:
        strength = strength * np.where(y < 0, 1, 0.6)
    cover(tissue, soft(shape, section.pixel) * strength, 52.0)
    sinus = np.abs(x) + np.abs(depth - np.float32(2)) * np.float32(0.8) - np.float32(4.0)
    cover(tissue, soft(sinus, section.pixel) * (y < 0), 50.0)


def _ventricles(tissue: Plane, head: Head, section: Section, x: Plane, y: Plane) -> None:
    size = head.ventricles
    side = np.abs(x)
    shift = (1 + head.asymmetry * np.sign(x)).astype(np.float32)
    distance = np.full_like(x, 99)
    for start, end, radii, level, half in (
        ((4.5, 17.0), (12.0, 34.0), (3.0, 3.6), 18.0, 12.0),  # frontal horns
        ((10.5, 28.0), (7.0, 10.0), (3.6, 4.8), 28.0, 8.0),  # bodies
        ((7.0, 10.0), (9.5, -8.0), (4.8, 4.8), 29.0, 8.0),
        ((9.5, -8.0), (17.0, -25.0), (4.8, 4.4), 28.0, 8.0),
        ((20.0, -27.0), (25.0, -38.0), (4.6, 4.8), 19.0, 11.0),  # atria
        ((25.0, -38.0), (22.0, -52.0), (4.0, 1.8), 15.0, 8.0),  # occipital horns
        ((30.0, -6.0), (33.0, 4.0), (1.6, 1.2), -5.0, 8.0),  # temporal horns
        ((0.0, 7.0), (0.0, -14.0), (1.8, 2.2), 9.0, 11.0),  # third
        ((0.0, -46.0), (3.0, -52.0), (5.0, 3.0), -17.0, 11.0),  # fourth
    ):
        height = bump(section.level_at((start[1] + end[1]) / 2), level, half)
        if height > 0:
            lateral = start[0] + end[0] > 0.5
            across = side * shift if lateral else x
            r = (radii[0] * size * height, radii[1] * size * height)
            distance = np.minimum(distance, capsule(across, y, start, end, r))
    cover(tissue, soft(distance, section.pixel), head.csf)
    septum = bump(section.level_at(20), 22, 12)
    if septum > 0.3:
        cover(tissue, soft(capsule(x, y, (0, 12), (0, 30), (0.6, 0.6)), section.pixel), head.white)
    choroid = bump(section.level_at(-33), 20, 10)
    if choroid > 0.3:
        shape = capsule(side, y, (22, -31), (24, -35), (0.9 * choroid, 1.3 * choroid))
        cover(tissue, soft(shape, 1.2), 230.0 if head.calcified_choroid else 42.0)
    pineal = bump(section.level_at(-22), 13, 6)
    if pineal > 0:
        shape = ellipse(x, y, (0.5, -22), (2.2 * pineal, 2.8 * pineal))
        cover(tissue, soft(shape, 1.2), 260.0 if head.calcified_pineal else 44.0)


def _base(tissue: Plane, head: Head, section: Section, x: Plane, y: Plane, depth: Plane) -> None:
    """Sphenoid wings and petrous ridges, where the section is low enough."""
    side = np.abs(x)
    wing = bump(section.level_at(30), -12, 12)
    if wing > 0:
        shape = capsule(side, y, (70, 20), (20, 29), (6.5 * wing, 0.7 * wing))
        cover(tissue, soft(shape, 2 * section.pixel), 950.0)
    ridge = bump(section.level_at(-20), -22, 13)
    if ridge > 0:
        shape = capsule(side, y, (64, -42), (15, -5), (11 * ridge, 2.0 * ridge))
        cover(tissue, soft(shape, 2 * section.pixel), 1150.0)
    tentorium = bump(section.level_at(-40), -6, 16)
    if tentorium > 0:
        shape = capsule(side, y, (52, -48), (17, -20), (0.5, 0.5))
        cover(tissue, soft(shape, 1.5 * section.pixel) * np.float32(0.8 * tentorium), 48.0)


def petrous_band(section: Section) -> Plane:
    """Return the weight of the dark band that beam hardening draws between the petrous bones."""
    strength = bump(section.level_at(-20), -20, 16)
    band = np.exp(-(((section.y + 20) / 7) ** 2)) * np.clip((52 - np.abs(section.x)) / 10, 0, 1)
    return np.asarray(strength * band, np.float32)
