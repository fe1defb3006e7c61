"""Centreline Dice (clDice; Shit et al. 2021, "clDice - a novel topology-preserving loss function for tubular
structure segmentation", CVPR, eq. 1 to 3).

With the masks V and their skeletons S: topology precision |S_P and V_L| / |S_P|, topology sensitivity
|S_L and V_P| / |S_L|, and clDice their harmonic mean. Skeletons are Lee's (1994), by scikit-image, which
erases some blocks whole (two voxels each way, for one): a structure of which nothing is left keeps the voxel
nearest its centre, or a prediction that is right to the voxel would have a clDice of 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from threefold.topology import Labels, as_label_map, bounding_box, label_components


def cl_dice(truth: NDArray[np.generic], predicted: NDArray[np.generic], count: int) -> list[float | None]:
    """Return the centreline Dice of each label.

    Args:
        truth, predicted: label maps of one shape (I, J) or (I, J, K), 0..count; 0 is the background.
        count: number of labels beside the background.

    Returns:
        One for each label 1..count, 0..1; 0 for a missed structure; None where the truth has no voxel of it.

    Raises:
        ValueError: the shapes differ, or a label map is refused (`threefold.topology.as_label_map`).
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"expected two label maps of one shape, found {truth.shape} and {predicted.shape}")
    true, found = as_label_map(truth, count), as_label_map(predicted, count)
    box = bounding_box(true | found)
    true, found = true[box], found[box]
    sensitivity = _share_inside(skeletons(true), found, count)
    precision = _share_inside(skeletons(found), true, count)
    present = np.bincount(true.ravel(), minlength=count + 1)[1:] > 0
    total = sensitivity + precision
    both = np.divide(2 * sensitivity * precision, total, out=np.zeros(count), where=total > 0)
    return [float(value) if known else None for value, known in zip(both, present, strict=True)]


def skeletons(volume: Labels) -> Labels:
    """Return the skeleton of each label: its centreline voxels keep the label, the others become 0.

    Thinning looks at a voxel's 26 neighbours, so that components thin apart: each in its own box, and islands
    far away cost nothing.

    Args:
        volume: (I, J, K) labels.
    """
    from scipy.ndimage import find_objects  # slow to import
    from skimage.morphology import skeletonize

    components = label_components(volume)
    lines = np.zeros_like(volume)
    if not volume.any():  # of both masks empty not even a box is left
        return lines
    for number, box in enumerate(find_objects(components), start=1):
        line = skeletonize(components[box] == number)  # type: ignore[no-untyped-call]
        lines[box][line] = volume[box][line]
    most = int(volume.max()) + 1
    voxels, left = (np.bincount(labels.ravel(), minlength=most) for labels in (volume, lines))
    for label in np.flatnonzero((voxels > 0) & (left == 0)):
        lines[_central_voxel(volume == label)] = label
    return lines


def _central_voxel(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the index of the voxel nearest a mask's centre; of several the first in scan order."""
    voxels = np.argwhere(mask)
    away = np.square(voxels - voxels.mean(axis=0)).sum(axis=1)
    return tuple(voxels[away.argmin()].tolist())


def _share_inside(lines: Labels, volume: Labels, count: int) -> NDArray[np.float64]:
    """Return the share of each label's centreline inside the same label of a volume; 0 without one."""
    at = np.flatnonzero(lines)
    own = lines.ravel()[at]
    total = np.bincount(own, minlength=count + 1)[1:]
    inside = np.bincount(own[volume.ravel()[at] == own], minlength=count + 1)[1:]
    return np.divide(inside, total, out=np.zeros(count), where=total > 0)
