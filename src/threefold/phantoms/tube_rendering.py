"""Tubes and ellipsoids on a voxel grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from threefold.phantoms.fetal_anatomy import Ellipsoid, Tube

Volume = NDArray[np.float32]
FAR = np.float32(1e3)


@dataclass(frozen=True)
class Grid:
    """A cubic grid in RAS+ whose middle is at the origin.

    Attributes:
        size: voxels along each side.
        spacing: mm per voxel.
    """

    size: int
    spacing: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        return (self.size,) * 3

    @property
    def first(self) -> float:
        """Position of the first voxel's centre along each axis, mm."""
        return -(self.size - 1) / 2 * self.spacing

    def axis(self) -> Volume:
        """Positions of the voxels' centres along an axis, mm."""
        return (self.first + np.arange(self.size) * self.spacing).astype(np.float32)


def distances(tubes: Iterable[Tube], grid: Grid, *, least: float = 0.0) -> Volume:
    """Return the signed distance of each voxel's centre to the nearest tube's surface, mm, negative inside.

    It is right within about a voxel of the surface, which is all that a border needs; elsewhere it is FAR.

    Args:
        tubes: their points lie closer together than a voxel.
        grid: where.
        least: a radius below this one, mm, is drawn as this one.
    """
    field = np.full(grid.shape, FAR, np.float32)
    flat = field.reshape(-1)
    for tube in tubes:
        radii = np.maximum(tube.radii, least)
        reach = int(np.ceil(radii.max() / grid.spacing)) + 1
        offsets = np.array(list(product(range(-reach, reach + 1), repeat=3)))  # (M, 3)
        near = (offsets**2).sum(axis=1) <= (reach + 1) ** 2
        offsets = offsets[near]
        # Half a voxel between points is close enough for a border.
        step = max(1, int(grid.spacing / 2 / 0.2))
        for points, radius in ((tube.points[::step], radii[::step]), (tube.points[-1:], radii[-1:])):
            at = (points - grid.first) / grid.spacing  # (N, 3) voxels
            voxels = np.floor(at).astype(np.int64)[:, None] + offsets  # (N, M, 3)
            away = np.sqrt((((voxels - at[:, None]) * grid.spacing) ** 2).sum(axis=2)) - radius[:, None]
            inside = ((voxels >= 0) & (voxels < grid.size)).all(axis=2)
            index = np.ravel_multi_index(tuple(voxels[inside].T), grid.shape)
            np.minimum.at(flat, index, away[inside].astype(np.float32))
    return field


def cover(distance: Volume, grid: Grid) -> Volume:
    """Return the share of each voxel that lies inside, from the signed distance of its centre."""
    share: Volume = np.clip(np.float32(0.5) - distance / np.float32(grid.spacing), 0, 1)
    return share


def inside(ellipsoid: Ellipsoid, grid: Grid) -> Volume:
    """Return the share of each voxel that lies inside an ellipsoid with axes along the grid's."""
    x, y, z = (
        ((grid.axis() - np.float32(centre)) / np.float32(axis)) ** 2
        for centre, axis in zip(ellipsoid.centre, ellipsoid.axes, strict=True)
    )
    radius = np.sqrt(x[:, None, None] + y[None, :, None] + z[None, None, :])
    # The distance to the surface, to first order.
    return cover((radius - 1) * np.float32(min(ellipsoid.axes)), grid)
