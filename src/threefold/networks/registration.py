"""VoxelMorph: a network from a pair of volumes to the field that brings one onto the other.

Balakrishnan et al. 2019, "VoxelMorph: A Learning Framework for Deformable Medical Image Registration"
(arXiv 1809.05231); with integration of a stationary velocity as in Dalca et al. 2019 (arXiv 1903.03545).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threefold.networks.grids import crop, pad
from threefold.networks.warping import integrate, warp

_SLOPE = 0.2  # of the leaky ReLUs, as published


@dataclass(frozen=True)
class Registration:
    """What registers a moving to a fixed volume.

    Attributes:
        warped: (B, C, *S) the moving volume on the fixed one.
        displacement: (B, 3, *S), voxels.
        velocity: (B, 3, *S) stationary velocity, voxels; None where the network predicts displacements.
    """

    warped: Tensor
    displacement: Tensor
    velocity: Tensor | None

    @property
    def predicted(self) -> Tensor:
        """What the network predicts, and smoothness is asked of."""
        return self.displacement if self.velocity is None else self.velocity


class VoxelMorphUnet(nn.Module):
    """The U-Net of VoxelMorph: maxima on the way down, nearest-neighbour doubling on the way up.

    Convolutions of width 3 with leaky ReLUs of slope 0.2, no norms; the last one is linear. Any size: it is
    padded to multiples of 2^levels inside.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32, 32, 32, 32, 32),
        final_channels: Sequence[int] = (16, 16),
        *,
        in_channels: int = 2,
        unet_channels: int = 32,
    ) -> None:
        """Make the layers.

        Args:
            channels: for each resolution, from the finest, channels on the way down and on the way up; the
                way up from a resolution has the channels of the finer one. The last pair is the bottom's.
            final_channels: of the convolutions at full resolution before the last.
            in_channels: of moving and fixed volume together.
            unet_channels: on the way up at full resolution.
        """
        super().__init__()
        down, up = channels[::2], channels[1::2]
        self.stride = 2 ** len(down)
        self.down = nn.ModuleList(_conv(a, b) for a, b in zip((in_channels, *down[:-1]), down, strict=True))
        self.bottom = _conv(down[-1], up[-1])
        self.up = nn.ModuleList(
            _conv(skip + coarse, out)
            for skip, coarse, out in zip(down, up, (unet_channels, *up[:-1]), strict=True)
        )
        widths = (unet_channels, *final_channels)
        self.final = nn.ModuleList(_conv(a, b) for a, b in pairwise(widths))
        self.out = _conv(widths[-1], 3)
        nn.init.normal_(self.out.weight, std=1e-5)  # as published: nearly no movement at first
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, pair: Tensor) -> Tensor:
        """Return (B, 3, *S) for (B, in_channels, *S)."""
        size = pair.shape[2:]
        padded = pad(pair, [-(-side // self.stride) * self.stride for side in size])
        values = padded.contiguous(memory_format=torch.channels_last_3d)
        skips = []
        for level, conv in enumerate(self.down):
            values = _activated(self.convolve(F.max_pool3d(values, 2) if level else values, conv))
            skips.append(values)
        values = _activated(self.convolve(F.max_pool3d(values, 2), self.bottom))
        for conv, skip in zip(reversed(self.up), reversed(skips), strict=True):
            values = _activated(self.merge(skip, values, conv))
        for conv in self.final:
            values = _activated(self.convolve(values, conv))
        return crop(self.convolve(values, self.out), size)

    def convolve(self, values: Tensor, conv: nn.Module) -> Tensor:
        """Apply one of the layers."""
        convolved: Tensor = conv(values)
        return convolved

    def merge(self, skip: Tensor, coarse: Tensor, conv: nn.Module) -> Tensor:
        """Apply a layer to a skip, (B, C, *S), and the doubled coarser values, (B, D, *S/2)."""
        return self.convolve(torch.cat((skip, F.interpolate(coarse, scale_factor=2)), dim=1), conv)


class VoxelMorph(nn.Module):
    """The U-Net, the integration of its velocity, and the warp.

    Attributes:
        integration_steps: squarings of the integration; 0: the U-Net predicts displacements.
    """

    def __init__(self, unet: VoxelMorphUnet, integration_steps: int = 7) -> None:
        super().__init__()
        self.unet = unet
        self.integration_steps = integration_steps

    def forward(self, moving: Tensor, fixed: Tensor) -> Registration:
        """Register (B, C, *S) `moving` to (B, C, *S) `fixed`."""
        predicted = self.unet(torch.cat((moving, fixed), dim=1)).to(moving.dtype)
        # The fields are read point by point from here on: planes of their own are faster.
        predicted = predicted.contiguous()
        with torch.autocast(moving.device.type, enabled=False):
            if not self.integration_steps:
                return Registration(warp(moving, predicted), predicted, None)
            displacement = integrate(predicted, self.integration_steps)
            return Registration(warp(moving, displacement), displacement, predicted)


def _conv(inputs: int, outputs: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, padding=1)


def _activated(values: Tensor) -> Tensor:
    return F.leaky_relu_(values, _SLOPE)
