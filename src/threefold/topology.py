"""Counting topology on label maps: components, tunnels and cavities of each label, and which labels touch.

A label's voxels are closed cubes, so voxels that share a corner belong together (26-connected foreground,
6-connected background). The Euler number chi is counted; b0 (components) and b2 (cavities, which by Alexander
duality are the components of the background less the outer one) are labelled; b1 (tunnels) = b0 + b2 - chi.

Below every other room, since phantoms assert with it what evaluation measures with it.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Labels = NDArray[np.unsignedinteger[Any]]

# The half of a voxel's 26 neighbours that a scan of the volume meets before it.
_EARLIER = tuple(o for o in product((-1, 0, 1), repeat=3) if o < (0, 0, 0))
# The fewest voxels that enclose a cavity: the six faces of one voxel.
_SMALLEST_SHELL = 6


def betti_numbers(labels: NDArray[np.generic], count: int) -> Counts:
    """Return the Betti numbers of each label's voxels.

    Homology adds up over the components of a label, so that cavities are looked for in each component's own
    box: islands far away cost nothing.

    Args:
        labels: (I, J) or (I, J, K) integers or booleans, 0..count; 0 is the background.
        count: number of labels beside the background.

    Returns:
        (count, 3): components b0, tunnels b1 and cavities b2 of label 1, 2, ...; zeros for an absent label.

    Raises:
        ValueError: if `labels` has other axes, is not of integers, or has values outside 0..count.
    """
    volume = _cropped(as_label_map(labels, count))
    betti = np.zeros((count, 3), np.int64)
    if not volume.size:
        return betti
    components, owner = label_components(volume)
    betti[:, 0] = np.bincount(owner[1:], minlength=count + 1)[1:]
    np.add.at(betti[:, 2], owner[1:].astype(np.int64) - 1, _cavities(components))
    betti[:, 1] = betti[:, 0] + betti[:, 2] - _euler_numbers(volume, count)
    return betti


def euler_numbers(labels: NDArray[np.generic], count: int) -> Counts:
    """Return the Euler number (vertices - edges + faces - cubes) of each label's voxels: (count,).

    Args and errors as `betti_numbers`.
    """
    return _euler_numbers(_cropped(as_label_map(labels, count)), count)


def label_components(volume: Labels) -> tuple[Labels, Labels]:
    """Return the 26-connected components of all labels at once, numbered from 1, and each one's label.

    Args:
        volume: (I, J, K) labels.

    Returns:
        (I, J, K) component numbers, 0 in the background; (n + 1,) the label of each number.
    """
    import cc3d

    components, found = cc3d.connected_components(volume, connectivity=26, return_N=True, out_dtype=np.uint32)
    owner = np.zeros(found + 1, volume.dtype)
    inside = np.flatnonzero(volume)
    owner[components.ravel()[inside]] = volume.ravel()[inside]
    return components, owner


def component_boxes(
    components: Labels,
) -> tuple[list[tuple[slice, slice, slice]], NDArray[np.int64]]:
    """Return the bounding box and the voxel count of each component; index 0 is the background."""
    import cc3d

    found = cc3d.statistics(components)
    return found["bounding_boxes"], found["voxel_counts"].astype(np.int64)


def contact_counts(labels: NDArray[np.generic], count: int) -> Counts:
    """Return how many pairs of 26-neighbouring voxels each two labels have in common.

    Args and errors as `betti_numbers`.

    Returns:
        (count, count) symmetric; zero: the two do not touch; zero on the diagonal.
    """
    volume = _cropped(as_label_map(labels, count))
    contacts = np.zeros((count + 1, count + 1), np.int64)
    if volume.size:
        flat, strides = _padded(volume)
        at = _borders(flat, strides)
        own = flat[at].astype(np.int64)
        for offset in _EARLIER:
            other = flat[at + int(np.dot(offset, strides))]
            pairs = np.bincount(own * (count + 1) + other, minlength=(count + 1) ** 2)
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
    small = np.uint8 if count < 256 else np.uint16
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


def _padded(volume: Labels) -> tuple[Labels, tuple[int, int, int]]:
    """Return the volume with a rim of background, flat, and its strides in voxels."""
    padded = np.pad(volume, 1)
    return padded.ravel(), (padded.shape[1] * padded.shape[2], padded.shape[2], 1)


def _borders(flat: Labels, strides: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return the flat indices of the foreground voxels whose 26 neighbours are not all of their own label."""
    low, high = flat, flat
    for stride in strides:
        # The rim is background: what wraps around from row to row reaches the rim alone.
        low, high = _spread(low, stride, np.minimum), _spread(high, stride, np.maximum)
    return np.flatnonzero((low != high) & (flat != 0))


def _spread(values: Labels, stride: int, extreme: np.ufunc) -> Labels:
    spread = values.copy()
    extreme(spread[stride:], values[:-stride], out=spread[stride:])
    extreme(spread[:-stride], values[stride:], out=spread[:-stride])
    return spread


def _euler_numbers(volume: Labels, count: int) -> Counts:
    """Add up, voxel by voxel in scan order, the cells that each voxel adds to its label's complex."""
    if not volume.size:
        return np.zeros(count, np.int64)
    flat, strides = _padded(volume)
    at = _borders(flat, strides)  # a voxel among its own adds -1 + 3 - 3 + 1 = 0
    own = flat[at]
    code = np.zeros(len(at), np.uint16)
    for bit, offset in enumerate(_EARLIER):
        code |= (flat[at + int(np.dot(offset, strides))] == own).astype(np.uint16) << np.uint16(bit)
    return np.bincount(own, _added_cells()[code], minlength=count + 1)[1:].astype(np.int64)


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


def _cavities(components: Labels) -> Counts:
    """Return the number of cavities of each component: pieces of its background that don't reach its box."""
    import cc3d

    boxes, voxels = component_boxes(components)
    cavities = np.zeros(len(boxes) - 1, np.int64)
    for number, box in enumerate(boxes[1:], start=1):
        if voxels[number] < _SMALLEST_SHELL or min(side.stop - side.start for side in box) < 3:
            continue
        background = np.pad(components[box] != number, 1, constant_values=True)
        _, pieces = cc3d.connected_components(background, connectivity=6, return_N=True)
        cavities[number - 1] = pieces - 1
    return cavities
