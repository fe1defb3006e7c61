"""Swin encoder: hierarchical vision transformer with shifted windows (Liu et al. 2021, arXiv 2103.14030).

Parameters carry the names of the official checkpoints (`patch_embed.proj`, `layers.0.blocks.0.attn.qkv`,
`layers.0.downsample.reduction`, `norm`). How the terms map to the paper:

| here                     | paper                                             |
| ------------------------ | ------------------------------------------------- |
| PatchEmbedding           | patch partition + linear embedding (3.1)          |
| SwinBlock                | W-MSA or SW-MSA block, equation (3)               |
| WindowAttention          | attention with relative position bias, eq. (4)    |
| PatchMerging             | patch merging (3.1)                               |
| Order, Tokens (windows)  | cyclic shift and window partition (3.2, figure 4) |
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from threefold.experiment import SwinSpec
from threefold.networks import kernels
from threefold.networks.cam import CamLayer
from threefold.networks.windows import (
    Order,
    Tokens,
    attention_mask,
    relative_position_index,
    window_order,
)


@dataclass(frozen=True)
class EncoderFeatures:
    """What the encoder sees in B images.

    Attributes:
        skips: the tokens that enter each stage, (B, slots, C * 2^stage) in the order of the stage's first
            block; finest first.
        tokens: (B, H, W, F) normalised output of the last stage.
        pooled: (B, F) their mean.
    """

    skips: tuple[Tokens, ...]
    tokens: Tensor
    pooled: Tensor


class PatchEmbedding(nn.Module):
    """One token a patch: a strided convolution, then LayerNorm."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tokens:
        """(B, C, H, W), sides divisible by the patch, to (B, H/patch * W/patch, width) in raster order."""
        planes = self.proj(image)
        values = self.norm(planes.flatten(2).transpose(1, 2))  # (B, L, width)
        return Tokens(values, Order((planes.shape[2], planes.shape[3])))


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias for each relative position."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, values: Tensor, mask: Tensor | None, residual: Tensor, keep: Tensor | None) -> Tensor:
        """Attend.

        Args:
            values: (B, windows * N, C) in the order of the windows, N = window^2.
            mask: (windows, N, N) added to the scores, or None.
            residual: (B, windows * N, C) what the result is added to.
            keep: (B, 1, 1) factor of the result, or None.

        Returns:
            (B, windows * N, C).
        """
        batch, slots, width = values.shape
        windowed = (batch, slots // self.window**2, self.window**2, 3 * width)
        qkv = kernels.linear(values, self.qkv.weight, self.qkv.bias).view(windowed)
        attended = kernels.window_attention(qkv, self.bias(mask), self.heads).view(batch, slots, width)
        return kernels.linear(attended, self.proj.weight, self.proj.bias, residual, keep)

    def bias(self, mask: Tensor | None) -> Tensor:
        """Return the relative position bias plus the mask: (1 or windows, heads, N, N)."""
        per_window = self.window**2
        table = self.relative_position_bias_table
        index = relative_position_index(self.window, table.device)
        bias = table.t().index_select(1, index).view(1, self.heads, per_window, per_window)
        return bias if mask is None else bias + mask[:, None]


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, values: Tensor, residual: Tensor, keep: Tensor | None) -> Tensor:
        """Return residual + keep * MLP(values): (B, L, C), the same, and (B, 1, 1) or None."""
        first, second = (self.fc1.weight, self.fc1.bias), (self.fc2.weight, self.fc2.bias)
        return kernels.mlp(values, first, second, residual, keep)


class StochasticDepth(nn.Module):
    """Drop a whole branch for a case, with probability `rate`, while training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor | None:
        """Draw (B, 1, 1) factors of a branch of (B, L, C) values: 0, or what keeps the mean. None: 1."""
        if not self.training or self.rate == 0:
            return None
        keep = torch.rand(values.shape[0], 1, 1, device=values.device) >= self.rate
        return keep.to(torch.float32) / max(1 - self.rate, 1e-6)


class SwinBlock(nn.Module):
    """Window attention and MLP, each behind a LayerNorm and beside a residual connection."""

    def __init__(self, width: int, heads: int, spec: SwinSpec, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, spec.window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * spec.mlp_ratio))
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """(B, windows * N, C) in the order of the block's windows, to the same."""
        values = self.attn(self.norm1(values), mask, values, self.drop_path(values))
        out: Tensor = self.mlp(self.norm2(values), values, self.drop_path(values))
        return out


class SwinBlocks(nn.Module):
    """Blocks of one stage, with plain and shifted windows in turn."""

    def __init__(self, width: int, heads: int, spec: SwinSpec, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.window = spec.window
        self.checkpointing = spec.gradient_checkpointing
        self.blocks = nn.ModuleList(SwinBlock(width, heads, spec, rate) for rate in drop_paths)

    def entry_order(self, tokens: Tokens) -> Order:
        """Return the order that the first block works in."""
        return window_order(tokens.order.grid, self.window, shifted=False)

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the tokens in the order of the last block."""
        grid = tokens.order.grid
        for number, block in enumerate(self.blocks):
            tokens = tokens.to(window_order(grid, self.window, shifted=number % 2 == 1))
            mask = attention_mask(tokens.order.key, tokens.values.device)
            if self.checkpointing and self.training and torch.is_grad_enabled():
                values = checkpoint(block, tokens.values, mask, use_reentrant=False)
            else:
                values = block(tokens.values, mask)
            tokens = Tokens(values, tokens.order)
        return tokens


class PatchMerging(nn.Module):
    """Each 2x2 block of tokens becomes one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the tokens of the grid of half the size, in raster order."""
        height, width = tokens.order.grid
        merged = tokens.to(Order((height, width), "merged")).values
        batch, length, channels = merged.shape
        values = self.reduction(self.norm(merged.view(batch, length // 4, 4 * channels)))  # (B, L/4, 2C)
        return Tokens(values, Order((height // 2, width // 2)))


class SwinStage(SwinBlocks):
    """Blocks, then patch merging (not after the last stage)."""

    def __init__(
        self, width: int, heads: int, spec: SwinSpec, drop_paths: Sequence[float], *, merge: bool
    ) -> None:
        super().__init__(width, heads, spec, drop_paths)
        self.downsample = PatchMerging(width) if merge else None

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the tokens that the next stage starts from."""
        tokens = super().forward(tokens)
        return tokens if self.downsample is None else self.downsample(tokens)


class SwinEncoder(nn.Module):
    """The Swin encoder.

    Args:
        spec: sizes.
        in_channels: channels of the image.

    An image of any size is padded with zeros, below and to the right, to a multiple of `stride`.
    """

    def __init__(self, spec: SwinSpec, in_channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.in_channels = in_channels
        self.patch_embed = PatchEmbedding(in_channels, spec.embed_dim, spec.patch)
        stages = len(spec.depths)
        self.layers = nn.ModuleList(
            SwinStage(stage_width(spec, stage), heads, spec, drop_paths, merge=stage < stages - 1)
            for stage, (heads, drop_paths) in enumerate(zip(spec.heads, drop_path_rates(spec), strict=True))
        )
        self.norm = nn.LayerNorm(self.width)
        initialise(self, spec)

    def stages(self) -> list[SwinStage]:
        """Return the stages, finest first."""
        return cast(list[SwinStage], list(self.layers))

    def stage_layers(self) -> dict[str, str]:
        """Return the submodule of each stage by the stage's name, finest first.

        A stage's output is what the next one starts from, patch merging included.
        """
        return {f"stage {i + 1}": f"layers.{i}" for i in range(len(self.layers))}

    @property
    def width(self) -> int:
        """Channels F of the output."""
        return stage_width(self.spec, len(self.spec.depths) - 1)

    @property
    def stride(self) -> int:
        """Pixels along the side of an output token."""
        return self.spec.patch << (len(self.spec.depths) - 1)

    def cam_layer(self) -> CamLayer:
        """Return the norm before the last attention.

        Behind it each token holds what its whole window found, and maps show windows in place of lesions.
        What bypasses the attention is not in the map: the tokens themselves are far from one another in size,
        and maps of them found lesions less often (docs/how-to/explain.md).
        """
        stage, spec = len(self.spec.depths) - 1, self.spec
        block = spec.depths[stage] - 1
        return CamLayer(
            f"layers.{stage}.blocks.{block}.norm1",
            "windows",
            self.stride,
            spec.window,
            shifted=block % 2 == 1,
        )

    def forward(self, image: Tensor) -> EncoderFeatures:
        """(B, C, H, W) image to its features."""
        height, width = image.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        if below or right:
            image = F.pad(image, (0, right, 0, below))
        tokens = self.patch_embed(image)
        skips = []
        for stage in self.stages():
            tokens = tokens.to(stage.entry_order(tokens))
            skips.append(tokens)
            tokens = stage(tokens)
        normalised = self.norm(tokens.raster())
        return EncoderFeatures(tuple(skips), normalised, normalised.mean((1, 2)))


def stage_width(spec: SwinSpec, stage: int) -> int:
    """Return the channels of a stage (0 is the finest)."""
    return spec.embed_dim << stage


def drop_path_rates(spec: SwinSpec) -> tuple[tuple[float, ...], ...]:
    """Return the rate of stochastic depth of each block of each stage, rising linearly from 0."""
    last = max(sum(spec.depths) - 1, 1)
    rates = (spec.drop_path * block / last for block in itertools.count())
    return tuple(tuple(itertools.islice(rates, depth)) for depth in spec.depths)


def initialise(network: nn.Module, spec: SwinSpec) -> None:
    """Draw the weights of linear layers as the specification says; biases start at zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            if spec.initialisation == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
