"""From a network's settings and the heads that its tasks need to the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from threefold.core.outputs import Head
from threefold.experiment import (
    AttentionUnetSpec,
    CascadeSpec,
    DenseNetSpec,
    ForeignNetworkSpec,
    JointSwinSpec,
    NetworkSpec,
    SwinUnetSpec,
)
from threefold.networks.attention_unet import AttentionUnet
from threefold.networks.cascade import Cascade
from threefold.networks.densenet import DenseNet
from threefold.networks.foreign import ForeignNetwork
from threefold.networks.joint import JointSwin
from threefold.networks.swin_unet import SwinUnet


def make_network(
    spec: NetworkSpec, *, in_channels: int, heads: Mapping[str, Head], size: Sequence[int]
) -> nn.Module:
    """Build a network, with random weights (from torch's global generator).

    Args:
        spec: its settings.
        in_channels: channels of the image.
        heads: by task.
        size: of the image, voxels along each of its 2 or 3 axes.
    """
    dimensions = len(size)
    match spec:
        case SwinUnetSpec():
            return SwinUnet(spec, in_channels=in_channels, heads=heads)
        case JointSwinSpec():
            return JointSwin(spec, in_channels=in_channels, heads=heads)
        case AttentionUnetSpec():
            return AttentionUnet(spec, in_channels=in_channels, heads=heads, dimensions=dimensions)
        case DenseNetSpec():
            return DenseNet(spec, in_channels=in_channels, heads=heads, dimensions=dimensions)
        case CascadeSpec():
            return Cascade(spec, in_channels=in_channels, heads=heads, dimensions=dimensions)
        case ForeignNetworkSpec():
            return ForeignNetwork(spec, in_channels=in_channels, heads=heads, size=size)
