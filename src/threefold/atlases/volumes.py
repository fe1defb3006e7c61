"""Volumes made ready for registration: 0..1, along RAS+, cropped to what is in them, placed in mm."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threefold.cohorts.cohort import CohortSpec
from threefold.experiment import PreprocessingSpec
from threefold.images.geometry import Affine, Image
from threefold.images.preprocessing import Placement, prepare_image, prepare_labels
from threefold.networks.warping import Interpolation, Outside, sample

_BACKGROUND_SHARE = 0.05
"""Where more of an image than this has exactly its lowest value, that is no tissue."""
_SLAB = 2**22
"""Voxels that labels are carried to at once."""
_ANY = (1, 1, 1)
_MARGIN = 4
"""Voxels of the file kept around what is in an image."""


@dataclass(frozen=True)
class Volume:
    """A volume on a grid along RAS+ (its own axes' closest directions).

    Attributes:
        values: (1, 1, *S) float32, 0..1.
        affine: (4, 4) voxels to RAS+ mm.
        placement: of the grid in the cropped file, and
        corner: (3,) the file's voxel where the crop begins, for label maps of the same file's grid.
    """

    values: Tensor
    affine: Affine
    placement: Placement
    corner: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(self.values.shape[2:])


def prepare(image: Image, size: tuple[int, ...], spacing: float | None, spec: CohortSpec) -> Volume:
    """Crop an image to what is in it, window it and resample it.

    A background (one exact lowest value in more than a twentieth of the voxels, as brain extraction and
    slice-to-volume reconstruction leave it) is cropped away.

    Args:
        image: (I, J, K).
        size: most voxels along each axis; the image is scaled down to fit, its aspect kept.
        spacing: mm per voxel; given, the size does not matter.
        spec: what the voxels mean.
    """
    low, high = _box(np.asarray(image.array))
    cropped = _cropped(image, low, high)
    if spacing is None and all(n <= most for n, most in zip(cropped.array.shape, size, strict=True)):
        spacing = min(cropped.spacing)  # small enough as it is
    grid = PreprocessingSpec(size=size) if spacing is None else PreprocessingSpec(size=_ANY, spacing=spacing)
    array, placement = prepare_image(
        cropped,
        grid,
        unit=spec.intensity.unit,
        window=spec.intensity.window,
        whole=True,
    )
    values = torch.from_numpy(np.ascontiguousarray(array[0][placement.inside]))
    return Volume(values[None, None], _grid_affine(placement), placement, low)


def prepare_map(labels: Image, volume: Volume) -> NDArray[np.uint8]:
    """Bring a label map on the grid of a volume's file to the volume's grid, nearest: (*S)."""
    shape = volume.placement.shape
    low = volume.corner
    cropped = _cropped(labels, low, tuple(a + n for a, n in zip(low, shape, strict=True)))
    return prepare_labels(cropped, volume.placement)[volume.placement.inside]


def resample(
    values: Tensor,
    affine: Affine,
    size: tuple[int, ...],
    target: Affine,
    *,
    order: Interpolation = "linear",
    outside: Outside = "zeros",
) -> Tensor:
    """Bring values to another grid through mm.

    Args:
        values: (1, C, *S).
        affine: (4, 4) voxels of S to mm.
        size: T.
        target: (4, 4) voxels of T to the same mm.
        order, outside: as for `warp`.

    Returns:
        (1, C, *T).
    """
    theta = unit_matrix(np.linalg.inv(affine) @ target, size, tuple(values.shape[2:]))
    places = torch.nn.functional.affine_grid(
        torch.from_numpy(theta[:3]).to(values)[None], [1, 1, *size], align_corners=True
    )
    return sample(values, places, order=order, outside=outside)


def unit_matrix(matrix: Affine, size: tuple[int, ...], target: tuple[int, ...]) -> Affine:
    """Turn a matrix from voxels of a grid to voxels of another into one of -1..1 places, last axis first."""
    return np.linalg.inv(from_unit(target)) @ matrix @ from_unit(size)


def carry_labels(
    labels: NDArray[np.uint8],
    labels_affine: Affine,
    displacement: Tensor,
    grid_affine: Affine,
    alignment: Affine,
    size: tuple[int, ...],
    target: Affine,
) -> NDArray[np.uint8]:
    """Bring an atlas's label map from its own grid to an image's own grid, in one interpolation.

    The nearest voxel of the atlas decides.

    Args:
        labels: (A, B, C) on the atlas's own grid.
        labels_affine: (4, 4) its voxels to RAS+ mm.
        displacement: (1, 3, *S), voxels of the registration grid.
        grid_affine: (4, 4) the registration grid's voxels to the image's RAS+ mm.
        alignment: (4, 4) the image's mm to the atlas's mm.
        size: (I, J, K) the image's own grid.
        target: (4, 4) its voxels to RAS+ mm.

    Returns:
        (I, J, K); 0 where the atlas does not reach.
    """
    field = (displacement, grid_affine)
    # x_atlas = L (x + u): the displacement turned into atlas places is added to where the grid's voxels lie
    to_atlas = np.linalg.inv(labels_affine) @ alignment
    values = torch.from_numpy(labels.astype(np.float32))[None, None]
    thickness = max(1, _SLAB // (size[1] * size[2]))
    slabs = []
    for start in range(0, size[0], thickness):
        slab = (min(thickness, size[0] - start), *size[1:])
        moved = target.copy()
        moved[:3, 3] += start * target[:3, 0]
        slabs.append(_carry_slab(values, to_atlas, field, slab, moved))
    return np.concatenate(slabs)


def _carry_slab(
    labels: Tensor, to_atlas: Affine, field: tuple[Tensor, Affine], size: tuple[int, ...], target: Affine
) -> NDArray[np.uint8]:
    displacement, grid_affine = field
    on_image = resample(displacement, grid_affine, size, target, outside="border")
    shape = tuple(labels.shape[2:])
    straight = unit_matrix(to_atlas @ target, size, shape)
    places = torch.nn.functional.affine_grid(
        torch.from_numpy(straight[:3]).to(displacement)[None], [1, 1, *size], align_corners=True
    )
    # linear part of the way from grid voxels to -1..1 of the atlas, last axis first
    turned = (np.linalg.inv(from_unit(shape)) @ to_atlas @ grid_affine)[:3, :3]
    moves = torch.einsum("xc,bcijk->bijkx", torch.from_numpy(turned).to(displacement), on_image)
    carried = sample(labels, places + moves, order="nearest")
    array: NDArray[np.uint8] = carried[0, 0].round().to(torch.uint8).numpy()
    return array


def from_unit(size: tuple[int, ...]) -> Affine:
    """Return the (4, 4) matrix from -1..1 places of a grid, last axis first, to its voxels."""
    matrix = np.zeros((4, 4))
    for axis, side in enumerate(size):
        matrix[axis, 2 - axis] = matrix[axis, 3] = max(side - 1, 1) / 2
    matrix[3, 3] = 1
    return matrix


def _box(array: NDArray[np.generic]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the corners of what is above the background, with a margin; of everything if there is none."""
    inside = array != array.min()
    if inside.mean() > 1 - _BACKGROUND_SHARE or not inside.any():
        return (0,) * array.ndim, array.shape
    low, high = [], []
    for axis, side in enumerate(array.shape):
        found = np.flatnonzero(inside.any(axis=tuple(other for other in range(array.ndim) if other != axis)))
        low.append(max(int(found[0]) - _MARGIN, 0))
        high.append(min(int(found[-1]) + 1 + _MARGIN, side))
    return tuple(low), tuple(high)


def _cropped(image: Image, low: tuple[int, ...], high: tuple[int, ...]) -> Image:
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(low, float)
    array = np.asarray(image.array)[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return replace(image, array=array, affine=affine)


def _grid_affine(placement: Placement) -> Affine:
    """(4, 4) from voxels of the covered part of a placement's grid to RAS+ mm."""
    to_file = np.zeros((4, 4))
    to_file[3, 3] = 1
    for axis, (source, flip) in enumerate(zip(placement.axes, placement.flips, strict=True)):
        old, new = placement.shape[source], placement.scaled[axis]
        step = old / new
        first = 0.5 * step - 0.5  # centre of the first voxel, in voxels of the file
        to_file[source, axis] = -step if flip else step
        to_file[source, 3] = old - 1 - first if flip else first
    return np.asarray(placement.affine) @ to_file
