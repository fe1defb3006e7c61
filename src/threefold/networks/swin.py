"""Swin encoder: hierarchical vision transformer with shifted windows (Liu et al. 2021, arXiv 2103.14030).

Parameters carry the names of the official checkpoints (`patch_embed.proj`, `layers.0.blocks.0.attn.qkv`,
`layers.0.downsample.reduction`, `norm`). How the terms map to the paper:

| here                     | paper                                             |
| ------------------------ | ------------------------------------------------- |
| PatchEmbedding           | patch partition + linear embedding (3.1)          |
| SwinBlock                | W-MSA or SW-MSA block, equation (3)               |
| WindowAttention          | attention with relative position bias, eq. (4)    |
| PatchMerging             | patch merging (3.1)                               |
| partition (windows)      | cyclic shift and window partition (3.2, figure 4) |
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
from threefold.networks.cam import CamLayer
from threefold.networks.windows import join, partition, shift_of, unrelated


@dataclass(frozen=True)
class EncoderFeatures:
    """What the encoder sees in B images.

    Attributes:
        skips: the tokens that enter each stage, (B, H, W, C * 2^stage) each; finest first.
        tokens: (B, H, W, F) normalised output of the last stage.
        pooled: (B, F) their mean.
    """

    skips: Sequence[Tensor]
    tokens: Tensor
    pooled: Tensor


class PatchEmbedding(nn.Module):
    """One token a patch: a strided convolution, then LayerNorm."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W), sides divisible by the patch, to (B, H/patch, W/patch, width)."""
        tokens: Tensor = self.norm(self.proj(image).movedim(1, -1))
        return tokens


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, apart: Tensor | None) -> Tensor:
        """Attend: (B, windows, N, C) to the same, N = window^2.

        Args:
            windows: (B, windows, N, C).
            apart: (windows, N, N) which tokens may not attend to each other, or None.
        """
        batch, count, tokens, width = windows.shape
        qkv = self.qkv(windows).view(batch, count, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, windows, heads, N, d)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + self.bias().to(query.dtype)
        if apart is not None:
            scores = scores.masked_fill(apart[:, None], float("-inf"))
        attended = torch.softmax(scores, dim=-1).to(value.dtype) @ value
        out: Tensor = self.proj(attended.transpose(2, 3).reshape(batch, count, tokens, width))
        return out

    def bias(self) -> Tensor:
        """Return the relative position bias, (1, heads, N, N)."""
        table = self.relative_position_bias_table.t().index_select(1, self.relative_position_index)
        return table.view(1, self.heads, self.window**2, self.window**2)


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) to the same."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class StochasticDepth(nn.Module):
    """Drop a whole branch for a case, with probability `rate`, while training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) to the same, each case multiplied by 0 or by what keeps the mean."""
        factors = self.factors(branch)
        if factors is None:
            return branch
        return branch * factors.to(branch.dtype).view(-1, *[1] * (branch.ndim - 1))

    def factors(self, branch: Tensor) -> Tensor | None:
        """Draw (B,) factors of a branch of B cases; None: all are 1."""
        if not self.training or self.rate == 0:
            return None
        keep = torch.rand(branch.shape[0], device=branch.device) >= self.rate
        return keep.to(torch.float32) / max(1 - self.rate, 1e-6)


class SwinBlock(nn.Module):
    """Attention in plain or shifted windows, then MLP, each behind a LayerNorm and beside a residual sum."""

    def __init__(self, width: int, heads: int, spec: SwinSpec, drop_path: float, *, shifted: bool) -> None:
        super().__init__()
        self.window = spec.window
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, spec.window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * spec.mlp_ratio))
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        grid = (tokens.shape[1], tokens.shape[2])
        shift = shift_of(grid, self.window, shifted=self.shifted)
        windows = partition(self.norm1(tokens), self.window, shift)
        attended = self.attn(windows, unrelated(grid, self.window, shift, tokens.device))
        tokens = tokens + self.drop_path(join(attended, grid, self.window, shift))
        out: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return out


class SwinBlocks(nn.Module):
    """Blocks of one stage, with plain and shifted windows in turn."""

    def __init__(self, width: int, heads: int, spec: SwinSpec, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.checkpointing = spec.gradient_checkpointing
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, spec, rate, shifted=number % 2 == 1)
            for number, rate in enumerate(drop_paths)
        )

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        for block in self.blocks:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens


class PatchMerging(nn.Module):
    """Each 2x2 block of tokens becomes one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H/2, W/2, 2C)."""
        blocks = [tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(blocks, dim=-1)))
        return merged


class SwinStage(SwinBlocks):
    """Blocks, then patch merging (not after the last stage)."""

    channels_last = True

    def __init__(
        self, width: int, heads: int, spec: SwinSpec, drop_paths: Sequence[float], *, merge: bool
    ) -> None:
        super().__init__(width, heads, spec, drop_paths)
        self.downsample = PatchMerging(width) if merge else None

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) to what the next stage starts from, (B, H/2, W/2, 2C), or to the same."""
        tokens = self.run_blocks(tokens)
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
        stage = len(self.spec.depths) - 1
        block = self.spec.depths[stage] - 1
        return CamLayer(f"layers.{stage}.blocks.{block}.norm1", "channels last", self.stride)

    def forward(self, image: Tensor) -> EncoderFeatures:
        """(B, C, H, W) image to its features."""
        height, width = image.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        tokens = self.patch_embed(F.pad(image, (0, right, 0, below)) if below or right else image)
        skips = []
        for stage in self.layers:
            skips.append(tokens)
            tokens = stage(tokens)
        normalised = self.norm(tokens)
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


def relative_position_index(window: int) -> Tensor:
    """Return (N*N,) rows of the (2 * window - 1)^2 table of relative position biases, N = window^2."""
    side = torch.arange(window)
    places = torch.stack(torch.meshgrid(side, side, indexing="ij")).flatten(1)  # (2, N)
    offsets = places[:, :, None] - places[:, None, :] + window - 1  # (2, N, N)
    return (offsets[0] * (2 * window - 1) + offsets[1]).flatten()
