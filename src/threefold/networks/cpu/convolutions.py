"""Convolutions on small grids and of single cases, all of their passes by oneDNN or a matrix product.

PyTorch leaves oneDNN for a float32 convolution of one case whose planes of all channels are small, and then
takes up to ten times as long. Here the passes of such a convolution are asked of oneDNN directly; the
gradient of its weight, which PyTorch offers by no other name, as that of a batch of two halves. All values
lie channels-last in memory.
"""

# ruff: noqa: D102 (forward and backward are those of torch.autograd.Function)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from threefold.networks.cpu.gradients import in_own_type

_SMALL = 20480  # values of one case's plane of all channels, up to which PyTorch leaves oneDNN
_FEW_VOXELS = 512  # up to here a weight's gradient is faster as one matrix product


def gains(values: Tensor, stride: int, *, transposed: bool) -> bool:
    """Whether a convolution of these values, with padding 1, is faster as `Convolution` than as PyTorch's."""
    return _leaves_onednn(values) or _has_few_voxels(values, stride, transposed=transposed)


class Convolution(torch.autograd.Function):
    """Convolution with padding 1, of width 3 or 4; transposed: to a grid `stride` times as large."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, stride: int, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.stride, ctx.transposed = stride, transposed
        if transposed:
            return convolve_up(values, weight, bias, stride, [stride * side for side in values.shape[2:]])
        return convolve(values, weight, bias, stride)

    @staticmethod
    @in_own_type
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        wanted, weight_wanted, bias_wanted, *_ = ctx.needs_input_grad
        back = weight_gradient = bias_gradient = None
        if wanted and ctx.transposed:
            back = convolve(gradient, weight, None, ctx.stride)
        elif wanted:
            back = _gradient_of_values(gradient, values, weight, ctx.stride)
        if weight_wanted:
            finer, coarser = (gradient, values) if ctx.transposed else (values, gradient)
            weight_gradient = _gradient_of_weight(coarser, finer, weight, ctx.stride)
        if bias_wanted:
            bias_gradient = gradient.sum((0, *range(2, gradient.ndim)))
        return back, weight_gradient, bias_gradient, None, None


def convolve(values: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Convolution with padding 1 by oneDNN, whatever the size."""
    ones = [1] * (values.ndim - 2)
    return torch.mkldnn_convolution(values, weight, bias, ones, [stride] * len(ones), ones, 1)


def convolve_up(
    values: Tensor, weight: Tensor, bias: Tensor | None, stride: int, size: Sequence[int]
) -> Tensor:
    """Transposed convolution with padding 1 by oneDNN, whatever the size, to a grid of `size`."""
    ones, width = [1] * (values.ndim - 2), weight.shape[-1]
    added = [
        goal - (side - 1) * stride + 2 - width for side, goal in zip(values.shape[2:], size, strict=True)
    ]
    result: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
        values, weight, bias, ones, added, [stride] * len(ones), ones, 1, "none", [], ""
    )
    return result


def convolve_backward(gradient: Tensor, values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `convolve` with respect to values and weight."""
    return (
        _gradient_of_values(gradient, values, weight, 1),
        _gradient_of_weight(gradient, values, weight, 1),
    )


def _leaves_onednn(values: Tensor) -> bool:
    return values.dtype == torch.float32 and len(values) == 1 and math.prod(values.shape[:4]) <= _SMALL


def _has_few_voxels(values: Tensor, stride: int, *, transposed: bool) -> bool:
    """Whether the coarser grid of a convolution of these values, over the batch, has few voxels."""
    voxels = len(values) * math.prod(side if transposed else -(-side // stride) for side in values.shape[2:])
    return voxels <= _FEW_VOXELS


def _gradient_of_values(gradient: Tensor, values: Tensor, weight: Tensor, stride: int) -> Tensor:
    if stride > 1:
        return convolve_up(gradient, weight, None, stride, values.shape[2:])
    turned = weight.flip(tuple(range(2, weight.ndim))).transpose(0, 1)
    return convolve(gradient, turned)


def _gradient_of_weight(coarser: Tensor, finer: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Gradient of the weight of a convolution with padding 1.

    Args:
        coarser: (B, E, *T): the gradient of the result; of a transposed convolution the values.
        finer: (B, C, *S), S about stride times T: the values; of a transposed convolution the gradient.
        weight: (E, C, width, width, width), or as many axes as there are.
        stride: of the convolution.
    """
    if _has_few_voxels(coarser, 1, transposed=False):
        return _as_one_product(coarser, finer, weight.shape[2:], stride)
    first = 1
    if _leaves_onednn(finer):
        coarser, finer = _in_halves(coarser, finer, weight.shape[2], stride)
        first = 0  # padded already
    ones = [1] * (finer.ndim - 2)
    result: Tensor = torch.ops.aten.convolution_backward(
        coarser, finer, weight, None, [stride] * len(ones), [first, *ones[1:]], ones, False, [0] * len(ones),
        1, [False, True, False],
    )[1]  # fmt: skip
    return result


def _in_halves(coarser: Tensor, finer: Tensor, width: int, stride: int) -> tuple[Tensor, Tensor]:
    """Cut a case in two along its first axis, each half with what the convolution's width reaches over.

    Returns:
        (2, E, ceil(T / 2), ...) and (2, C, ...), which is padded along the first axis.
    """
    half = -(-coarser.shape[2] // 2)
    rows = coarser.movedim(1, -1)  # (1, *T, E)
    rows = torch.nn.functional.pad(rows, [0, 0] * (coarser.ndim - 2) + [0, 2 * half - coarser.shape[2]])
    behind = stride * (2 * half - 1) + width - 1 - finer.shape[2]
    padded = torch.nn.functional.pad(finer.movedim(1, -1), [0, 0] * (finer.ndim - 2) + [1, behind])
    padded = padded.contiguous()
    steps = padded.stride()[1:]
    halves = padded.as_strided(
        (2, stride * (half - 1) + width, *padded.shape[2:]), (stride * half * steps[0], *steps)
    )
    return (
        rows.reshape(2, half, *rows.shape[2:]).movedim(-1, 1),
        halves.movedim(-1, 1),
    )


def _as_one_product(coarser: Tensor, finer: Tensor, width: Sequence[int], stride: int) -> Tensor:
    axes, channels = finer.ndim - 2, finer.shape[1]
    padded = torch.nn.functional.pad(finer.movedim(1, -1), (0, 0, *[1, width[0] - 2] * axes)).contiguous()
    steps = padded.stride()[1:-1]
    windows = padded.as_strided(
        (len(finer), *coarser.shape[2:], *width, channels),
        (padded.stride(0), *(stride * step for step in steps), *steps, 1),
    )  # (B, *T, 3, 3, 3, C), overlapping
    rows = coarser.movedim(1, -1).reshape(-1, coarser.shape[1])  # (B * voxels, E)
    product = rows.t() @ windows.reshape(len(rows), -1)
    return product.view(-1, *width, channels).movedim(-1, 1)
