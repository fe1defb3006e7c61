"""DenseNet (Huang et al. 2017, arXiv 1608.06993) with instance norm: the classifier of arXiv 2311.07234.

Equal to MONAI's DenseNet121 with norm="instance" (no learned scale or shift), which the paper's
implementation uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threefold.core.outputs import Head, Outputs
from threefold.experiment import DenseNetSpec
from threefold.networks.cam import CamLayer
from threefold.networks.grids import pad, pool
from threefold.networks.heads import apply_pooled, first_of, pooled_head

_CONV: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_SMALLEST = 8  # voxels of an axis
_BOTTLENECK = 4  # channels of a layer's 1x1 convolution, in units of the growth


class DenseLayer(nn.Module):
    """1x1 convolution, norm, ReLU, 3x3 convolution: new channels from all that came before."""

    def __init__(self, dimensions: int, width: int, growth: int) -> None:
        super().__init__()
        inner = _BOTTLENECK * growth
        self.squeeze = _CONV[dimensions](width, inner, 1, bias=False)
        self.grow = _CONV[dimensions](inner, growth, 3, padding=1, bias=False)

    def forward(self, normed: Tensor) -> Tensor:
        """(B, C, *S) channels, normalised and rectified, to (B, growth, *S) new ones."""
        grown: Tensor = self.grow(norm_relu(self.squeeze(normed)))
        return grown


class DenseBlock(nn.ModuleList):
    """Layers that each see the channels of all before them; then the norm and ReLU that follow a block."""

    def __init__(self, dimensions: int, width: int, layers: int, growth: int, dropout: float) -> None:
        super().__init__(DenseLayer(dimensions, width + i * growth, growth) for i in range(layers))
        self.dropout = dropout

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, *S) to (B, C + layers * growth, *S), instance-normalised and rectified."""
        normed = norm_relu(values)
        for layer in self:
            grown = torch.feature_dropout(layer(normed), self.dropout, self.training)
            # A channel's norm is its own, so each is normalised once for all layers that read it.
            normed = torch.cat((normed, norm_relu(grown)), dim=1)
        return normed


class DenseFeatures(nn.Module):
    """Everything before the pooling: stem, dense blocks, transitions, last norm and ReLU."""

    def __init__(self, spec: DenseNetSpec, in_channels: int, dimensions: int) -> None:
        super().__init__()
        conv, width = _CONV[dimensions], spec.stem
        self.stem = conv(in_channels, width, 7, stride=2, padding=3, bias=False)
        blocks, transitions = [], []
        for number, layers in enumerate(spec.blocks, start=1):
            blocks.append(DenseBlock(dimensions, width, layers, spec.growth, spec.dropout))
            width += layers * spec.growth
            if number < len(spec.blocks):
                transitions.append(conv(width, width // 2, 1, bias=False))
                width //= 2
        self.blocks = nn.ModuleList(blocks)
        self.transitions = nn.ModuleList(transitions)
        self.width = width

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) image to (B, width, *S / 32) features, rounded up."""
        values = norm_relu(self.stem(image))
        maximum = F.max_pool3d if image.ndim == 5 else F.max_pool2d
        values = maximum(values, 3, stride=2, padding=1)
        for block, transition in zip(self.blocks, [*self.transitions, None], strict=True):
            values = block(values)
            if transition is not None:
                values = transition(halve(values))
        return values


class DenseNet(nn.Module):
    """Answer for an image as a whole.

    Small grids: an axis of fewer than 8 voxels is padded with zeros to 8. Instance norm needs two voxels at
    least, so where halving the grid between two blocks would leave a single one, the grid is kept. Elsewhere
    the network is MONAI's, which refuses such images.

    Args:
        spec: layers, growth and dropout.
        in_channels: channels C of the image.
        heads: by task, pooled ones alone.
        dimensions: spatial axes, 2 or 3.
    """

    def __init__(
        self, spec: DenseNetSpec, *, in_channels: int, heads: Mapping[str, Head], dimensions: int = 3
    ) -> None:
        super().__init__()
        self.features = DenseFeatures(spec, in_channels, dimensions)
        self.kinds = dict(heads)
        self.heads = nn.ModuleDict(
            {name: pooled_head(self.features.width, head) for name, head in heads.items()}
        )
        self.stride = 2 ** (len(spec.blocks) + 1)  # the stem halves twice, each transition once
        for module in self.modules():
            if isinstance(module, _CONV[dimensions]):
                nn.init.kaiming_normal_(module.weight)
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            nn.init.zeros_(head.bias)

    def former_names(self) -> dict[str, str]:
        """Return how names of weights began in earlier versions, and begin now."""
        return {"head.": f"heads.{first_of(self.kinds, 'pooled')}."}

    def shared_parameter(self) -> str:
        """Return the last parameter that every task's gradient passes through."""
        return f"features.transitions.{len(self.features.transitions) - 1}.weight"

    def cam_layer(self) -> CamLayer:
        """Return what is before the pooling."""
        return CamLayer("features", "channels first", self.stride)

    def stage_layers(self) -> dict[str, str]:
        """Return the submodule of each dense block by the block's name, finest first."""
        return {f"block {i + 1}": f"features.blocks.{i}" for i in range(len(self.features.blocks))}

    def forward(self, image: Tensor) -> Outputs:
        """(B, C, *S) image to (B, K) logits; the features are (B, F)."""
        # Below 8 voxels oneDNN's gradient of the 7x7 convolution writes out of bounds, besides.
        padded = pad(image, [max(side, _SMALLEST) for side in image.shape[2:]])
        pooled = pool(self.features(padded))  # (B, F)
        return Outputs(apply_pooled(self.heads, self.kinds, pooled), pooled)


def norm_relu(values: Tensor) -> Tensor:
    """Instance norm and ReLU."""
    return F.relu(F.instance_norm(values))


def halve(values: Tensor) -> Tensor:
    """Return the mean over 2x2 voxels, which a transition's 1x1 convolution follows.

    The order of the two doesn't matter, and this one costs an eighth.
    """
    mean = F.avg_pool3d if values.ndim == 5 else F.avg_pool2d
    exact = values.to(torch.promote_types(values.dtype, torch.float32))  # CPUs have no mean of half precision
    return mean(exact, halving(values.shape[2:])).to(values.dtype)


def halving(size: Sequence[int]) -> tuple[int, ...]:
    """Return the window that halves a grid; one of ones where a single voxel would be left.

    An axis of one voxel is kept.
    """
    return tuple(min(side, 2) for side in size) if max(size) > 3 else (1,) * len(size)
