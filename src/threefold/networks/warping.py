"""Displacement fields in voxels: warping, integration of velocities, Jacobian determinants.

A field u is (B, 3, I, J, K): what is seen at voxel x comes from x + u(x).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["linear", "nearest"]
Outside = Literal["zeros", "border"]


def warp(
    values: Tensor, displacement: Tensor, *, order: Interpolation = "linear", outside: Outside = "zeros"
) -> Tensor:
    """Return values at x + displacement(x), for each voxel x.

    Labels are warped for a loss as one-hot channels, linearly: nearest has no gradient.

    Args:
        values: (B, C, *S).
        displacement: (B, 3, *T), voxels of `values`; T may be another grid than S, whose voxel 0 is its own.
        order: linear between the eight neighbours, or the nearest one.
        outside: what lies beyond the outermost voxels' centres: fading to zero within a voxel, or the border.

    Returns:
        (B, C, *T).
    """
    size, target = values.shape[2:], displacement.shape[2:]
    # grid_sample wants the last axis first, and -1..1 between the outermost voxels' centres.
    scale = displacement.new_tensor([2 / max(side - 1, 1) for side in size]).view(1, 3, 1, 1, 1)
    identity = _identity(tuple(target), tuple(size), displacement.dtype, displacement.device)
    places = torch.addcmul(identity, displacement, scale).flip(1).movedim(1, -1)
    return sample(values, places, order=order, outside=outside)


def sample(
    values: Tensor, places: Tensor, *, order: Interpolation = "linear", outside: Outside = "zeros"
) -> Tensor:
    """Return values at places, as `grid_sample` with `align_corners` does.

    Args:
        values: (B, C, *S).
        places: (B, *T, 3), each -1..1 from the first to the last voxel's centre, last axis of S first.
        order, outside: as for `warp`.

    Returns:
        (B, C, *T).
    """
    batch, target = len(values), places.shape[1:4]
    parts = _parts(batch, target[0]) if values.device.type == "cpu" else 1
    if parts > 1:
        # On a CPU grid_sample uses one thread an item, so the first axis is dealt out to several items.
        values = values[:, None].expand(-1, parts, *values.shape[1:]).flatten(0, 1)
        places = places.reshape(batch * parts, target[0] // parts, *target[1:], 3)
    mode = "bilinear" if order == "linear" else "nearest"
    sampled = F.grid_sample(
        values, places.to(values.dtype), mode=mode, padding_mode=outside, align_corners=True
    )
    if parts > 1:
        sampled = sampled.view(batch, parts, *sampled.shape[1:]).transpose(1, 2).flatten(2, 3)  # (B, C, *T)
    return sampled


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """Return the displacement after unit time along a stationary velocity, by scaling and squaring.

    Arsigny et al. 2006, "A Log-Euclidean framework for statistics on diffeomorphisms".

    Args:
        velocity: (B, 3, *S), voxels.
        steps: squarings; the velocity is divided by 2^steps first.

    Returns:
        (B, 3, *S) displacement, voxels.
    """
    displacement: Tensor = velocity / 2**steps
    for _ in range(steps):
        displacement = displacement + warp(displacement, displacement)
    return displacement


def resize_field(field: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bring a field to another grid over the same space (outer voxel edges fall together).

    Args:
        field: (B, 3, *S), voxels of S.
        size: T.

    Returns:
        (B, 3, *T), voxels of T.
    """
    if tuple(field.shape[2:]) == tuple(size):
        return field
    shrinks = all(new <= old for old, new in zip(field.shape[2:], size, strict=True))
    resized = shrink(field, size) if shrinks else _enlarged(field, size)
    factors = [new / old for old, new in zip(field.shape[2:], size, strict=True)]
    return resized * field.new_tensor(factors).view(1, 3, 1, 1, 1)


def shrink(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the means of (B, C, *S) over the voxels of a coarser grid over the same space: (B, C, *T)."""
    return F.adaptive_avg_pool3d(values, size)  # type: ignore[arg-type]


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Return the determinant of the gradient of x + u(x): the local change of volume.

    Derivatives are central differences, one-sided at the border.

    Args:
        displacement: (B, 3, *S), voxels, at least 2 along each axis.

    Returns:
        (B, *S); 0 and below where the field folds.
    """
    rows = [torch.stack(torch.gradient(displacement[:, axis], dim=(1, 2, 3)), -1) for axis in range(3)]
    matrix = torch.stack(rows, -2) + torch.eye(3, dtype=displacement.dtype, device=displacement.device)
    a, b, c = matrix.unbind(-1)
    determinant: Tensor = (a * torch.linalg.cross(b, c)).sum(-1)
    return determinant


def _enlarged(field: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(field, size=size, mode="trilinear", align_corners=False)


def _parts(batch: int, side: int) -> int:
    """Return the smallest number of parts of the first axis that gives each thread work."""
    wanted = -(-torch.get_num_threads() // batch)
    return next((parts for parts in range(wanted, 4 * wanted) if side % parts == 0), 1)


@lru_cache(maxsize=16)
def _identity(target: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype, device: object) -> Tensor:
    """(1, 3, *T) places of the voxels themselves, -1..1 over S."""
    axes = [
        torch.arange(n, dtype=dtype, device=str(device)) * (2 / max(side - 1, 1)) - 1
        for n, side in zip(target, size, strict=True)
    ]
    identity: Tensor = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    return identity
