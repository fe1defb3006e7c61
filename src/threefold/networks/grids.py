"""Grids of any size: padding to what a network needs, cropping again, and the mean over a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST = 1e-6
"""Of the weights of a mean, summed."""


def pad(image: Tensor, size: Sequence[int]) -> Tensor:
    """Pad (B, C, *S) with zeros at the far ends to a size."""
    ends = [end for side, goal in zip(image.shape[2:], size, strict=True) for end in (goal - side, 0)]
    return F.pad(image, ends[::-1]) if any(ends) else image


def crop(values: Tensor, size: Sequence[int]) -> Tensor:
    """Return the near corner of size S of (B, C, *T)."""
    for axis, side in enumerate(size, start=2):
        values = values.narrow(axis, 0, side)
    return values


def pool(values: Tensor) -> Tensor:
    """Return the mean over the voxels: (B, C, *S) to (B, C), float32 or float64."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.movedim(1, -1).flatten(1, -2).mean(1, dtype=dtype)


def pool_inside(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over the voxels, float32 or float64.

    Args:
        values: (B, C, *S).
        weights: (B, 1, *T) of the voxels of a grid that is as fine or finer by a whole factor along each
            axis: 0 or more. A voxel of S weighs the mean of those it covers. Where all are 0, so is the mean.

    Returns:
        (B, C).
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    share = weights.to(dtype)
    factors = [fine // side for fine, side in zip(weights.shape[2:], values.shape[2:], strict=True)]
    if any(factor > 1 for factor in factors):
        share = (F.avg_pool3d if values.ndim == 5 else F.avg_pool2d)(share, factors)
    summed = torch.einsum("bcs,bs->bc", values.to(dtype).flatten(2), share.flatten(1))
    return summed / share.flatten(1).sum(1, keepdim=True).clamp(min=_LEAST)
