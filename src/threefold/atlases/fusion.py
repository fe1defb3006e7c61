"""Fusion of the labels of several atlases by locally weighted voting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threefold.atlases.quality import Labels, dice_of, mean_dice
from threefold.atlases.volumes import resample
from threefold.images.geometry import Affine
from threefold.networks.registration_losses import LocalSums, correlation_map, window_sums

_WINDOW = 5
_POWER = 4
"""Of the local correlation: how much more an atlas counts where it fits better."""
_LEAST = 1e-3
"""Weight of an atlas where nothing correlates, so that a flat image is decided by the majority."""
_SLAB = 2**22
"""Voxels that are voted on at once."""


def weight(warped: Tensor, fixed: Tensor) -> Tensor:
    """Return how much an atlas counts in each voxel: a power of the local correlation, averaged locally.

    Artaechevarria et al. 2009, "Combination strategies in multi-atlas image segmentation".

    Args:
        warped: (1, 1, *S) the registered atlas.
        fixed: (1, 1, *S) the image.
    """
    local = correlation_map(warped, LocalSums.of(fixed, _WINDOW))
    mean = window_sums(local, _WINDOW) / window_sums(torch.ones_like(local), _WINDOW)
    return mean.clamp(0, 1) ** _POWER + _LEAST


def vote(maps: Sequence[Labels], weights: Sequence[Tensor], grid: Affine, image: Affine) -> Labels:
    """Return, in each voxel, the label with the largest sum of weights; of equal ones the best atlas's.

    Args:
        maps: (I, J, K) each, on the image's own grid, best atlas first.
        weights: (1, 1, *S) each, on the registration grid.
        grid: (4, 4) voxels of the registration grid to RAS+ mm.
        image: (4, 4) voxels of the image to the same mm.
    """
    size = maps[0].shape
    stacked = torch.cat(list(weights), 1)
    thickness = max(1, _SLAB // (size[1] * size[2]))
    fused = np.empty(size, np.uint8)
    for start in range(0, size[0], thickness):
        slab = (min(thickness, size[0] - start), *size[1:])
        moved = image.copy()
        moved[:3, 3] += start * image[:3, 0]
        shares = resample(stacked, grid, slab, moved, outside="border")[0].numpy()
        fused[start : start + slab[0]] = _vote([one[start : start + slab[0]] for one in maps], shares)
    return fused


def agreement(maps: Sequence[Labels], structures: Sequence[str]) -> float:
    """Return the mean Dice of the structures between every two atlases' labels; NaN of fewer than two."""
    found = [mean_dice(dice_of(a, b, structures)) or 0.0 for a, b in combinations(maps, 2)]
    return float(np.mean(found)) if found else float("nan")


def _vote(maps: Sequence[Labels], shares: NDArray[np.float32]) -> Labels:
    best, fused = np.zeros(maps[0].shape, np.float32), maps[0].copy()
    for label in np.unique(np.stack(maps)):
        total = np.zeros_like(best)
        for one, share in zip(maps, shares, strict=True):
            total += np.where(one == label, share, 0)
        # The first atlas's label is kept where another only equals it.
        wins = (total > best) | ((total == best) & (maps[0] == label))
        best[wins], fused[wins] = total[wins], label
    return fused
