"""Image: an array and where its voxels lie in the patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from threefold.images.facts import NOTHING_STATED, Facts

if TYPE_CHECKING:
    from threefold.images.dicom import Slice
    from threefold.images.nifti_place import NiftiPlace

Affine = NDArray[np.float64]

GRID_TOLERANCE = 0.1
"""Two grids are the same where no corner moves by more than this share of the smallest voxel side."""


@dataclass(frozen=True)
class Image:
    """A 2D slice or a 3D volume as its file stores it.

    Attributes:
        array: (I, J) or (I, J, K) voxels, in the file's own axis order. HU for CT.
        affine: (4, 4) from voxel indices (i, j, k, 1) to RAS+ millimetres. A slice keeps the third column
            (its thickness direction).
        source: the file or folder it was read from.
        notes: what reading had to do to it (for example: resampled from uneven slices), for the record.
        facts: what the file states of its voxels; nothing for an image that was not read from a file.
        stored_place: of a NIfTI, how it states where its voxels lie, for masks that have to lie there.
        channels: of a case of several, the image of each on this grid, by name in the network's order, this
            image among them; None: it is missing, and 0 everywhere.
    """

    array: NDArray[np.generic]
    affine: NDArray[np.float64]
    source: Path
    notes: tuple[str, ...] = ()
    facts: Facts = NOTHING_STATED
    stored_place: NiftiPlace | None = None
    channels: Mapping[str, Image | None] = field(default_factory=dict)
    slices: tuple[Slice, ...] = field(default=(), repr=False)

    @property
    def parts(self) -> Mapping[str, Image]:
        """The images that are there: itself, by an empty name, or the channels by theirs."""
        return {name: one for name, one in self.channels.items() if one is not None} or {"": self}

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres per voxel along each axis of the array."""
        return spacing_of(self.affine, self.array.ndim)


@dataclass(frozen=True)
class Header:
    """A grid without its voxels.

    Attributes:
        shape: (I, J) or (I, J, K).
        affine: (4, 4) voxel indices to RAS+ mm.
        notes, facts: as of `Image`, as far as they show without the voxels.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    facts: Facts = NOTHING_STATED


def spacing_of(affine: Affine, dimensions: int) -> tuple[float, ...]:
    """Return the millimetres per voxel along the first `dimensions` axes of a grid."""
    return tuple(float(s) for s in np.linalg.norm(affine[:3, :dimensions], axis=0))


def voxel_volume(image: Image) -> tuple[float, str]:
    """Return the size of a voxel and its unit: mL of a volume, mm2 of a slice; 1 voxel or px without spacing.

    An image that was not read from a file has the spacing that it was given.
    """
    is_slice = image.array.ndim == 2
    if image.facts.format is not None and not image.facts.spacing_stated:
        return 1.0, "px" if is_slice else "voxels"
    axes = image.affine[:3, : image.array.ndim]
    if is_slice:
        return float(np.linalg.norm(np.cross(axes[:, 0], axes[:, 1]))), "mm2"
    return float(abs(np.linalg.det(axes))) / 1000, "mL"


def slice_affine(affine: Affine, index: int) -> Affine:
    """Return the affine of slice `index` (along the third axis) of a volume's grid."""
    moved = affine.copy()
    moved[:3, 3] += index * affine[:3, 2]
    return moved


def slice_of(volume: Image, index: int) -> Image:
    """Return slice `index` (along the third axis) of a volume."""
    return replace(
        volume,
        array=volume.array[..., index],
        affine=slice_affine(volume.affine, index),
        slices=(),  # of a resampled volume they are not its slices
        channels={
            name: None if one is None else slice_of(one, index) for name, one in volume.channels.items()
        },
    )


def closest_axes(affine: Affine, dimensions: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return, for each axis of a grid, the patient axis that it is closest to.

    Args:
        affine: (4, 4) voxel indices to RAS+ mm.
        dimensions: 2 or 3 axes of the grid.

    Returns:
        For each grid axis the patient axis (0 R-L, 1 A-P, 2 S-I; all different), and the sign of its
        direction along it (+1 towards R, A, S). Among the assignments the one with the largest sum of
        absolute direction cosines is taken, so oblique grids go to their closest axes.
    """
    cosines = affine[:3, :dimensions] / np.linalg.norm(affine[:3, :dimensions], axis=0)
    best = max(
        permutations(range(3), dimensions),
        key=lambda axes: sum(abs(cosines[patient, grid]) for grid, patient in enumerate(axes)),
    )
    signs = tuple(1 if cosines[patient, grid] >= 0 else -1 for grid, patient in enumerate(best))
    return best, signs


def plane_of(affine: Affine) -> str:
    """Return the plane that a grid's first two axes are closest to: sagittal, coronal or axial."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]


def tilt_of(affine: Affine, dimensions: int) -> float:
    """Return the largest angle between an axis of a grid and the patient axis it is closest to, degrees."""
    cosines = affine[:3, :dimensions] / np.linalg.norm(affine[:3, :dimensions], axis=0)
    closest = [
        abs(cosines[patient, axis]) for axis, patient in enumerate(closest_axes(affine, dimensions)[0])
    ]
    return float(np.degrees(np.arccos(min(1.0, *closest))))


def describe_difference(
    shape_a: tuple[int, ...], affine_a: Affine, shape_b: tuple[int, ...], affine_b: Affine
) -> str | None:
    """Say how grid b differs from grid a, in words; None where they are the same.

    Grids of one shape are the same where no corner of b lies further than GRID_TOLERANCE of the smallest
    voxel side from the same corner of a. For slices the third column (the thickness) is not compared.
    """
    if shape_a != shape_b:
        return f"shape {_by(shape_b)} instead of {_by(shape_a)}"
    corners = np.array([[*corner, *(0,) * (3 - len(shape_a)), 1] for corner in _corners(shape_a)], float)
    moves = np.linalg.norm((corners @ (affine_b - affine_a).T)[:, :3], axis=1)
    spacing_a, spacing_b = spacing_of(affine_a, len(shape_a)), spacing_of(affine_b, len(shape_a))
    if moves.max() <= GRID_TOLERANCE * min(spacing_a):
        return None
    parts = []
    if not np.allclose(spacing_a, spacing_b, rtol=1e-3):
        parts.append(f"spacing {_mm(spacing_b)} mm instead of {_mm(spacing_a)} mm")
    angles = _angles(affine_a, affine_b, len(shape_a))
    if max(angles) > 0.01:
        parts.append("axes turned by " + ", ".join(f"{angle:.2f}" for angle in angles) + " degrees")
    shift = affine_b[:3, 3] - affine_a[:3, 3]
    if np.abs(shift).max() > 1e-3:
        parts.append(f"origin shifted by {_mm(shift)} mm (R, A, S)")
    parts.append(f"corners up to {moves.max():.3g} mm apart")
    return "; ".join(parts)


def _corners(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(product(*((0, size - 1) for size in shape)))


def _angles(affine_a: Affine, affine_b: Affine, dimensions: int) -> list[float]:
    """Return the angle between the directions of each axis, degrees."""
    a, b = affine_a[:3, :dimensions], affine_b[:3, :dimensions]
    cosines = (a * b).sum(axis=0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
    return [float(angle) for angle in np.degrees(np.arccos(np.clip(cosines, -1, 1)))]


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


def _mm(values: NDArray[np.float64] | tuple[float, ...]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
