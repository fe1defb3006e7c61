"""From a network's settings and the heads that its tasks need to the network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from torch import nn

from threefold.core.outputs import Head
from threefold.core.registry import load
from threefold.experiment import NetworkSpec


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
    made = load(spec.code)
    of_images = {"dimensions": len(size), "size": size}
    taken = {name: value for name, value in of_images.items() if name in inspect.signature(made).parameters}
    network: nn.Module = made(spec, in_channels=in_channels, heads=heads, **taken)
    return network
