"""Whether a mask winds around a line that runs from feet to head, and lines through the holes it leaves free.

A loop winds around a line if it crosses, in sum, a half-plane that ends at the line. A mask holds such a loop
if its voxels can't be given heights so that neighbours have the same one, except that it grows by one across
the half-plane, as on a spiral staircase. So small tunnels elsewhere don't matter, and no skeleton is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from threefold.topology import bounding_box

Points = NDArray[np.float64]
Mask = NDArray[np.bool_]

_LATER = tuple(o for o in product((-1, 0, 1), repeat=3) if o > (0, 0, 0))
# Slants of lines along the body, to the side and to the front. A trachea leans back, hardly to a side; far to
# a side one would look through the loop that an arch's two legs make where they meet.
_SLANTS = tuple(product((0.0, -0.2, 0.2), (0.0, -0.25, 0.25, -0.5, 0.5)))
# Narrower ones are no room for a trachea.
_HOLE_MM = 0.75


@dataclass(frozen=True)
class Line:
    """A curve with one point at each height.

    Attributes:
        heights: (n,) mm along the third axis, growing.
        places: (n, 2) mm along the first two; constant beyond the ends.
    """

    heights: Points
    places: Points

    def at(self, heights: NDArray[np.float64] | float) -> Points:
        """Return the places (mm) at some heights (mm): (..., 2)."""
        return np.stack([np.interp(heights, self.heights, self.places[:, axis]) for axis in (0, 1)], axis=-1)

    def moved(self, by: Points) -> Line:
        """Return the line moved by (3,) mm."""
        return Line(self.heights + by[2], self.places + by[:2])

    def is_clear_of(self, mask: Mask, mm: Points) -> bool:
        """Whether no voxel of a mask is within a voxel's diagonal of the line, in its slice."""
        voxels = np.argwhere(mask) * mm
        away = np.linalg.norm(voxels[:, :2] - self.at(voxels[:, 2]), axis=1)
        return bool((away > np.linalg.norm(mm[:2])).all())


def mask_line(mask: NDArray[np.generic], mm: Points) -> Line:
    """Return the line through the centre of each slice (along the third axis) of a mask that is not empty."""
    voxels = np.argwhere(mask)
    heights, slices, counts = np.unique(voxels[:, 2], return_inverse=True, return_counts=True)
    sums = [np.bincount(slices, voxels[:, axis]) for axis in (0, 1)]
    return Line(heights * mm[2], np.stack(sums, axis=1) / counts[:, None] * mm[:2])


def widened(mask: Mask, mm: Points, radius: float) -> tuple[Mask, Points]:
    """Return a mask that is not empty, cropped and grown by a radius (mm), and its new origin (mm)."""
    from scipy.ndimage import distance_transform_edt  # slow to import

    box = bounding_box(mask)
    rim = np.ceil(radius / mm).astype(int) + 1
    cropped = np.pad(mask[box], [(int(r), int(r)) for r in rim])
    origin = (np.array([side.start for side in box]) - rim) * mm
    if radius > 0:
        cropped = distance_transform_edt(~cropped, sampling=mm) <= radius
    return cropped, origin


def holes_along_body(mask: Mask, mm: Points, up: Points) -> Iterator[Line]:
    """Yield straight lines that a mask winds around in its shadow, the widest hole first.

    The shadow is cast along the body's axis and along lines that lean up to 27 degrees to the front or back
    and up to 11 to a side. A hole is a piece of the shadow's background that does not reach its edge; the
    line goes through the middle of it.

    Args:
        mask: (I, J, K), with a rim of background.
        mm: (3,) of a voxel along each axis.
        up: (3,) which way the body's axis runs, less than 90 degrees from the third axis.
    """
    voxels = np.argwhere(mask) * mm
    found: list[tuple[float, Points, Points]] = []
    for slant in up[:2] / up[2] + np.array(_SLANTS):
        shadow = voxels[:, :2] - voxels[:, 2:] * slant
        hole = _widest_hole(shadow, float(mm[:2].max()))
        if hole is not None:
            found.append((*hole, slant))
    ends = np.array([0.0, mask.shape[2] * mm[2]])
    for _, place, rise in sorted(found, key=lambda one: -one[0]):
        yield Line(ends, place + ends[:, None] * rise)


def _widest_hole(shadow: Points, pixel: float) -> tuple[float, Points] | None:
    """Return radius and centre (mm) of the widest hole between points (n, 2), drawn as squares."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt

    low = shadow.min(axis=0) - pixel
    at = np.round((shadow - low) / pixel).astype(int)
    picture = np.zeros(at.max(axis=0) + 2, bool)
    picture[tuple(at.T)] = True
    picture = picture.repeat(2, axis=0).repeat(2, axis=1)  # a hole's centre may lie between two pixels
    depth = distance_transform_edt(~picture) * binary_fill_holes(picture)
    deepest = np.unravel_index(depth.argmax(), depth.shape)
    radius = float(depth[deepest] - 0.5) * pixel / 2
    if radius < max(_HOLE_MM, 0.75 * pixel):
        return None
    return radius, (np.array(deepest) - 0.5) / 2 * pixel + low


def winds_around(mask: Mask, mm: Points, line: Line) -> bool:
    """Whether a loop within a mask (26-connected) winds around a line that the mask keeps clear of."""
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    first, second = _neighbours(mask)
    voxels = np.argwhere(mask) * mm
    places = voxels[:, :2] - line.at(voxels[:, 2])  # (n, 2) from the line
    crossing = _crossings(places[first], places[second])
    level = crossing == 0
    edges = (np.ones(int(level.sum()), np.int8), (first[level], second[level]))
    _, piece = connected_components(coo_array(edges, shape=(len(voxels),) * 2), directed=False)
    steps = np.stack([piece[first[~level]], piece[second[~level]], crossing[~level]], axis=1)  # (m, 3)
    return not _can_be_level(np.unique(steps, axis=0))


def _neighbours(mask: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of 26-neighbours of a mask with a rim, as numbers of its voxels in scan order."""
    flat = mask.ravel()
    number = np.cumsum(flat) - 1
    at = np.flatnonzero(flat)
    strides = np.array([mask.shape[1] * mask.shape[2], mask.shape[2], 1])
    pairs = []
    for offset in _LATER:
        other = at + int(np.dot(offset, strides))
        both = flat[other]
        pairs.append((number[at[both]], number[other[both]]))
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return first, second


def _crossings(start: Points, end: Points) -> NDArray[np.int64]:
    """Return 1, -1 or 0 where segments cross the half-axis (y = 0, x > 0) upward, downward or not: (n,)."""
    up = (start[:, 1] < 0) & (end[:, 1] >= 0)
    down = (start[:, 1] >= 0) & (end[:, 1] < 0)
    side = start[:, 0] * end[:, 1] - end[:, 0] * start[:, 1]  # its sign: the origin's side of the segment
    return np.where(up & (side > 0), 1, np.where(down & (side < 0), -1, 0))


def _can_be_level(steps: NDArray[np.int64]) -> bool:
    """Whether heights exist that fit all steps (from, to, rise)."""
    neighbours: dict[int, list[tuple[int, int]]] = {}
    for start, end, rise in steps.tolist():
        neighbours.setdefault(start, []).append((end, rise))
        neighbours.setdefault(end, []).append((start, -rise))
    height: dict[int, int] = {}
    for root in neighbours:
        if root in height:
            continue
        height[root] = 0
        stack = [root]
        while stack:
            one = stack.pop()
            for other, rise in neighbours[one]:
                if other not in height:
                    height[other] = height[one] + rise
                    stack.append(other)
                elif height[other] != height[one] + rise:
                    return False
    return True
