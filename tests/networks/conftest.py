"""Fixtures of the networks' tests: MONAI's networks, set up as the aortic-arch paper's are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.networks.nets import AttentionUnet as MonaiUnet
from monai.networks.nets import DenseNet121 as MonaiDenseNet
from torch import nn

CHANNELS = (32, 64, 128, 256, 512)


def _unet(channels: tuple[int, ...] = CHANNELS, *, labels: int = 12, dimensions: int = 3) -> nn.Module:
    return MonaiUnet(
        spatial_dims=dimensions,
        in_channels=1,
        out_channels=labels,
        channels=channels,
        strides=(2,) * (len(channels) - 1),
        kernel_size=3,
        dropout=0.2,
    )


def _densenet(in_channels: int = 12, *, classes: int = 3, dimensions: int = 3, **sizes: Any) -> nn.Module:
    return MonaiDenseNet(
        spatial_dims=dimensions,
        in_channels=in_channels,
        out_channels=classes,
        norm="instance",
        dropout_prob=0.2,
        **sizes,
    )


def _shake(network: nn.Module, seed: int = 0) -> None:
    """Move every weight and statistic away from its initial value, so that none is redundant."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator, dtype=value.dtype)
                value.add_((noise if "running_var" in name else noise - 0.5), alpha=0.1)


@pytest.fixture(scope="session")
def monai() -> SimpleNamespace:
    """MONAI's `unet` and `densenet`, and `shake`, which makes their weights matter."""
    return SimpleNamespace(unet=_unet, densenet=_densenet, shake=_shake)
