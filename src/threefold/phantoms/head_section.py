"""Where a section cuts a head, and where the skull lies in it.

Lengths in mm. Head frame: x to the patient's left, y to the front, level upwards from the third ventricle's
floor. Arrays are (I, J) float32 on the scanner's grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from threefold.phantoms.head_parameters import Head
from threefold.phantoms.smooth_noise import Plane

Box = tuple[slice, slice]

ANGLES = 2048
"""Entries of a table over the angle in the section's plane."""


@dataclass(frozen=True)
class Section:
    """Where a section lies.

    Attributes:
        x, y: (I, J) positions in the head frame.
        level: at x = y = 0; slope: levels per mm to the front (gantry tilt).
        pixel: mm.
        rows, columns: (I,), (J,) positions of the grid, for noise.
    """

    x: Plane
    y: Plane
    level: float
    slope: float
    pixel: float
    rows: NDArray[np.float32]
    columns: NDArray[np.float32]

    def crop(self, box: Box) -> Section:
        """Return the section within a box."""
        return replace(
            self, x=self.x[box], y=self.y[box], rows=self.rows[box[0]], columns=self.columns[box[1]]
        )

    def level_at(self, y: float) -> float:
        """Level where the section passes `y`."""
        return self.level + self.slope * y


@dataclass(frozen=True)
class Skull:
    """The skull's inner table in a section.

    Attributes:
        distance: (I, J) mm outside the inner table (negative inside).
        radius2: (I, J) squared distance from the middle, 1 at the inner table.
        angle: (I, J) index into tables over the angle.
        scale: size of the section against the widest one.
        oblique: factor on thicknesses cut at an angle.
    """

    distance: Plane
    radius2: Plane
    angle: NDArray[np.intp]
    scale: float
    oblique: float

    def crop(self, box: Box) -> Skull:
        """Return the skull within a box."""
        return replace(self, distance=self.distance[box], radius2=self.radius2[box], angle=self.angle[box])

    def inside(self) -> Box:
        """Return the smallest box around what lies inside the inner table, a few pixels wider."""
        within = self.distance < 0
        rows, columns = np.flatnonzero(within.any(1)), np.flatnonzero(within.any(0))
        return (
            slice(max(int(rows[0]) - 3, 0), int(rows[-1]) + 4),
            slice(max(int(columns[0]) - 3, 0), int(columns[-1]) + 4),
        )


def find_skull(head: Head, section: Section) -> Skull:
    """Place the skull's inner table."""
    level = section.level
    height = (level - 15) / (head.vertex - 15)
    if level > 15:
        scale = math.sqrt(max(0.12, 1 - height**2))
        oblique = math.hypot(1, 0.8 * abs(height) / scale)
    else:
        scale, oblique = 1 - 0.07 * ((15 - level) / 40) ** 2, 1.0
    slope = section.slope * height / max(scale, 0.3) / (head.vertex - 15) * -1 if level > 15 else 0.0
    u = section.x / (
        np.float32(head.half_width) * (1 - np.float32(head.taper / head.half_length) * section.y)
    )
    v = section.y / np.float32(head.half_length)
    radius = np.sqrt(u * u + v * v) + np.float32(1e-6)
    turn = np.arctan2(v, u) * np.float32(ANGLES / (2 * math.pi))
    angle = turn.astype(np.intp) % ANGLES
    outline = np.float32(scale) * _outline(head)[angle]
    if slope:
        outline = outline * (1 + np.float32(slope) * section.y)
    relative = outline / radius
    distance = np.sqrt(section.x**2 + section.y**2) * (1 - relative)
    return Skull(distance, 1 / (relative * relative), angle, scale, oblique)


@lru_cache(maxsize=16)
def waves(seed: tuple[int, ...], first: int, last: int, falloff: float) -> NDArray[np.float32]:
    """Return a random periodic function of unit variance over the angle, (ANGLES,)."""
    generator = np.random.default_rng(seed)
    orders = np.arange(first, last + 1)
    amplitude = orders**-falloff
    amplitude = amplitude / math.sqrt(float((amplitude**2).sum()) / 2)
    phase = generator.uniform(0, 2 * math.pi, len(orders))
    angles = np.arange(ANGLES) * (2 * math.pi / ANGLES)
    return np.asarray(amplitude @ np.cos(orders[:, None] * angles + phase[:, None]), np.float32)


def about(degrees: float, width: float) -> NDArray[np.float32]:
    """Return a bump over the angle, (ANGLES,)."""
    angles = np.arange(ANGLES) * (360 / ANGLES)
    away = (angles - degrees + 180) % 360 - 180
    return np.asarray(np.exp(-0.5 * (away / width) ** 2), np.float32)


def _outline(head: Head) -> NDArray[np.float32]:
    squareness = np.cos(4 * np.arange(ANGLES) * (2 * math.pi / ANGLES))
    return np.asarray(1 - 0.022 * squareness + 0.012 * waves((head.seed, 1), 2, 7, 1.2), np.float32)
