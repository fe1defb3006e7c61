"""Simple shapes by their distance (mm, negative inside), and how they are laid over a picture."""

from __future__ import annotations

import math

import numpy as np

from threefold.phantoms.smooth_noise import Plane


def soft(distance: Plane, width: float) -> Plane:
    """1 inside (distance < 0), 0 outside, linear over `width`."""
    return np.asarray(np.clip(np.float32(0.5) - distance / np.float32(width), 0, 1), np.float32)


def bump(value: float, middle: float, half: float) -> float:
    """Height of a half circle over `value`: 1 at `middle`, 0 from `half` away."""
    return math.sqrt(max(0.0, 1 - ((value - middle) / half) ** 2))


def cover(hu: Plane, fraction: Plane, value: float | Plane) -> None:
    """Lay a tissue over the picture, in place."""
    hu += fraction * (np.asarray(value, np.float32) - hu)


def capsule(
    x: Plane, y: Plane, start: tuple[float, float], end: tuple[float, float], radii: tuple[float, float]
) -> Plane:
    """Distance to a segment whose radius changes linearly along it (negative inside)."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    across, along = x - np.float32(start[0]), y - np.float32(start[1])
    length2 = dx * dx + dy * dy
    h = np.clip(across * np.float32(dx / length2) + along * np.float32(dy / length2), 0, 1)
    across -= h * np.float32(dx)
    along -= h * np.float32(dy)
    distance = np.sqrt(across * across + along * along)
    if radii[0] != radii[1]:
        distance -= h * np.float32(radii[1] - radii[0])
    return np.asarray(distance - np.float32(radii[0]), np.float32)


def ellipse(x: Plane, y: Plane, middle: tuple[float, float], axes: tuple[float, float]) -> Plane:
    """Approximate distance to an ellipse (negative inside)."""
    u, v = (
        (x - np.float32(middle[0])) / np.float32(axes[0]),
        (y - np.float32(middle[1])) / np.float32(axes[1]),
    )
    return np.asarray((np.sqrt(u * u + v * v) - np.float32(1)) * np.float32(min(axes)), np.float32)
