"""Distances (mm) between the surfaces of true and predicted structures, all of a label map at once.

A surface voxel has a face neighbour that is not of its structure; what lies outside the image is not. With d
the distance from a surface voxel's centre to the nearest centre of the other surface's voxels:

  ASD    average symmetric surface distance: the mean of d over the voxels of both surfaces, pooled
  HD95   the larger of the 95th percentiles of d from truth to prediction and from prediction to truth

as MONAI's SurfaceDistanceMetric(symmetric=True) and HausdorffDistanceMetric(percentile=95) define them. Where
either surface is absent they don't exist: `threefold.evaluation.structure_measures` says what counts then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from threefold.topology import Labels, as_label_map, bounding_box

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Offsets tried one by one before a tree is asked: most of a usual prediction's surface is as near as that.
_NEAR_OFFSETS = 81


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances (mm) between the surfaces of one structure; each in the order of its surface's voxels.

    Attributes:
        to_predicted: (n,) from each voxel of the true surface to the predicted one.
        to_truth: (m,) from each voxel of the predicted surface to the true one.
    """

    to_predicted: Floats
    to_truth: Floats

    def average(self) -> float:
        """Return the average symmetric surface distance (mm)."""
        total = self.to_predicted.sum() + self.to_truth.sum()
        return float(total / (len(self.to_predicted) + len(self.to_truth)))

    def hausdorff(self, percentile: float = 95) -> float:
        """Return the larger of the two directed percentiles (mm); 100 gives the Hausdorff distance."""
        return float(max(np.percentile(d, percentile) for d in (self.to_predicted, self.to_truth)))


def voxel_counts(
    truth: NDArray[np.generic], predicted: NDArray[np.generic], count: int
) -> tuple[Indices, Indices, Indices]:
    """Return the voxels of each label in the truth, in the prediction and in both: three arrays (count,).

    Args:
        truth, predicted: label maps of one shape (I, J) or (I, J, K), 0..count; 0 is the background.
        count: number of labels beside the background.

    Raises:
        ValueError: the shapes differ, or `threefold.topology.as_label_map` refuses a label map.
    """
    true, found = (volume.ravel() for volume in _pair(truth, predicted, count))
    return (
        np.bincount(true[true > 0], minlength=count + 1)[1:],
        np.bincount(found[found > 0], minlength=count + 1)[1:],
        np.bincount(true[(true == found) & (true > 0)], minlength=count + 1)[1:],
    )


def surface_distances(
    truth: NDArray[np.generic], predicted: NDArray[np.generic], count: int, spacing: Sequence[float]
) -> list[SurfaceDistances | None]:
    """Return the distances between the surfaces of each label.

    Args:
        truth, predicted: label maps of one shape (I, J) or (I, J, K), 0..count; 0 is the background.
        count: number of labels beside the background.
        spacing: mm of a voxel along each axis.

    Returns:
        One for each label 1..count; None where truth or prediction has no voxel of it.

    Raises:
        ValueError: the shapes differ, a label map is refused, or `spacing` is not a positive number an axis.
    """
    mm = tuple(float(s) for s in spacing)
    if len(mm) != truth.ndim or not all(0 < s < np.inf for s in mm):
        raise ValueError(f"expected a positive spacing for each of {truth.ndim} axes, found {spacing}")
    # A slice's third axis has one voxel, whose both sides must not count as surface.
    flat_axis = truth.ndim == 2
    mm = mm if not flat_axis else (*mm, 1.0)
    surfaces = _Surfaces(_pair(truth, predicted, count), mm, flat_axis)
    return [surfaces.distances(label) for label in range(1, count + 1)]


class _Surfaces:
    """The surface voxels of all labels of a pair, and their distances."""

    def __init__(self, pair: tuple[Labels, Labels], mm: tuple[float, ...], flat_axis: bool) -> None:
        box = bounding_box(pair[0] | pair[1])
        self.mm = np.array(mm)
        offsets, self.lengths = _near_offsets(mm)
        reach = np.maximum(np.abs(offsets).max(axis=0), 1)
        maps = [np.pad(volume[box], [(int(r), int(r)) for r in reach]) for volume in pair]
        self.shape = maps[0].shape
        strides = np.array([self.shape[1] * self.shape[2], self.shape[2], 1])
        self.jumps = offsets @ strides
        walls = strides[:2] if flat_axis else strides
        self.at = [_surface(volume.ravel(), walls) for volume in maps]
        self.own = [volume.ravel()[at] for volume, at in zip(maps, self.at, strict=True)]
        marked = [_marked(at, own, maps[0].size) for at, own in zip(self.at, self.own, strict=True)]
        self.near = [self._near(side, marked[1 - side]) for side in (0, 1)]

    def _near(self, side: int, other: Labels) -> Floats:
        """Return the distances of a side's surface voxels to the `other` surfaces; infinite: farther."""
        distances = np.full(len(self.at[side]), np.inf)
        left = np.arange(len(distances))
        at, own = self.at[side], self.own[side]
        for jump, length in zip(self.jumps, self.lengths, strict=True):
            hit = other[at + jump] == own
            distances[left[hit]] = length
            left, at, own = (values[~hit] for values in (left, at, own))
            if not len(left):
                break
        return distances

    def distances(self, label: int) -> SurfaceDistances | None:
        members = [np.flatnonzero(own == label) for own in self.own]
        if not all(len(m) for m in members):
            return None
        return SurfaceDistances(self._directed(0, members), self._directed(1, members))

    def _directed(self, side: int, members: list[Indices]) -> Floats:
        distances = self.near[side][members[side]]
        far = np.flatnonzero(np.isinf(distances))
        if len(far):
            from scipy.spatial import cKDTree  # slow to import

            tree = cKDTree(self._centres(1 - side, members[1 - side]), leafsize=32, balanced_tree=False)
            distances[far] = tree.query(self._centres(side, members[side][far]))[0]
        return distances

    def _centres(self, side: int, members: Indices) -> Floats:
        """Return the centres (mm) of a side's surface voxels: (n, 3)."""
        voxels = np.stack(np.unravel_index(self.at[side][members], self.shape), axis=1)  # (n, 3)
        centres: Floats = voxels * self.mm
        return centres


def _pair(truth: NDArray[np.generic], predicted: NDArray[np.generic], count: int) -> tuple[Labels, Labels]:
    if truth.shape != predicted.shape:
        raise ValueError(f"expected two label maps of one shape, found {truth.shape} and {predicted.shape}")
    return as_label_map(truth, count), as_label_map(predicted, count)


def _surface(flat: Labels, strides: Indices) -> Indices:
    """Return the indices of foreground voxels with a face neighbour of another label, in a map with a rim."""
    inner = flat != 0
    for stride in strides:
        same = flat[stride:] == flat[:-stride]
        inner[stride:] &= same
        inner[:-stride] &= same
    return np.flatnonzero((flat != 0) & ~inner)


def _marked(at: Indices, own: Labels, size: int) -> Labels:
    marked = np.zeros(size, own.dtype)
    marked[at] = own
    return marked


@lru_cache(maxsize=16)
def _near_offsets(mm: tuple[float, ...]) -> tuple[Indices, Floats]:
    """Return the nearest offsets of a grid, (n, 3) voxels, and their lengths (n,) mm, in growing order.

    Every offset that is not longer than the last one is there, so that the first that hits is the nearest.
    """
    radius = float(np.prod(mm)) ** (1 / 3)
    while True:
        reach = [int(radius // s) for s in mm]
        grid = np.array(list(product(*(range(-r, r + 1) for r in reach))))
        lengths = np.sqrt(((grid * np.array(mm)) ** 2).sum(axis=1))
        if (lengths <= radius).sum() >= _NEAR_OFFSETS:
            order = np.argsort(lengths, kind="stable")
            order = order[lengths[order] <= radius]
            return grid[order], lengths[order]
        radius *= 1.1
