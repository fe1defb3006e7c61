"""Counting topology on label maps: components, tunnels and cavities of each label, and which labels touch.

A label's voxels are closed cubes, so voxels that share a corner belong together (26-connected foreground,
6-connected background). The Euler number chi is counted; b0 (components) and b2 (cavities, which by Alexander
duality are the components of the background less the outer one) are labelled; b1 (tunnels) = b0 + b2 - chi.

Below every other room, since phantoms assert with it what evaluation measures with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Labels = NDArray[np.unsignedinteger[Any]]

# The half of a voxel's 26 neighbours that a scan of the volume meets before it.
_EARLIER = tuple(o for o in product((-1, 0, 1), repeat=3) if o < (0, 0, 0))
_FACES = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))


def betti_numbers(labels: NDArray[np.generic], count: int) -> Counts:
    """Return the Betti numbers of each label's voxels.

    The work is done around the borders of the labels, for all labels at once: neither the size of a structure
    nor the number of its islands costs much.

    Args:
        labels: (I, J) or (I, J, K) integers or booleans, 0..count; 0 is the background.
        count: number of labels beside the background.

    Returns:
        (count, 3): components b0, tunnels b1 and cavities b2 of label 1, 2, ...; zeros for an absent label.

    Raises:
        ValueError: if `labels` has other axes, is not of integers, or has values outside 0..count.
    """
    grid = _Grid(_cropped(as_label_map(labels, count)))
    betti = np.zeros((count, 3), np.int64)
    if len(grid.at):
        betti[:, 0] = _components(grid, count)
        betti[:, 2] = _cavities(grid, count)
        betti[:, 1] = betti[:, 0] + betti[:, 2] - _euler_numbers(grid, count)
    return betti


def label_components(volume: Labels) -> Labels:
    """Return the 26-connected components of all labels at once, numbered from 1; 0 in the background.

    Args:
        volume: (I, J, K) labels.
    """
    import cc3d

    components: Labels = cc3d.connected_components(volume, connectivity=26)
    return components


def contact_counts(labels: NDArray[np.generic], count: int) -> Counts:
    """Return how many pairs of 26-neighbouring voxels each two labels have in common.

    Args and errors as `betti_numbers`.

    Returns:
        (count, count) symmetric; zero: the two do not touch; zero on the diagonal.
    """
    grid = _Grid(_cropped(as_label_map(labels, count)))
    contacts = np.zeros((count + 1, count + 1), np.int64)
    own = grid.own.astype(np.int64)
    for offset in _EARLIER:
        pairs = np.bincount(own * (count + 1) + grid.neighbours(offset), minlength=(count + 1) ** 2)
        contacts += pairs.reshape(count + 1, count + 1)  # (own label, other label)
    contacts += contacts.T
    np.fill_diagonal(contacts, 0)
    return contacts[1:, 1:]


def as_label_map(labels: NDArray[np.generic], count: int) -> Labels:
    """Return labels as an (I, J, K) volume of small unsigned integers; a slice (I, J) becomes (I, J, 1).

    Raises:
        ValueError: as `betti_numbers`.
    """
    if labels.ndim not in (2, 3):
        raise ValueError(f"expected a label map (I, J) or (I, J, K), found shape {labels.shape}")
    if labels.dtype.kind not in "bui":
        raise ValueError(f"expected a label map of integers, found {labels.dtype}")
    if labels.size and (int(labels.max()) > count or int(labels.min()) < 0):
        raise ValueError(f"expected labels 0 to {count}, found {int(labels.min())} to {int(labels.max())}")
    small = np.uint8 if count < 255 else np.uint16  # one number is left free, for `_cavities`
    volume: Labels = np.ascontiguousarray(labels, dtype=small)
    return volume if volume.ndim == 3 else volume[..., None]  # (I, J, K)


def bounding_box(foreground: NDArray[np.generic]) -> tuple[slice, ...]:
    """Return the smallest box around the voxels that are not zero; empty slices where there are none."""
    box = []
    for axis in range(foreground.ndim):
        others = tuple(a for a in range(foreground.ndim) if a != axis)
        at = np.flatnonzero(foreground.any(axis=others))
        box.append(slice(int(at[0]), int(at[-1]) + 1) if at.size else slice(0, 0))
    return tuple(box)


def _cropped(volume: Labels) -> Labels:
    return np.ascontiguousarray(volume[bounding_box(volume)])


class _Grid:
    """A label map with a rim of background, read by flat index around the borders of its labels.

    Attributes:
        volume: (I + 2, J + 2, K + 2) labels.
        flat: the same, flat.
        strides: of each axis, in voxels.
        at: flat indices of the foreground voxels whose 26 neighbours are not all of their own label.
        own: their labels.
    """

    def __init__(self, volume: Labels) -> None:
        self.volume = np.pad(volume, 1)
        self.flat = self.volume.ravel()
        self.strides = (self.volume.shape[1] * self.volume.shape[2], self.volume.shape[2], 1)
        low, high = self.flat, self.flat
        for stride in self.strides:
            # What wraps around from row to row reaches the rim alone.
            low, high = _spread(low, stride, np.minimum), _spread(high, stride, np.maximum)
        self.at = np.flatnonzero((low != high) & (self.flat != 0))
        self.own = self.flat[self.at]
        # Shifting the map instead of the indices saves a pass over the indices for each neighbour.
        self._reach = sum(self.strides)
        self._from_reach = self.at - self._reach

    def neighbours(self, offset: Sequence[int]) -> Labels:
        """Return the labels one offset away from the border voxels."""
        found: Labels = self.flat[self._reach + self.jump(offset) :].take(self._from_reach)
        return found

    def jump(self, offset: Sequence[int]) -> int:
        """Return an offset in the flat map."""
        return sum(o * s for o, s in zip(offset, self.strides, strict=True))


def _spread(values: Labels, stride: int, extreme: np.ufunc) -> Labels:
    spread = values.copy()
    extreme(spread[stride:], values[:-stride], out=spread[stride:])
    extreme(spread[:-stride], values[stride:], out=spread[:-stride])
    return spread


def _euler_numbers(grid: _Grid, count: int) -> Counts:
    """Add up, voxel by voxel in scan order, the cells that each voxel adds to its label's complex.

    A voxel amid its own label adds -1 + 3 - 3 + 1 = 0: the borders are enough.
    """
    code = np.zeros(len(grid.at), np.uint16)
    for bit, offset in enumerate(_EARLIER):
        code += (grid.neighbours(offset) == grid.own) * np.uint16(1 << bit)
    return np.bincount(grid.own, _added_cells()[code], minlength=count + 1)[1:].astype(np.int64)


@cache
def _added_cells() -> NDArray[np.float64]:
    """Return what a voxel adds to the Euler number, for each set of earlier neighbours of its label.

    A cell of a voxel is a triple of -1, 0, 1: its side along each axis (0: it spans it). So its dimension is
    the number of zeros. A neighbour shares the cells that lie on its side.
    """
    codes = np.arange(1 << len(_EARLIER))
    added = np.zeros(len(codes))
    for cell in product((-1, 0, 1), repeat=3):
        sharing = [
            bit
            for bit, offset in enumerate(_EARLIER)
            if all(o in (0, side) for o, side in zip(offset, cell, strict=True))
        ]
        new = (codes & sum(1 << bit for bit in sharing)) == 0
        added += np.where(new, (-1.0) ** cell.count(0), 0.0)
    return added


def _components(grid: _Grid, count: int) -> Counts:
    number = label_components(grid.volume).ravel()[grid.at]
    owner = np.zeros(int(number.max()) + 1, grid.own.dtype)
    owner[number] = grid.own
    return np.bincount(owner[1:], minlength=count + 1)[1:]


def _cavities(grid: _Grid, count: int) -> Counts:
    """Return the number of cavities of each label: pieces of its background beside the one outside.

    A label's background is made of the 6-connected regions of everything else. So it takes one labelling of
    all regions, and the graph of those that share faces: without the label's own it falls into the pieces.
    """
    import cc3d
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    regions, found = cc3d.connected_components(grid.volume + 1, connectivity=6, return_N=True)
    regions = regions.ravel()
    owner = np.zeros(found + 1, grid.own.dtype)
    owner[regions[grid.at]] = grid.own
    keys = []
    for face in _FACES:
        other = grid.neighbours(face)
        # Two labels meet at an earlier face of one of them; the background has no border voxels of its own.
        at = grid.at[np.flatnonzero(other != grid.own if min(face) < 0 else other == 0)]
        keys.append(regions[at].astype(np.int64) * (found + 1) + regions[at + grid.jump(face)])
    pairs = np.sort(np.concatenate(keys))  # several times as fast as np.unique
    first, second = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], found + 1)
    cavities = np.zeros(count, np.int64)
    for label in range(1, count + 1):
        keep = (owner[first] != label) & (owner[second] != label)
        edges = (np.ones(int(keep.sum()), np.int8), (first[keep], second[keep]))
        graph = coo_array(edges, shape=(found + 1, found + 1))
        pieces, _ = connected_components(graph, directed=False)
        # Each left out region is a piece of its own, and so is the unused number 0.
        cavities[label - 1] = pieces - np.count_nonzero(owner == label) - 2
    return cavities
