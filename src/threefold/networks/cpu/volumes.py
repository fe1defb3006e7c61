"""Convolutions of channels-last values, for the fast paths of the networks of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from threefold.networks.cpu import convolutions, gradients3d, kernels
from threefold.networks.cpu.norms3d import as_bits, keep_mask, layout
from threefold.networks.cpu.processor import applies, compute_type, full_precision, precision


def channels_last(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a forward pass its values channels-last, in the type that is computed in, without autocast.

    Autocast would take some of its steps back to float32. Values that the fast paths do not apply to go to
    the plain class's forward pass.
    """

    @wraps(forward)
    def run(self: Any, *values: Tensor) -> Tensor:
        with precision(values[0]):
            if not applies(values[0]):
                plain: Tensor = super(type(self), self).forward(*values)
                return plain
            laid = [as_channels_last(each) for each in values]
            with full_precision():
                return forward(self, *laid)

    return run


def as_channels_last(values: Tensor) -> Tensor:
    """Return (B, C, *S) in the type that is computed in, channels-last in memory."""
    values = values.to(compute_type(values))
    if values.shape[1] > 1:
        return values.contiguous(memory_format=layout(values))
    # One channel is in either layout: say which is meant.
    values = values.contiguous()
    strides = list(values.stride())
    strides[1] = 1
    return values.as_strided(values.shape, strides)


def convolution(values: Tensor, conv: _ConvNd, *, bias: bool = True) -> Tensor:
    """Apply a convolution, plain or transposed, with or without its bias."""
    weight = conv.weight.to(values.dtype)
    shift = conv.bias.to(values.dtype) if bias and conv.bias is not None else None
    assert not isinstance(conv.padding, str)
    small = convolutions.gains(values, conv.stride[0], transposed=conv.transposed)
    if small and conv.padding[0] == 1:
        return convolutions.Convolution.apply(values, weight, shift, conv.stride[0], conv.transposed)  # type: ignore[no-any-return, no-untyped-call]
    if conv.transposed:
        up = F.conv_transpose3d if values.ndim == 5 else F.conv_transpose2d
        return up(values, weight, shift, conv.stride, conv.padding, conv.output_padding)
    down = F.conv3d if values.ndim == 5 else F.conv2d
    return down(values, weight, shift, conv.stride, conv.padding)


def pointwise(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1x1 convolution as a matrix product: (B, C, *S) to (B, E, *S)."""
    voxels = values.movedim(1, -1)
    product = kernels.linear(voxels.flatten(1, -2), weight.flatten(1), bias)  # (B, voxels, E)
    return product.view(*voxels.shape[:-1], -1).movedim(-1, 1)


def batch_norm(
    values: Tensor, conv: _ConvNd, norm: _BatchNorm, mask: Tensor | None, scale: float, *, relu: bool
) -> Tensor:
    """Batch norm, in training, of what the convolution gave without its bias."""
    return gradients3d.BatchNorm.apply(  # type: ignore[no-any-return, no-untyped-call]
        values, conv.bias, norm, norm.weight, norm.bias, mask, scale, relu
    )


def voxel_mask(values: Tensor, dropout: float) -> tuple[Tensor | None, float]:
    """Draw which of the values dropout keeps, and what they are multiplied by."""
    if not dropout:
        return None, 1.0
    kept, scale = keep_mask(values.numel(), dropout)
    return as_bits(kept, values.dtype), scale
