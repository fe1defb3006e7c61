"""The DenseNet on a CPU: a dense block in one buffer.

Each class computes what the plain class of its name does (`threefold.networks.densenet`): values lie
channels-last, a dense block keeps its channels in one buffer instead of a concatenation a layer, and the mean
of a transition comes before its convolution as sums of halves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threefold.networks import densenet
from threefold.networks.cpu import gradients3d, kernels
from threefold.networks.cpu.processor import applies, avoids_bfloat16
from threefold.networks.cpu.volumes import channels_last, pointwise


class DenseFeatures(densenet.DenseFeatures):
    """The stem's norm and ReLU are one step; a transition is sums and a matrix product."""

    def forward(self, image: Tensor) -> Tensor:
        """As the plain features; the blocks go the way of the whole."""
        if applies(image) or avoids_bfloat16(image):
            return self._fast(image)
        # Autocast's maximum is in float32, which the fast blocks would take up from a plain stem.
        with _plain(self.blocks):
            return super().forward(image)

    @channels_last
    def _fast(self, image: Tensor) -> Tensor:
        values = _stem(image, self.stem.weight)
        for block, transition in zip(self.blocks, [*self.transitions, None], strict=True):
            values = block(values)
            if transition is not None:
                values = _halve(values, transition.weight)
        return values


class DenseBlock(densenet.DenseBlock):
    """Normalises each channel once, into one buffer."""

    @channels_last
    def forward(self, values: Tensor) -> Tensor:
        """As the plain block, channels-last."""
        weights = []
        for layer in self:
            assert isinstance(layer, densenet.DenseLayer)
            weights += [
                kernels.cast_weight(conv.weight, values.dtype) for conv in (layer.squeeze, layer.grow)
            ]
        factors = None
        if self.training and self.dropout:
            drawn = [_channel_factors(len(values), len(grow), self.dropout) for grow in weights[1::2]]
            factors = torch.stack(drawn).to(values.dtype)
        block: Tensor = gradients3d.DenseBlock.apply(values, factors, *weights)  # type: ignore[no-untyped-call]
        return block


@contextmanager
def _plain(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Let fast blocks be plain within the context."""
    swapped: list[nn.Module] = [block for block in blocks if isinstance(block, DenseBlock)]
    for block in swapped:
        block.__class__ = densenet.DenseBlock
    try:
        yield
    finally:
        for block in swapped:
            block.__class__ = DenseBlock


def _stem(image: Tensor, weight: Tensor) -> Tensor:
    convolution, maximum = (F.conv3d, F.max_pool3d) if image.ndim == 5 else (F.conv2d, F.max_pool2d)
    values = convolution(image, kernels.cast_weight(weight, image.dtype), stride=2, padding=3)
    normed = gradients3d.InstanceNorm.apply(values, None, None, None, 1.0)  # type: ignore[no-untyped-call]
    return maximum(normed, 3, stride=2, padding=1)


def _halve(values: Tensor, weight: Tensor) -> Tensor:
    """As `densenet.halve`."""
    means = gradients3d.Mean.apply(values.float(), densenet.halving(values.shape[2:]))  # type: ignore[no-untyped-call]
    return pointwise(means.to(values.dtype), weight, None)


def _channel_factors(batch: int, growth: int, dropout: float) -> Tensor:
    """Draw (B, growth) zeros and 1 / (1 - dropout), as `torch.feature_dropout` does."""
    kept = torch.empty(batch, growth).bernoulli_(1 - dropout)
    return kept.div_(max(1 - dropout, torch.finfo(kept.dtype).tiny))
