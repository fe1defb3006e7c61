"""A fetal T2w black-blood acquisition, put together from slices: what a scanner makes of an anatomy."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from threefold.images.preprocessing import resize
from threefold.phantoms.fetal_protocol import Scanner

Volume = NDArray[np.float32]
Voxel = TypeVar("Voxel", bound=np.generic)
BRIGHTEST = 1000.0
"""Signal of fluid in the file, arbitrary units."""


def acquire(
    signal: Volume, scanner: Scanner, *, spacing: float, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Return the reconstructed volume of an anatomy, in arbitrary units.

    In the order of the physics: the tissues' contrast; slices along the third axis, thicker than the grid,
    each moved in plane by residual motion and of its own brightness; the point spread; the coils' field;
    Rician noise.

    Args:
        signal: (I, J, K) 0..1, black blood already dark.
        scanner: the acquisition.
        spacing: mm per voxel.
        rng: draws motion, field and noise.
    """
    from scipy.ndimage import gaussian_filter, uniform_filter1d

    volume = np.power(signal, np.float32(scanner.contrast), dtype=np.float32)
    width = max(1, round(scanner.thickness / spacing))
    if width > 1:
        # What the slices of other orientations give back is about half of what the thickness takes.
        volume = np.float32(0.5) * (volume + uniform_filter1d(volume, width, axis=2))
    volume = _move_slices(volume, rng.normal(0, scanner.motion / spacing, (volume.shape[2], 2)))
    volume *= np.exp(rng.normal(0, scanner.stripes, volume.shape[2])).astype(np.float32)
    volume = gaussian_filter(volume, scanner.blur / spacing, truncate=3)
    field = resize(rng.standard_normal((3, 3, 3)).astype(np.float32), volume.shape)
    volume *= np.exp(np.float32(scanner.bias) * field)
    real, imaginary = (
        rng.standard_normal(volume.shape, dtype=np.float32) * np.float32(scanner.noise) for _ in range(2)
    )
    volume = np.hypot(volume + real, imaginary)
    stored: NDArray[np.int16] = np.clip(volume * np.float32(BRIGHTEST), 0, 32000).astype(np.int16)
    return stored


def _move_slices(volume: Volume, shifts: NDArray[np.float64]) -> Volume:
    """Move each slice along the first two axes by (K, 2) voxels, at most one, linearly."""
    moved = volume
    for axis in (0, 1):
        shift = np.clip(shifts[:, axis], -1, 1).astype(np.float32)
        ahead, back = np.maximum(shift, 0), np.maximum(-shift, 0)
        moved = moved * (1 - ahead - back) + np.roll(moved, 1, axis) * ahead + np.roll(moved, -1, axis) * back
    return moved


def affine(scanner: Scanner, *, size: int, spacing: float) -> NDArray[np.float64]:
    """Return (4, 4) from the file's voxel indices to RAS+ mm; the grid's middle is near the origin."""
    angle = np.radians(scanner.tilt)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    signs = np.where(scanner.flips, -1.0, 1.0)
    matrix = np.eye(4)
    matrix[:3, :3] = turn * (signs * spacing)
    matrix[:3, 3] = -matrix[:3, :3] @ np.full(3, (size - 1) / 2) + (3.0, -40.0, 120.0)
    return matrix


def as_stored(volume: NDArray[Voxel], scanner: Scanner) -> NDArray[Voxel]:
    """Return a volume in RAS+ order as the site's files store it."""
    axes = tuple(axis for axis, flipped in enumerate(scanner.flips) if flipped)
    return np.ascontiguousarray(np.flip(volume, axes))
