"""Signs of a failed registration that need no truth: how image, labels, field and alignment agree."""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from threefold.atlases.volumes import Volume
from threefold.images.geometry import Affine
from threefold.networks.registration_losses import LocalSums, correlation_map
from threefold.networks.warping import jacobian_determinant, shrink

SIGNALS = {
    "tissue_correlation": "local correlation in and around the structures",
    "structure_correlation": "local correlation in the structure where it is lowest",
    "overall_correlation": "correlation of all voxels in and around the structures",
    "profile": "correlation of the structures' mean brightness with the atlas's",
    "explained": "share of the image's variance that the labels explain, relative to the atlas's own",
    "jacobian_sd": "spread of the local change of volume in the structures",
    "volume_change": "largest change of a structure's volume, beyond that of all",
    "stretch": "affine stretch of one axis against another",
    "inverse_error": "distance between the alignment and the one from image to atlas, in radii",
    "outside": "share of the atlas's structures outside the image",
}
"""Signals by name, each a number that does not depend on the registration grid's size."""
_SIDE = 48
"""Largest side of the grid that images are compared on, voxels."""
_WINDOW = 5
_AROUND = 5
"""Side of the cube that the structures are dilated by, voxels of that grid."""
_FEW = 10.0
"""Voxels that a structure's volumes are stabilised by."""


def signals(
    fixed: Volume, warped: Tensor, labels: Tensor, displacement: Tensor, atlas: Volume, atlas_labels: Tensor
) -> dict[str, float]:
    """Return what the registered images, labels and field tell; see `SIGNALS`.

    Args:
        fixed: the case.
        warped: (1, 1, *S) the atlas's image, registered to it.
        labels: (1, 1, *S) the atlas's labels, registered to it; float.
        displacement: (1, 3, *S), voxels.
        atlas: as prepared.
        atlas_labels: (1, 1, *A) its own labels; float.

    Returns:
        NaN where a signal is not defined: without labels in the image, or with one structure.
    """
    names = ("tissue_correlation", "structure_correlation", "overall_correlation", "profile", "explained")
    if not (labels > 0).any():
        return dict.fromkeys((*names, "jacobian_sd", "volume_change"), math.nan)
    image, moved, parts = _coarse(fixed.values), _coarse(warped), _coarse_labels(labels)
    near = _around(parts)
    local = correlation_map(moved, LocalSums.of(image, _WINDOW))
    own_image, own_parts = _coarse(atlas.values), _coarse_labels(atlas_labels)
    means, explained = _by_structure(image, parts, near)
    own_means, own_explained = _by_structure(own_image, own_parts, _around(own_parts))
    shared = sorted(means.keys() & own_means.keys())
    profile = _pearson(np.array([means[k] for k in shared]), np.array([own_means[k] for k in shared]))
    determinant = jacobian_determinant(displacement)[labels[:, 0] > 0].clamp_min(1e-3)
    found = (
        float(local[near].mean()),
        _least([float(local[parts == k].mean()) for k in np.unique(parts.numpy()) if k > 0]),
        _pearson(image[near].numpy(), moved[near].numpy()),
        profile if len(shared) > 2 else math.nan,
        explained / own_explained if own_explained > 0 else math.nan,
        float(determinant.log().std(correction=0)),
        _volume_change(labels, _voxel(fixed), atlas_labels, _voxel(atlas)),
    )
    return dict(zip((*names, "jacobian_sd", "volume_change"), found, strict=True))


def stretch(alignment: Affine) -> float:
    """Return the logarithm of the ratio of an affine map's largest and smallest scale."""
    scales = np.linalg.svd(alignment[:3, :3], compute_uv=False)
    return float(np.log(scales[0] / scales[-1]))


def outside(alignment: Affine, fixed: Volume, atlas: Volume, atlas_labels: Tensor) -> float:
    """Return the share of an atlas's labelled voxels that an alignment places outside the image's grid."""
    places = atlas_labels[0, 0].nonzero().double().numpy()
    to_grid = np.linalg.inv(alignment @ fixed.affine) @ atlas.affine
    on_grid = places @ to_grid[:3, :3].T + to_grid[:3, 3]
    beyond = (on_grid < -0.5) | (on_grid > np.array(fixed.size) - 0.5)
    return float(beyond.any(1).mean()) if len(places) else math.nan


def inverse_error(forward: Affine, back: Affine, fixed: Volume) -> float:
    """Return how far an alignment and one in the other direction are from each other's inverse.

    Args:
        forward: (4, 4) the fixed volume's mm to the moving volume's.
        back: (4, 4) the other way, found on its own.
        fixed: the volume.

    Returns:
        The mean distance by which points on the axes, half way to the border, miss themselves after both, as
        a share of the mean half side.
    """
    half = np.diag(np.array(fixed.size) / 4)
    middle = (np.array(fixed.size) - 1) / 2
    grid = np.vstack((middle + half, middle - half))
    points = grid @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    both = back @ forward
    missed = np.linalg.norm(points @ both[:3, :3].T + both[:3, 3] - points, axis=1)
    sides = np.linalg.norm(fixed.affine[:3, :3], axis=0) * np.array(fixed.size)
    return float(missed.mean() / (sides.mean() / 2))


def _coarse_size(size: tuple[int, ...]) -> tuple[int, ...]:
    factor = max(1.0, max(size) / _SIDE)
    return tuple(max(2, round(n / factor)) for n in size)


def _coarse(values: Tensor) -> Tensor:
    return shrink(values, _coarse_size(tuple(values.shape[2:])))


def _coarse_labels(labels: Tensor) -> Tensor:
    return F.interpolate(labels, size=_coarse_size(tuple(labels.shape[2:])), mode="nearest-exact")


def _around(labels: Tensor) -> Tensor:
    """Return where structures are, or nearly: (1, 1, *S) bool."""
    return F.max_pool3d((labels > 0).float(), _AROUND, stride=1, padding=_AROUND // 2) > 0


def _by_structure(image: Tensor, labels: Tensor, near: Tensor) -> tuple[dict[int, float], float]:
    """Return the mean brightness of each structure and of what is around all (0), and the share of variance.

    The share is that of the image's variance in and around the structures that lies between their means.
    """
    values, groups = image[near].double().numpy(), labels[near].long().numpy()
    counts = np.bincount(groups)
    sums = np.bincount(groups, weights=values)
    there = np.flatnonzero(counts)
    means = sums[there] / counts[there]
    total = np.square(values - values.mean()).sum() if len(values) else 0.0
    between = (counts[there] * np.square(means - values.mean())).sum() if len(values) else 0.0
    return dict(zip(map(int, there), map(float, means), strict=True)), float(between / max(total, 1e-12))


def _volume_change(labels: Tensor, voxel: float, atlas_labels: Tensor, atlas_voxel: float) -> float:
    """Return the largest |log ratio| of a structure's volumes, less that of all structures together."""
    count = int(atlas_labels.max()) + 1
    now = np.bincount(labels.long().flatten().numpy(), minlength=count)[1:count] * voxel
    before = np.bincount(atlas_labels.long().flatten().numpy(), minlength=count)[1:] * atlas_voxel
    there = before > 0
    few = _FEW * max(voxel, atlas_voxel)
    ratios = np.log((now[there] + few) / (before[there] + few))
    whole = np.log((now.sum() + few) / (before.sum() + few))
    return float(np.abs(ratios - whole).max())


def _voxel(volume: Volume) -> float:
    return float(abs(np.linalg.det(volume.affine[:3, :3])))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation; 0 where one is constant."""
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    norm = math.sqrt(float(np.square(a, dtype=np.float64).sum() * np.square(b, dtype=np.float64).sum()))
    return float((a * b).sum()) / norm if norm > 1e-12 else 0.0


def _least(values: list[float]) -> float:
    return min(values, default=math.nan)
