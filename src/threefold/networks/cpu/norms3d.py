"""Channels-last values: their views, their norms, and what dropout keeps of them.

`image` means the view (B, C, H, W), whatever the number of axes: PyTorch's norms are fast on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threefold.networks.cpu.gradients import chunk_rows

EPSILON = 1e-5  # of instance norm
_INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_EXACT = 16384  # values up to which PyTorch's statistics of channels-last values are exact enough


def layout(values: Tensor) -> torch.memory_format:
    """Return the channels-last layout of as many axes."""
    return torch.channels_last_3d if values.ndim == 5 else torch.channels_last


def as_image(values: Tensor) -> Tensor:
    """View (B, C, *S) as (B, C, H, W), channels-last; a copy where they do not lie so in memory."""
    batch, channels, *size = values.shape
    return _view(values, (batch, channels, math.prod(size[:-1]), size[-1]))


def like(image: Tensor, values: Tensor) -> Tensor:
    """View (B, C, H, W) in the shape of the values that it is an image of."""
    return _view(image, tuple(values.shape))


def _view(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View values as (B, C, *S), channels-last.

    The strides are written out: PyTorch's own views of a single case have a stride of the batch by which its
    convolutions and norms no longer see the layout, and copy.
    """
    _, channels, *size = shape
    strides = [channels * math.prod(size[axis + 1 :]) for axis in range(len(size))]
    rows = values.movedim(1, -1).contiguous()
    return rows.as_strided(shape, (channels * math.prod(size), 1, *strides))


def normalise(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    running: tuple[Tensor | None, Tensor | None, float] = (None, None, 0.0),
    epsilon: float = EPSILON,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight * (image - mean) / deviation + bias, the mean and 1 / deviation, over batch and voxels.

    Args:
        image: (B, C, H, W), channels-last.
        weight: (C,) float32, and so are the statistics then.
        bias: (C,), or None for 0.
        running: mean and variance that move towards the image's, and by which share.
        epsilon: is added to the variance.
    """
    count = image.numel() // image.shape[1]
    running_mean, running_variance, share = running
    if image.dtype != torch.float32 or count <= _EXACT:
        normed: tuple[Tensor, Tensor, Tensor] = torch.native_batch_norm(
            image, weight, bias, running_mean, running_variance, True, share, epsilon
        )
        return normed
    mean, variance = _moments(image.movedim(1, -1).flatten(0, -2))
    if running_mean is not None and running_variance is not None:
        running_mean.lerp_(mean, share)
        running_variance.lerp_(variance * (count / (count - 1)), share)
    out: Tensor = torch.native_batch_norm(image, weight, bias, mean, variance, False, 0.0, epsilon)[0]
    return out, mean, torch.rsqrt(variance + epsilon)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each column of many rows.

    PyTorch's norm adds up channels-last values one after the other, which is 1e-4 off for 64^3 of them.
    """
    mean = rows.mean(0)
    squares = torch.zeros_like(mean)
    for chunk in torch.split(rows, chunk_rows(4 * rows.shape[1])):
        squares += torch.sub(chunk, mean).square_().sum(0)
    return mean, squares / len(rows)


def normalise_backward(
    gradient: Tensor, image: Tensor, weight: Tensor, mean: Tensor, deviation: Tensor
) -> Tensor:
    """Return the gradient of `normalise` with respect to the image; mean and deviation are what it gave."""
    back: Tensor = torch.ops.aten.native_batch_norm_backward(
        gradient, image, weight, None, None, mean, deviation, True, EPSILON, [True, False, False]
    )[0]
    return back


def keep_mask(count: int, dropout: float) -> tuple[Tensor, float]:
    """Draw what dropout keeps, from 16 random bits a value (`bernoulli_` takes 5 to 10 times as long).

    Args:
        count: number of values.
        dropout: probability that a value is dropped, rounded to 1 / 65536.

    Returns:
        (count,) bool, and what the kept values are multiplied by.
    """
    dropped = min(round(dropout * 65536), 65535)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return words[:count] >= dropped - 32768, 65536 / (65536 - dropped)


def keep(image: Tensor, mask: Tensor) -> None:
    """Set what `mask` drops to zero, in place.

    Args:
        image: (B, C, H, W), channels-last.
        mask: (B * H * W * C,) integers as wide as the image's values, 0 or -1.
    """
    rows = image.movedim(1, -1)
    rows.view(mask.dtype).bitwise_and_(mask.view(rows.shape))


def as_bits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask of bools into one for `keep`."""
    return mask.to(_INTEGER[dtype]).neg_()
