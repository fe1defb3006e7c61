"""Levers for speed on CPUs of the networks of convolutions, which themselves know none of them.

Every function computes the plain formula of its docstring. Elsewhere than on a CPU, in float64, under
`torch.compile` or with THREEFOLD_PLAIN_KERNELS=1 it runs that formula as it stands; else:

- values lie channels-last in memory, and 1x1 convolutions are matrix products of oneDNN;
- norm, ReLU and dropout are one step, which keeps two tensors for the backward pass instead of five, and
  dropout costs 16 random bits a value;
- small convolutions of single cases stay with oneDNN, which PyTorch leaves for a slower way (`convolutions`);
- a bias in front of a norm, which has no effect, is left out (its gradient is exactly zero);
- a dense block normalises each channel once instead of once a layer, in one buffer instead of a
  concatenation a layer; the mean of a transition comes before its convolution;
- without gradients norms are folded into the convolutions, ReLU runs inside them, and their weights stay in
  oneDNN's own order from one call to the next (`folding3d`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from threefold.networks import convolutions, folding3d, gradients3d, kernels
from threefold.networks.norms3d import EPSILON, as_bits, keep_mask, layout


def pad(image: Tensor, size: Sequence[int]) -> Tensor:
    """Pad (B, C, *S) with zeros at the far ends to a size."""
    ends = [end for side, goal in zip(image.shape[2:], size, strict=True) for end in (goal - side, 0)]
    return F.pad(image, ends[::-1]) if any(ends) else image


def crop(values: Tensor, size: Sequence[int]) -> Tensor:
    """Return the near corner of size S of (B, C, *T)."""
    for axis, side in enumerate(size, start=2):
        values = values.narrow(axis, 0, side)
    return values


def as_channels_last(values: Tensor) -> Tensor:
    """Return (B, C, *S) as it is; the levers: in the type that is computed in, channels-last in memory."""
    if not kernels.has_levers(values):
        return values
    values = values.to(kernels.compute_type(values))
    if values.shape[1] > 1:
        return values.contiguous(memory_format=layout(values))
    # One channel is in either layout: say which is meant.
    values = values.contiguous()
    strides = list(values.stride())
    strides[1] = 1
    return values.as_strided(values.shape, strides)


def precision(values: Tensor) -> AbstractContextManager[None]:
    """Return the context to compute in: the levers keep the type that `as_channels_last` gave.

    Autocast would take some of their steps back to float32.
    """
    return kernels.full_precision() if kernels.has_levers(values) else nullcontext()


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the labels of (B, L, *S)."""
    return logits.softmax(dim=1)


def pool(values: Tensor) -> Tensor:
    """Return the mean over the voxels: (B, C, *S) to (B, C), float32 or float64."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.movedim(1, -1).flatten(1, -2).mean(1, dtype=dtype)


def project(values: Tensor, conv: _ConvNd) -> Tensor:
    """1x1 convolution: (B, C, *S) to (B, L, *S)."""
    if not kernels.has_levers(values):
        return _convolution(values, conv)
    return _pointwise(values, conv.weight, conv.bias)


def conv_norm_relu(values: Tensor, conv: _ConvNd, norm: _BatchNorm, dropout: float) -> Tensor:
    """relu(dropout(norm(conv(values)))); dropout and the batch's own statistics while the norm trains."""
    if kernels.has_levers(values):
        if not kernels.differentiating(values, *conv.parameters(), *norm.parameters()) and not norm.training:
            return folding3d.conv_norm_relu(values, conv, norm)
        if norm.training:
            convolved = _convolution(values, conv, bias=False)
            return _batch_norm(convolved, conv, norm, *_voxel_mask(convolved, dropout), relu=True)
    return F.relu(_dropout(norm(_convolution(values, conv)), dropout if norm.training else 0.0))


def attention_gate(
    coarse: Tensor, skip: Tensor, gate: tuple[Any, Any], entry: tuple[Any, Any], score: tuple[Any, Any]
) -> Tensor:
    """skip * sigmoid(score(relu(gate(coarse) + entry(skip)))).

    Args:
        coarse, skip: (B, C, *S).
        gate, entry, score: a 1x1 convolution and its batch norm each.
    """
    summed = F.relu(_pointwise_norm(coarse, *gate) + _pointwise_norm(skip, *entry))
    return skip * torch.sigmoid(_pointwise_norm(summed, *score))


def gated_merge(
    coarse: Tensor,
    skip: Tensor,
    gate: Sequence[tuple[Any, Any]],
    conv: _ConvNd,
    slope: Tensor,
    dropout: float,
) -> Tensor:
    """prelu(dropout(instance_norm(conv([attention_gate(coarse, skip), coarse])))).

    Args:
        coarse, skip: (B, C, *S).
        gate: what `attention_gate` takes: three 1x1 convolutions, each with its batch norm.
        conv: from 2 C to C channels.
        slope: of PReLU.
        dropout: 0 outside training.
    """
    parameters = [p for layers in gate for layer in layers for p in layer.parameters()]
    training = gate[0][1].training
    wanted = kernels.differentiating(coarse, skip, slope, *conv.parameters(), *parameters)
    if kernels.has_levers(coarse) and not training and not wanted:
        return folding3d.gated_merge(coarse, skip, gate, conv, slope)
    joined = torch.cat((attention_gate(coarse, skip, *gate), coarse), dim=1)
    if not kernels.has_levers(coarse):
        normed = F.instance_norm(_convolution(joined, conv), eps=EPSILON)
        return F.prelu(_dropout(normed, dropout), slope)
    merged = _convolution(joined, conv, bias=False)
    mask, scale = _voxel_mask(merged, dropout)
    return gradients3d.InstanceNorm.apply(merged, conv.bias, slope, mask, scale)  # type: ignore[no-any-return, no-untyped-call]


def dense_stem(image: Tensor, weight: Tensor) -> Tensor:
    """7x7 convolution of stride 2, instance norm, ReLU, 3x3 maximum of stride 2."""
    convolution, maximum = (F.conv3d, F.max_pool3d) if image.ndim == 5 else (F.conv2d, F.max_pool2d)
    if not kernels.has_levers(image):
        values = convolution(image, weight, stride=2, padding=3)
        return maximum(F.relu(F.instance_norm(values, eps=EPSILON)), 3, stride=2, padding=1)
    values = convolution(image, kernels.cast_weight(weight, image.dtype), stride=2, padding=3)
    normed = gradients3d.InstanceNorm.apply(values, None, None, None, 1.0)  # type: ignore[no-untyped-call]
    return maximum(normed, 3, stride=2, padding=1)


def dense_block(values: Tensor, layers: Sequence[tuple[Tensor, Tensor]], dropout: float) -> Tensor:
    """relu(instance_norm(x)) of x = all channels of a dense block.

    Args:
        values: (B, C, *S).
        layers: weights of each layer's 1x1 and 3x3 convolution.
        dropout: probability that a new channel is dropped; 0 outside training.

    Returns:
        (B, C + layers * growth, *S).
    """
    factors = [_channel_factors(len(values), grow, dropout) for _, grow in layers] if dropout else None
    if kernels.has_levers(values):
        weights = [kernels.cast_weight(weight, values.dtype) for layer in layers for weight in layer]
        scales = None if factors is None else torch.stack(factors).to(values.dtype)
        block: Tensor = gradients3d.DenseBlock.apply(values, scales, *weights)  # type: ignore[no-untyped-call]
        return block
    convolution = F.conv3d if values.ndim == 5 else F.conv2d
    normed = F.relu(F.instance_norm(values, eps=EPSILON))
    for number, (squeeze, grow) in enumerate(layers):
        inner = F.relu(F.instance_norm(convolution(normed, squeeze), eps=EPSILON))
        grown = convolution(inner, grow, padding=1)
        if factors is not None:
            factor = factors[number].to(grown)
            grown = grown * factor.view(*factor.shape, *[1] * (grown.ndim - 2))
        # A channel's norm is its own, so each is normalised once for all layers that read it.
        normed = torch.cat((normed, F.relu(F.instance_norm(grown, eps=EPSILON))), dim=1)
    return normed


def dense_transition(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over 2x2 voxels, unless a single voxel would be left, then a 1x1 convolution.

    The order doesn't matter, and this one costs an eighth. An axis of one voxel is kept.
    """
    convolution, mean = (F.conv3d, F.avg_pool3d) if values.ndim == 5 else (F.conv2d, F.avg_pool2d)
    size = values.shape[2:]
    window = tuple(min(side, 2) for side in size) if max(size) > 3 else (1,) * len(size)
    half = values.device.type == "cpu" and values.dtype in (torch.bfloat16, torch.float16)
    exact = values.float() if half else values  # PyTorch has this mean on CPUs in full precision only
    if kernels.has_levers(values):
        means = gradients3d.Mean.apply(exact, window)  # type: ignore[no-untyped-call]
        return _pointwise(means.to(values.dtype), weight, None)
    return convolution(mean(exact, window).to(values.dtype), weight)


def _convolution(values: Tensor, conv: _ConvNd, *, bias: bool = True) -> Tensor:
    """Apply a convolution, plain or transposed, with or without its bias."""
    weight, shift = conv.weight, conv.bias if bias else None
    assert not isinstance(conv.padding, str)
    if kernels.has_levers(values):
        weight = weight.to(values.dtype)
        shift = None if shift is None else shift.to(values.dtype)
        small = convolutions.gains(values, conv.stride[0], transposed=conv.transposed)
        if small and conv.padding[0] == 1:
            return convolutions.Convolution.apply(values, weight, shift, conv.stride[0], conv.transposed)  # type: ignore[no-any-return, no-untyped-call]
    if conv.transposed:
        up = F.conv_transpose3d if values.ndim == 5 else F.conv_transpose2d
        return up(values, weight, shift, conv.stride, conv.padding, conv.output_padding)
    down = F.conv3d if values.ndim == 5 else F.conv2d
    return down(values, weight, shift, conv.stride, conv.padding)


def _pointwise(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1x1 convolution of channels-last values as a matrix product."""
    voxels = values.movedim(1, -1)
    product = kernels.linear(voxels.flatten(1, -2), weight.flatten(1), bias)  # (B, voxels, E)
    return product.view(*voxels.shape[:-1], -1).movedim(-1, 1)


def _pointwise_norm(values: Tensor, conv: _ConvNd, norm: _BatchNorm) -> Tensor:
    """1x1 convolution and batch norm."""
    if not kernels.has_levers(values) or not norm.training:
        return norm(_convolution(values, conv))  # type: ignore[no-any-return]
    return _batch_norm(_pointwise(values, conv.weight, None), conv, norm, None, 1.0, relu=False)


def _batch_norm(
    values: Tensor, conv: _ConvNd, norm: _BatchNorm, mask: Tensor | None, scale: float, *, relu: bool
) -> Tensor:
    """Batch norm, in training, of what the convolution gave without its bias."""
    return gradients3d.BatchNorm.apply(  # type: ignore[no-any-return, no-untyped-call]
        values, conv.bias, norm, norm.weight, norm.bias, mask, scale, relu
    )


def _dropout(values: Tensor, dropout: float) -> Tensor:
    """Dropout of the plain formulas; on CPUs with the levers' own draws."""
    if not dropout or values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(values, dropout)
    kept, scale = keep_mask(values.numel(), dropout)
    return values * kept.view(values.movedim(1, -1).shape).movedim(-1, 1) * scale


def _voxel_mask(values: Tensor, dropout: float) -> tuple[Tensor | None, float]:
    """Draw which of the values are kept, and what they are multiplied by."""
    if not dropout:
        return None, 1.0
    kept, scale = keep_mask(values.numel(), dropout)
    return as_bits(kept, values.dtype), scale


def _channel_factors(batch: int, grow: Tensor, dropout: float) -> Tensor:
    """Draw (B, growth) zeros and 1 / (1 - dropout)."""
    kept = torch.empty(batch, len(grow), device=grow.device).bernoulli_(1 - dropout)
    return kept.div_(max(1 - dropout, torch.finfo(kept.dtype).tiny))
