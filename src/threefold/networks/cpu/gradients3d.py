"""Forward and backward passes of the fast paths of the networks of convolutions.

`attention_unet` and `densenet` decide when they run. All values lie channels-last in memory.
"""

# ruff: noqa: D102 (forward and backward are those of torch.autograd.Function)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from threefold.networks.cpu.convolutions import convolve, convolve_backward
from threefold.networks.cpu.gradients import in_own_type
from threefold.networks.cpu.norms3d import as_image, keep, like, normalise, normalise_backward


class BatchNorm(torch.autograd.Function):
    """norm(values + shift) with the batch's own statistics; then ReLU and what `mask` keeps, where asked.

    The shift has no effect but on the running mean: its gradient is zero.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        shift: Tensor,
        norm: _BatchNorm,
        weight: Tensor,
        bias: Tensor,
        mask: Tensor | None,
        scale: float,
        relu: bool,
    ) -> Tensor:
        assert norm.num_batches_tracked is not None
        assert norm.running_mean is not None
        assert norm.momentum is not None
        out, mean, deviation = normalise(
            as_image(values),
            weight * scale,
            bias * scale,
            (norm.running_mean, norm.running_var, norm.momentum),
            norm.eps,
        )
        norm.running_mean.add_(shift, alpha=norm.momentum)
        norm.num_batches_tracked.add_(1)
        if relu:
            out.clamp_min_(0)
        if mask is not None:
            keep(out, mask)
        out = like(out, values)
        ctx.save_for_backward(values, weight, mean, deviation, shift, out if relu else None)
        ctx.scale, ctx.epsilon = scale, norm.eps
        return out

    @staticmethod
    @in_own_type
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, deviation, shift, out = ctx.saved_tensors
        gradient = as_image(gradient)
        if out is not None:  # what dropout set to zero is as dead as what ReLU did
            gradient = torch.ops.aten.threshold_backward(gradient, as_image(out), 0)
        back, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            gradient, as_image(values), weight * ctx.scale, None, None, mean, deviation, True, ctx.epsilon,
            [True, True, True],
        )  # fmt: skip
        affine = weight_gradient * ctx.scale, bias_gradient * ctx.scale
        return like(back, values), torch.zeros_like(shift), None, *affine, None, None, None


class InstanceNorm(torch.autograd.Function):
    """PReLU of what `mask` keeps of scale * instance norm of values + shift; without slope ReLU.

    The shift has no effect: its gradient is zero.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        shift: Tensor | None,
        slope: Tensor | None,
        mask: Tensor | None,
        scale: float,
    ) -> Tensor:
        weight = torch.full((values.shape[1],), scale)
        parts = [normalise(case, weight) for case in torch.split(as_image(values), 1)]
        normed = parts[0][0] if len(parts) == 1 else torch.cat([part[0] for part in parts])
        if mask is not None:
            keep(normed, mask)
        out = normed.clamp_min_(0) if slope is None else torch.nn.functional.leaky_relu(normed, float(slope))
        ctx.statistics = [part[1:] for part in parts]
        ctx.scale = scale
        ctx.save_for_backward(values, shift, slope, mask, normed)
        return like(out, values)

    @staticmethod
    @in_own_type
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, shift, slope, mask, normed = ctx.saved_tensors
        gradient, below = as_image(gradient), None
        if slope is None:
            gradient = torch.ops.aten.threshold_backward(gradient, normed, 0)
        else:
            below = normed.clamp_max(0).mul_(gradient).sum(dtype=torch.float32).to(slope.dtype).view_as(slope)
            gradient = torch.ops.aten.leaky_relu_backward(gradient, normed, float(slope), False)
        if mask is not None:
            keep(gradient, mask)
        weight = torch.full((values.shape[1],), ctx.scale)
        cases = zip(torch.split(gradient, 1), torch.split(as_image(values), 1), ctx.statistics, strict=True)
        back = [normalise_backward(share, case, weight, *both) for share, case, both in cases]
        joined = back[0] if len(back) == 1 else torch.cat(back)
        no_effect = None if shift is None else torch.zeros_like(shift)
        return like(joined, values), no_effect, below, None, None


class Mean(torch.autograd.Function):
    """Mean over windows of one or two voxels an axis, what is left over at the far ends aside.

    Sums of halves along one axis after the other: a fifth of the time of PyTorch's own.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, window: Sequence[int]) -> Tensor:
        rows = values.movedim(1, -1)  # (B, *S, C)
        for axis, width in enumerate(window, start=1):
            if width == 2:
                pairs = rows.narrow(axis, 0, rows.shape[axis] // 2 * 2).unflatten(axis, (-1, 2))  # type: ignore[no-untyped-call]
                rows = pairs.select(axis + 1, 0) + pairs.select(axis + 1, 1)
        ctx.window, ctx.size = window, values.shape[2:]
        return (rows / math.prod(window)).movedim(-1, 1)

    @staticmethod
    @in_own_type
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rows = (gradient / math.prod(ctx.window)).movedim(1, -1)
        back = rows.new_zeros(len(rows), *ctx.size, rows.shape[-1])
        near, share = back, rows
        for axis in range(len(ctx.window), 0, -1):
            count, width = rows.shape[axis], ctx.window[axis - 1]
            near = near.narrow(axis, 0, count * width).unflatten(axis, (count, width))
            share = share.unsqueeze(axis + 1)
        near.copy_(share)
        return back.movedim(-1, 1), None


class DenseBlock(torch.autograd.Function):
    """A dense block's channels, normalised and rectified once each, in one buffer."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factors: Tensor | None, *weights: Tensor) -> Tensor:
        """Take what `densenet.DenseBlock` takes, the layers' weights in turn, in the values' type."""
        squeezes, grows = weights[::2], weights[1::2]
        width = values.shape[1]
        buffer = _empty_channels_last(values, width + sum(len(grow) for grow in grows))
        rows = buffer.movedim(1, -1)  # (B, *S, all channels)
        saved = [_norm_relu_into(values, rows[..., :width])]
        kept = []
        for number, (squeeze, grow) in enumerate(zip(squeezes, grows, strict=True)):
            seen = rows[..., :width].flatten(0, -2)
            inner = (seen @ squeeze.flatten(1).t()).view(*rows.shape[:-1], -1).movedim(-1, 1)
            normed = _empty_channels_last(inner, inner.shape[1])
            statistics = _norm_relu_into(inner, normed.movedim(1, -1))
            grown = convolve(normed, grow)
            if factors is not None:
                grown.mul_(factors[number].view(*grown.shape[:2], *[1] * (grown.ndim - 2)))
            saved += [statistics, _norm_relu_into(grown, rows[..., width : width + len(grow)])]
            kept += [inner, normed, grown]
            width += len(grow)
        ctx.save_for_backward(values, buffer, factors, *weights, *kept)
        ctx.statistics = saved
        return buffer

    @staticmethod
    @in_own_type
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, buffer, factors, *rest = ctx.saved_tensors
        layers = len(rest) // 5
        weights, kept = rest[: 2 * layers], rest[2 * layers :]
        rows = buffer.movedim(1, -1)
        # The gradient of the whole buffer, to which each layer adds that of what it read.
        total = gradient.movedim(1, -1).clone(memory_format=torch.contiguous_format)
        back: list[Tensor] = []
        width = buffer.shape[1]
        for number in reversed(range(layers)):
            squeeze, grow = weights[2 * number : 2 * number + 2]
            inner, normed, grown = kept[3 * number : 3 * number + 3]
            read = width - len(grow)
            delta = _norm_relu_backward(
                total[..., read:width], rows[..., read:width], grown, ctx.statistics[2 * number + 2]
            )
            if factors is not None:
                delta.mul_(factors[number].view(*delta.shape[:2], *[1] * (delta.ndim - 2)))
            delta, grow_gradient = convolve_backward(delta, normed, grow)
            delta = _norm_relu_backward(
                delta.movedim(1, -1), normed.movedim(1, -1), inner, ctx.statistics[2 * number + 1]
            )
            flat, seen = delta.movedim(1, -1).flatten(0, -2), rows[..., :read].flatten(0, -2)
            back = [(flat.t() @ seen).view_as(squeeze), grow_gradient, *back]
            total.flatten(0, -2)[:, :read].addmm_(flat, squeeze.flatten(1))
            width = read
        first = _norm_relu_backward(total[..., :width], rows[..., :width], values, ctx.statistics[0])
        return first, None, *back


def _empty_channels_last(like: Tensor, channels: int) -> Tensor:
    shape = like.shape[0], *like.shape[2:], channels
    return like.new_empty(shape).movedim(-1, 1)


def _norm_relu_into(values: Tensor, out: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Write relu(instance norm(values)) to `out`, (B, *S, C); return each case's mean and 1 / deviation."""
    statistics = []
    for case, result in zip(torch.split(values, 1), out, strict=True):
        normed, mean, deviation = normalise(as_image(case), torch.ones(case.shape[1]))
        torch.clamp_min(normed.movedim(1, -1).reshape(-1, case.shape[1]), 0, out=result.flatten(0, -2))
        statistics.append((mean, deviation))
    return statistics


def _norm_relu_backward(
    gradient: Tensor, out: Tensor, values: Tensor, statistics: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Return the gradient with respect to values (B, C, *S); gradient and out are (B, *S, C)."""
    alive = torch.ops.aten.threshold_backward(gradient, out, 0).movedim(-1, 1)
    ones = torch.ones(values.shape[1])
    back = [
        normalise_backward(as_image(share), as_image(case), ones, mean, deviation)
        for share, case, (mean, deviation) in zip(
            torch.split(alive, 1), torch.split(values, 1), statistics, strict=True
        )
    ]
    return like(back[0] if len(back) == 1 else torch.cat(back), values)
