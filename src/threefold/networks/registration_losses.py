"""Losses of registration: local correlation of images, smoothness of fields, overlap of regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-5  # least sum of squared deviations in a window


@dataclass(frozen=True)
class LocalSums:
    """A volume and its sums over windows, so that a volume that stays is summed once.

    Attributes:
        values: (B, C, *S).
        sums: (B, C, *S) over the window around each voxel; outside there is 0.
        deviations: (B, C, *S) sums of squared deviations from the window's mean, at least 1e-5.
        window: side of the window, voxels.
    """

    values: Tensor
    sums: Tensor
    deviations: Tensor
    window: int

    @classmethod
    def of(cls, values: Tensor, window: int) -> LocalSums:
        """Sum a volume that needs no gradient."""
        with torch.no_grad():
            sums, squares = window_sums(torch.stack((values, values.square())), window).unbind()
            deviations = squares.addcmul_(sums, sums, value=-1 / window**3).clamp_min_(_EPSILON)
        return cls(values, sums, deviations, window)


def local_correlation(values: Tensor, target: LocalSums) -> Tensor:
    """Return the mean over voxels of the squared correlation of two volumes in a window around each voxel.

    With t and p the two volumes and sums over a window of N voxels:
    (sum tp - sum t sum p / N)^2 / ((sum t^2 - (sum t)^2 / N) (sum p^2 - (sum p)^2 / N)), Balakrishnan et al.
    2019, eq. 6. Its negative is MONAI's LocalNormalizedCrossCorrelationLoss.

    Args:
        values: (B, C, *S).
        target: of (B, C, *S), without a gradient.

    Returns:
        A number from 0 to 1.
    """
    correlation: Tensor = _LocalCorrelation.apply(  # type: ignore[no-untyped-call]
        values, target.values, target.sums, target.deviations, target.window
    )
    return correlation


@torch.no_grad()
def correlation_map(values: Tensor, target: LocalSums) -> Tensor:
    """Return what `local_correlation` is the mean of: (B, C, *S), each from 0 to 1."""
    stacked = torch.stack((values, values.square(), values * target.values))
    sums, squares, products = window_sums(stacked, target.window).unbind()
    count = target.window**3
    cross = products - sums * target.sums / count
    deviations = (squares - sums.square() / count).clamp_min(_EPSILON)
    return cross.square() / deviations / target.deviations


def smoothness(field: Tensor, kind: Literal["diffusion", "bending"]) -> Tensor:
    """Return `diffusion` or `bending` of a field."""
    return diffusion(field) if kind == "diffusion" else bending(field)


def diffusion(field: Tensor) -> Tensor:
    """Return the mean over voxels and components of the squared differences to the next voxels.

    Balakrishnan et al. 2019, eq. 7 (there summed over voxels and components).

    Args:
        field: (B, 3, *S), at least 2 voxels along each axis.
    """
    terms = [torch.diff(field, dim=axis).square().mean() for axis in (2, 3, 4)]
    return torch.stack(terms).sum()


def bending(field: Tensor) -> Tensor:
    """Return the mean over voxels and components of the squared second derivatives (mixed ones twice).

    Rueckert et al. 1999; the same as MONAI's BendingEnergyLoss. It lets any affine field pass.

    Args:
        field: (B, 3, *S), at least 3 voxels along each axis.
    """
    energy = torch.zeros((), dtype=field.dtype, device=field.device)
    for axis in (2, 3, 4):
        pure = _inner(torch.diff(field, n=2, dim=axis), skip=axis)
        energy = energy + pure.square().mean()
        for other in range(axis + 1, 5):
            mixed = _central(_central(field, axis), other)
            energy = energy + 2 * _inner(mixed, skip=axis, also=other).square().mean()
    return energy


def overlap_loss(probability: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - soft Dice of a region that was warped linearly and a mask, the mean over cases.

    Args:
        probability: (B, 1, *S) 0..1.
        mask: (B, 1, *S) 0 and 1.
    """
    axes = (1, 2, 3, 4)
    shared = (probability * mask).sum(axes)
    return (1 - 2 * shared / (probability.sum(axes) + mask.sum(axes)).clamp_min(_EPSILON)).mean()


def window_sums(values: Tensor, window: int) -> Tensor:
    """Return the sums over a cube around each voxel, 0 being outside, one axis after the other.

    Args:
        values: (..., I, J, K).
        window: side of the cube, odd.

    Returns:
        (..., I, J, K).
    """
    for axis in (-3, -2, -1):
        values = _sliding_sums(values, window, axis)
    return values


def _sliding_sums(values: Tensor, window: int, axis: int) -> Tensor:
    """Sums of `window` neighbours along an axis, from sums of 1, 2, 4, ... of them."""
    side = values.shape[axis]
    ends = [0, 0] * (-axis - 1) + [window // 2, window // 2]
    power = F.pad(values, ends)
    total, start, width = None, 0, 1
    while True:
        if window & width:
            part = power.narrow(axis, start, side)
            total = part if total is None else total + part
            start += width
        if 2 * width > window:
            assert total is not None
            return total
        length = power.shape[axis] - width
        power = power.narrow(axis, 0, length) + power.narrow(axis, width, length)
        width *= 2


class _LocalCorrelation(torch.autograd.Function):
    """The gradient goes through the window sums by window sums: they are their own adjoint."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, target: Tensor, target_sums: Tensor, target_deviations: Tensor, window: int
    ) -> Tensor:
        stacked = torch.stack((values, values.square(), values * target))
        sums, squares, products = window_sums(stacked, window).unbind()
        count = window**3
        cross = products.addcmul_(sums, target_sums, value=-1 / count)
        deviations = squares.addcmul_(sums, sums, value=-1 / count)
        flat = deviations <= _EPSILON
        deviations.clamp_min_(_EPSILON)
        correlation = (cross.square() / deviations).div_(target_deviations)
        ctx.save_for_backward(values, target, target_sums, target_deviations, sums, cross, deviations, flat)
        ctx.window = window
        return correlation.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, target, target_sums, target_deviations, sums, cross, deviations, flat = ctx.saved_tensors
        count = ctx.window**3
        by_cross = cross.div(deviations).div_(target_deviations).mul_(2 * gradient / values.numel())
        by_deviation = (by_cross * cross).div_(deviations).mul_(-0.5).masked_fill_(flat, 0)
        by_sum = (by_cross * target_sums).addcmul_(by_deviation, sums, value=2).mul_(-1 / count)
        cross_sums, deviation_sums, sum_sums = window_sums(
            torch.stack((by_cross, by_deviation, by_sum)), ctx.window
        ).unbind()
        back = sum_sums.addcmul_(cross_sums, target).addcmul_(deviation_sums, values, value=2)
        return back, None, None, None, None


def _central(field: Tensor, axis: int) -> Tensor:
    side = field.shape[axis] - 2
    return (field.narrow(axis, 2, side) - field.narrow(axis, 0, side)) / 2


def _inner(field: Tensor, *, skip: int, also: int | None = None) -> Tensor:
    """Drop the outermost voxels of the axes along which no derivative was taken."""
    for axis in (2, 3, 4):
        if axis not in (skip, also):
            field = field.narrow(axis, 1, field.shape[axis] - 2)
    return field
