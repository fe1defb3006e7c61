"""Grids of any size: padding to what a network needs, cropping again, and the mean over a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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
