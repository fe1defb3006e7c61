"""The formulas of the networks of convolutions, each in one place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-5  # of instance norm


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
    """Return (B, C, *S), in memory as (B, *S, C) where that is faster."""
    return values


def pool(values: Tensor) -> Tensor:
    """Return the mean over the voxels: (B, C, *S) to (B, C)."""
    return values.flatten(2).mean(2)


def project(values: Tensor, conv: nn.Module) -> Tensor:
    """Apply a 1x1 convolution."""
    projected: Tensor = conv(values)
    return projected


def conv_norm_relu(values: Tensor, conv: nn.Module, norm: nn.Module, dropout: float) -> Tensor:
    """Return relu(dropout(norm(conv(values)))), dropout while the norm is in training."""
    return F.relu(F.dropout(norm(conv(values)), dropout, norm.training))


def attention_gate(
    coarse: Tensor, skip: Tensor, gate: nn.ModuleDict, entry: nn.ModuleDict, score: nn.ModuleDict
) -> Tensor:
    """Return skip * sigmoid(score(relu(gate(coarse) + entry(skip)))), each a 1x1 convolution and a norm."""
    summed = gate["norm"](gate["conv"](coarse)) + entry["norm"](entry["conv"](skip))
    gated: Tensor = skip * torch.sigmoid(score["norm"](score["conv"](F.relu(summed))))
    return gated


def merge(
    gated: Tensor, coarse: Tensor, conv: nn.Module, slope: Tensor, dropout: float, training: bool
) -> Tensor:
    """Return prelu(dropout(instance_norm(conv([gated, coarse]))))."""
    normed = F.instance_norm(conv(torch.cat((gated, coarse), dim=1)), eps=_EPSILON)
    return F.prelu(F.dropout(normed, dropout, training), slope)


def dense_stem(image: Tensor, weight: Tensor) -> Tensor:
    """7x7 convolution of stride 2, instance norm, ReLU, 3x3 maximum of stride 2."""
    convolution, maximum = (F.conv3d, F.max_pool3d) if image.ndim == 5 else (F.conv2d, F.max_pool2d)
    values = F.relu(F.instance_norm(convolution(image, weight, stride=2, padding=3), eps=_EPSILON))
    return maximum(values, 3, stride=2, padding=1)


def dense_block(values: Tensor, layers: Sequence[tuple[Tensor, Tensor]], dropout: float) -> Tensor:
    """Return relu(instance_norm(x)) of x = all channels of a dense block.

    Args:
        values: (B, C, *S).
        layers: weights of each layer's 1x1 and 3x3 convolution.
        dropout: probability that a new channel is dropped.

    Returns:
        (B, C + layers * growth, *S).
    """
    convolution = F.conv3d if values.ndim == 5 else F.conv2d
    normed = F.relu(F.instance_norm(values, eps=_EPSILON))
    for squeeze, grow in layers:
        inner = F.relu(F.instance_norm(convolution(normed, squeeze), eps=_EPSILON))
        grown = convolution(inner, grow, padding=1)
        if dropout:
            kept = torch.empty(grown.shape[:2]).bernoulli_(1 - dropout).div_(1 - dropout)
            grown = grown * kept.to(grown).view(*grown.shape[:2], *[1] * (grown.ndim - 2))
        # A channel's norm is its own, so each is normalised once for all layers that read it.
        normed = torch.cat((normed, F.relu(F.instance_norm(grown, eps=_EPSILON))), dim=1)
    return normed


def dense_transition(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over 2x2 voxels, unless a single voxel would be left, then a 1x1 convolution.

    The order doesn't matter, and this one costs an eighth. An axis of one voxel is kept.
    """
    convolution, mean = (F.conv3d, F.avg_pool3d) if values.ndim == 5 else (F.conv2d, F.avg_pool2d)
    size = values.shape[2:]
    if max(size) > 3:
        values = mean(values, tuple(min(side, 2) for side in size))
    return convolution(values, weight)
