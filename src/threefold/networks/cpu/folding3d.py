"""Evaluation without gradients: norms folded into convolutions, weights kept in oneDNN's own order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from threefold.networks.cpu.gradients import chunk_rows, product, product_sum
from threefold.networks.cpu.norms3d import as_image, like, normalise

_folded: WeakIdKeyDictionary = WeakIdKeyDictionary()
# Fused optimisers change weights without counting it in the tensors' versions.
register_optimizer_step_post_hook(lambda *_: _folded.clear())


def conv_norm_relu(values: Tensor, conv: _ConvNd, norm: _BatchNorm) -> Tensor:
    """relu(norm(conv(values))) with the norm's running statistics."""
    weight, bias = _kept(conv, norm, values, lambda: _packed(values, conv, *_fold(conv, norm, values.dtype)))
    result: Tensor
    if conv.transposed:
        result = torch.ops.mkldnn._convolution_transpose_pointwise(
            values, weight, bias, conv.padding, conv.output_padding, conv.stride, conv.dilation, 1, "relu",
            [], "",
        )  # fmt: skip
    else:
        result = torch.ops.mkldnn._convolution_pointwise(
            values, weight, bias, conv.padding, conv.stride, conv.dilation, 1, "relu", [], ""
        )
    return result


def gated_merge(
    coarse: Tensor, skip: Tensor, gate: Sequence[tuple[Any, Any]], conv: _ConvNd, slope: Tensor
) -> Tensor:
    """prelu(instance_norm(conv([attention_gate(coarse, skip), coarse]))).

    Args:
        coarse, skip: (B, C, *S).
        gate: the 1x1 convolutions of coarse, skip and score, each with its batch norm.
        conv: from 2 C to C channels.
        slope: of PReLU.
    """
    (gate_weight, gate_bias), (entry_weight, entry_bias), (score_weight, score_bias) = (
        _kept(one, norm, coarse, lambda one=one, norm=norm: _matrix(*_fold(one, norm, coarse.dtype)))  # type: ignore[misc]
        for one, norm in gate
    )
    above, below = _rows(coarse), _rows(skip)
    width = above.shape[1]
    joined = above.new_empty(len(above), 2 * width)
    bias = gate_bias + entry_bias
    step = chunk_rows(2 * width)
    for up, entry, both in zip(*(torch.split(rows, step) for rows in (above, below, joined)), strict=True):
        summed = product_sum(entry, entry_weight, bias, product(up, gate_weight, None)).clamp_min_(0)
        torch.mul(entry, product(summed, score_weight, score_bias).sigmoid_(), out=both[:, :width])
        both[:, width:].copy_(up)
    values = joined.view(*coarse.movedim(1, -1).shape[:-1], 2 * width).movedim(-1, 1)
    weight, _ = _kept(conv, None, values, lambda: _packed(values, conv, conv.weight.to(values.dtype), None))
    merged = torch.ops.mkldnn._convolution_pointwise(
        values, weight, None, conv.padding, conv.stride, conv.dilation, 1, "none", [], ""
    )
    ones = torch.ones(width)
    cases = [normalise(case, ones)[0] for case in torch.split(as_image(merged), 1)]
    normed = cases[0] if len(cases) == 1 else torch.cat(cases)
    return like(F.leaky_relu_(normed, float(slope)), merged)


def _fold(conv: _ConvNd, norm: _BatchNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that norm(conv(.)) is."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    assert conv.bias is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    outputs = [1, -1] if conv.transposed else [-1, 1]
    weight = conv.weight * scale.view(*outputs, *[1] * (conv.weight.ndim - 2))
    bias = (conv.bias - norm.running_mean) * scale + norm.bias
    return weight.to(dtype), bias.to(dtype)


def _packed(
    values: Tensor, conv: _ConvNd, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Bring a weight into the order that oneDNN wants for these values."""
    size = list(values.shape)
    if conv.transposed:
        packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            weight, conv.padding, conv.output_padding, conv.stride, conv.dilation, 1, size
        )
    else:
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight, conv.padding, conv.stride, conv.dilation, 1, size
        )
    return packed, bias


def _matrix(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight.flatten(1), bias


def _rows(values: Tensor) -> Tensor:
    """View (B, C, *S), channels-last, as (B * voxels, C)."""
    return values.movedim(1, -1).reshape(-1, values.shape[1])


def _kept(
    conv: _ConvNd, norm: _BatchNorm | None, values: Tensor, make: Callable[[], tuple[Tensor, Tensor | None]]
) -> Any:
    """Return what `make` makes, kept until a weight or the values' type or size changes.

    Changes of weights are seen as `kernels.cast_weight` sees them.
    """
    modules = (conv,) if norm is None else (conv, norm)
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    state = (values.dtype, values.shape, *((t.data_ptr(), t._version) for t in tensors))
    kept = _folded.get(conv.weight)  # type: ignore[no-untyped-call]
    if kept is None or kept[0] != state:
        kept = _folded[conv.weight] = (state, make())
    return kept[1]
