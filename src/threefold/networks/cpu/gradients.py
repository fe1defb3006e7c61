"""Forward and backward passes of the Swin networks' fast paths, where PyTorch's own cost more time or memory.

`kernels` decides when they run and says what they compute; here are the formulas' gradients.
"""

# ruff: noqa: D102 (forward and backward are those of torch.autograd.Function)

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from threefold.networks.cpu import processor

P = ParamSpec("P")
T = TypeVar("T")

_CHUNK_VALUES = 1 << 19  # float32 values of an intermediate chunk: 2 MB, about a core's L2 cache


def in_own_type(backward: Callable[P, T]) -> Callable[P, T]:
    """Run a backward pass in the type of its tensors, inside of autocast as well.

    Autocast would multiply in bfloat16 there what went forward in float32.
    """

    @wraps(backward)
    def unchanged(*arguments: P.args, **options: P.kwargs) -> T:
        with torch.autocast("cpu", enabled=False):
            return backward(*arguments, **options)

    return unchanged


class MoveTokens(torch.autograd.Function):
    """values[:, take], a gather whose gradient is a gather too.

    PyTorch's own is a scatter-add, many times slower. Values are (B, S, C); `take` (T,) is the slot that each
    new slot takes, `give` (S,) the new slot that holds each old one, where its gradient is, `blank` the old
    slots that no one looks at (padding), whose gradient is zero. The gradient of a new slot that is not in
    `give` is dropped: such a slot must be unseen.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, take: Tensor, give: Tensor, blank: Tensor | None) -> Tensor:
        ctx.save_for_backward(give, *(() if blank is None else (blank,)))
        return values.index_select(1, take)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        give, *blank = ctx.saved_tensors
        moved = gradient.index_select(1, give)
        if blank:
            moved = moved.index_fill(1, blank[0], 0)
        return moved, None, None, None


class Linear(torch.autograd.Function):
    """values @ weight^T + bias."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.has_bias = bias is not None
        return product(values, weight, bias)

    @staticmethod
    @in_own_type
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        values, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        rows = gradient.flatten(0, -2)
        return (
            _input_gradient(gradient, weight) if ctx.needs_input_grad[0] else None,
            _weight_gradient(rows, values.flatten(0, -2)) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None,
        )


class Mlp(torch.autograd.Function):
    """Linear, GELU, linear: keeps the hidden values before GELU only, and computes GELU anew."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        hidden = product(values, weight1, bias1)
        out = torch.empty_like(values)
        pairs = zip(
            *(torch.split(t.flatten(0, -2), chunk_rows(weight1.shape[0])) for t in (hidden, out)), strict=True
        )
        for chunk, result in pairs:
            result.copy_(product(F.gelu(chunk), weight2, bias2))
        ctx.save_for_backward(values, hidden, weight1, weight2)
        return out

    @staticmethod
    @in_own_type
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        values, hidden, weight1, weight2 = ctx.saved_tensors
        gradient, inputs, before = (t.flatten(0, -2) for t in (gradient.contiguous(), values, hidden))
        weight2_gradient = _weight_gradient(gradient, F.gelu(before))
        delta = torch.ops.aten.gelu_backward(_input_gradient(gradient, weight2), before)
        return (
            _input_gradient(delta, weight1).view_as(values),
            _weight_gradient(delta, inputs),
            delta.sum(0),
            weight2_gradient,
            gradient.sum(0),
        )


class WindowAttention(torch.autograd.Function):
    """Attention that copies the queries, keys and values once, and scales, adds and multiplies in place."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor) -> Tensor:
        batch, windows, tokens, _, heads, depth = qkv.shape
        packed = qkv.permute(3, 0, 1, 4, 2, 5).reshape(3, -1, tokens, depth)  # (3, B * windows * heads, N, d)
        scores = torch.bmm(packed[0], packed[1].transpose(1, 2))
        ranked = scores.view(batch, windows, heads, tokens, tokens)
        torch.add(bias, ranked, alpha=depth**-0.5, out=ranked)
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(packed, weights)
        ctx.shapes = qkv.shape, bias.shape
        gathered = torch.bmm(weights, packed[2]).view(batch, windows, heads, tokens, depth)
        return gathered.transpose(2, 3).contiguous()  # (B, windows, N, heads, d)

    @staticmethod
    @in_own_type
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        packed, weights = ctx.saved_tensors
        (batch, windows, tokens, _, heads, depth), bias_shape = ctx.shapes
        gradient = gradient.transpose(2, 3).reshape(-1, tokens, depth)  # (B * windows * heads, N, d)
        back = torch.empty_like(packed)
        torch.bmm(weights.transpose(1, 2), gradient, out=back[2])
        scores = torch.bmm(gradient, packed[2].transpose(1, 2))
        scores = torch.ops.aten._softmax_backward_data(scores, weights, -1, weights.dtype)
        scale = depth**-0.5
        torch.baddbmm(back[0], scores, packed[1], beta=0, alpha=scale, out=back[0])
        torch.baddbmm(back[1], scores.transpose(1, 2), packed[0], beta=0, alpha=scale, out=back[1])
        summed = scores.view(-1, *bias_shape).sum(0, dtype=torch.float32).to(scores.dtype)
        qkv = back.view(3, batch, windows, heads, tokens, depth).permute(1, 2, 4, 0, 3, 5)
        return qkv.contiguous(), summed  # (B, windows, N, 3, heads, d), (1 or windows, heads, N, N)


class PartVariance(torch.autograd.Function):
    """Mean square of each of P parts of rows @ weight^T, in chunks of rows; computed anew going back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, parts: int) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.parts = parts
        variance = rows.new_empty((rows.shape[0], parts), dtype=torch.float32)
        step, width = chunk_rows(weight.shape[0]), weight.shape[0] // parts
        for chunk, result in zip(torch.split(rows, step), torch.split(variance, step), strict=True):
            spread = product(chunk, weight, None).view(len(chunk), parts, width)
            torch.linalg.vector_norm(spread, dim=-1, dtype=torch.float32, out=result)
        return variance.square_().div_(width)

    @staticmethod
    @in_own_type
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight = ctx.saved_tensors
        scale = (gradient * (2 * ctx.parts / weight.shape[0])).to(rows.dtype)[:, :, None]  # (R, P, 1)
        if processor.onednn_multiplies(rows.dtype):
            return *_part_gradients(rows, weight, scale), None
        return *_part_gradients_by_gram(rows, weight, scale), None


def _part_gradients(rows: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_p s_p (W_p x) W_p for each row x, and the sum over rows of s_p (W_p x) x^T, part by part.

    Args:
        rows: (R, D).
        weight: (P * C, D).
        scale: (R, P, 1).

    Returns:
        (R, D) and (P * C, D).
    """
    back, total = torch.empty_like(rows), torch.zeros(weight.shape, dtype=torch.float32)
    step = 4 * chunk_rows(weight.shape[0])
    chunks = (torch.split(tensor, step) for tensor in (rows, scale, back))
    for chunk, factor, result in zip(*chunks, strict=True):
        spread = product(chunk, weight, None)
        spread.view(*factor.shape[:2], weight.shape[0] // factor.shape[1]).mul_(factor)
        result.copy_(_input_gradient(spread, weight))
        total += _weight_gradient(spread, chunk)
    return back, total.to(weight.dtype)


def _part_gradients_by_gram(rows: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the same by two instead of three large products, with W_p^T W_p (D, D) made once.

    That is a fifth less time where products are what takes it.
    """
    parts, width = scale.shape[1], rows.shape[1]
    part = weight.view(parts, -1, width)
    gram = torch.bmm(part.transpose(1, 2), part).transpose(0, 1).reshape(width, -1)  # (D, P * D)
    back, total = torch.empty_like(rows), rows.new_zeros(parts * width, width)
    step = chunk_rows(weight.shape[0])
    chunks = (torch.split(tensor, step) for tensor in (rows, scale, back))
    for chunk, factor, result in zip(*chunks, strict=True):
        image = (chunk @ gram).view(-1, parts, width)
        torch.bmm(factor.transpose(1, 2), image, out=result[:, None])
        total.addmm_((factor * chunk[:, None]).flatten(1).t(), chunk)  # sum of s_p x x^T
    return back, torch.bmm(part, total.view(parts, width, width)).view_as(weight)


def product(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return values @ weight^T + bias: (..., D), (E, D), (E,) to (..., E). It has no gradient of its own."""
    if not processor.onednn_multiplies(values.dtype):
        return F.linear(values, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return result


def product_sum(values: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """Return values @ weight^T + bias + residual; it has no gradient of its own."""
    if processor.onednn_multiplies(values.dtype):
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(values, residual, weight, bias, "add")
        return total
    return F.linear(values, weight, bias).add_(residual)


def _input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """gradient @ weight; in bfloat16 the plain product is oneDNN's already."""
    if gradient.dtype == torch.bfloat16 or not processor.onednn_multiplies(gradient.dtype):
        return gradient @ weight
    return product(gradient, weight.t(), None)


def _weight_gradient(gradient: Tensor, values: Tensor) -> Tensor:
    """gradient^T @ values: (E, D) from (R, E) and (R, D).

    In float32 the narrow operand first is up to 1.5 times faster (more on some machines); it leaves a
    transposed result, whose copy is only worth it where the rows are many.
    """
    rows, outputs = gradient.shape
    if gradient.dtype == torch.float32 and outputs > values.shape[1] and rows > 8 * outputs:
        return (values.t() @ gradient).t()
    return gradient.t() @ values


def chunk_rows(width: int) -> int:
    """Return how many rows of an intermediate tensor of a width are computed at once."""
    return max(_CHUNK_VALUES // width, 64)
