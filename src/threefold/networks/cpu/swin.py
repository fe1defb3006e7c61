"""The Swin networks on a CPU: tokens stay in the order that the next layer wants.

Each class computes what the plain class of its name does (`threefold.networks.swin`, `.swin_unet`), with the
plain class's layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from threefold.core.outputs import Outputs
from threefold.networks import joint, swin, swin_unet
from threefold.networks.cpu import kernels
from threefold.networks.cpu.orders import Order, Tokens, attention_mask, window_order
from threefold.networks.cpu.processor import applies, precision
from threefold.networks.windows import Grid


class OrderedSkips(Sequence[Tensor]):
    """The tokens that enter each stage: for plain decoders (B, H, W, C) each, for ours as they lie."""

    def __init__(self, ordered: Sequence[Tokens]) -> None:
        """Hold the tokens in the order of each stage's first block, finest first."""
        self.ordered = ordered

    def __len__(self) -> int:
        """Return the number of stages."""
        return len(self.ordered)

    @overload
    def __getitem__(self, number: int) -> Tensor: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[Tensor, ...]: ...

    def __getitem__(self, number: int | slice) -> Tensor | tuple[Tensor, ...]:
        """Return the tokens of a stage, or of several, row by row."""
        if isinstance(number, slice):
            return tuple(tokens.raster() for tokens in self.ordered[number])
        return self.ordered[number].raster()


class SwinEncoder(swin.SwinEncoder):
    """The tokens that enter a stage are moved into its windows once, for its blocks and for the decoders."""

    def forward(self, image: Tensor) -> swin.EncoderFeatures:
        """(B, C, H, W) image to its features."""
        if not applies(image):
            return super().forward(image)
        height, width = image.shape[-2:]
        below, right = -height % self.stride, -width % self.stride
        tokens = self.patch_embed(F.pad(image, (0, right, 0, below)) if below or right else image)
        skips = []
        for stage in self.stages():
            skips.append(enter(stage, tokens))
            tokens = stage(skips[-1])
        normalised = self.norm(tokens)
        return swin.EncoderFeatures(OrderedSkips(skips), normalised, normalised.mean((1, 2)))


class SwinStage(swin.SwinStage):
    """One gather between two blocks, and one into the blocks of the patch merging."""

    def forward(self, tokens: Tensor | Tokens) -> Tensor:
        """Take what the plain stage does, or the same in the order of the first block."""
        if isinstance(tokens, Tensor):
            if not applies(tokens):
                return super().forward(tokens)
            tokens = enter(self, tokens)
        tokens = run_blocks(self, tokens)
        if self.downsample is None:
            return tokens.raster()
        height, width = tokens.order.grid
        merged = tokens.to(Order((height, width), "merged")).values
        blocks = merged.view(len(merged), height // 2, width // 2, -1)  # (B, H/2, W/2, 4C)
        out: Tensor = self.downsample.reduction(self.downsample.norm(blocks))
        return out


class SwinDecoder(swin_unet.SwinDecoder):
    """Takes the skips in the order that the encoder left them in."""

    def forward(self, features: swin.EncoderFeatures) -> Tensor:
        """Return (B, out_channels, H, W) on the padded image's grid."""
        skips, tokens = features.skips, features.tokens
        if not isinstance(skips, OrderedSkips) or not applies(tokens):
            return super().forward(features)
        for number in reversed(range(len(self.stages))):
            tokens = self.stages[number](tokens, skips.ordered[number])
        planes: Tensor = self.final(self.norm(tokens))
        return planes


class DecoderStage(swin_unet.DecoderStage):
    """One gather from the expanded tokens into the windows of the first block."""

    def forward(self, tokens: Tensor, skip: Tensor | Tokens) -> Tensor:
        """Take what the plain stage does, or the skip in the order of the first block."""
        if isinstance(skip, Tensor):
            if not applies(tokens):
                return super().forward(tokens, skip)
            skip = enter(self, skip)
        batch, height, width, channels = tokens.shape
        expanding = self.expanding
        parts = expanding.expand(tokens).view(batch, 4 * height * width, channels // 2)
        expanded = Tokens(expanding.norm(parts), Order((2 * height, 2 * width), "expanded")).to(skip.order)
        joined = self.join(torch.cat((expanded.values, skip.values), dim=-1))
        return run_blocks(self, Tokens(joined, skip.order)).raster()


class FinalExpanding(swin_unet.FinalExpanding):
    """The norm and the head are folded into the expansion (`kernels.expansion_head`)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) tokens to (B, out_channels, H * patch, W * patch) pixels."""
        if not applies(tokens):
            return super().forward(tokens)
        batch, height, width, _ = tokens.shape
        pixels = kernels.expansion_head(
            tokens.flatten(1, 2), self.expand.weight, self.norm.weight, self.norm.bias, self.head.weight
        )
        planes = pixels.view(batch, height, width, self.patch, self.patch, -1).permute(0, 5, 1, 3, 2, 4)
        return planes.reshape(batch, -1, height * self.patch, width * self.patch)


class SwinUnet(swin_unet.SwinUnet):
    """In float32 under autocast to bfloat16, where the processor multiplies none."""

    def forward(self, image: Tensor) -> Outputs:
        """As the plain network."""
        with precision(image):
            return super().forward(image)


class JointSwin(joint.JointSwin):
    """In float32 under autocast to bfloat16, where the processor multiplies none."""

    def forward(self, image: Tensor) -> Outputs:
        """As the plain network."""
        with precision(image):
            return super().forward(image)


def enter(stage: swin.SwinBlocks, tokens: Tensor) -> Tokens:
    """Bring (B, H, W, C) tokens into the order of a stage's first block."""
    grid, first = (tokens.shape[1], tokens.shape[2]), stage.blocks[0]
    assert isinstance(first, swin.SwinBlock)
    return Tokens(tokens.flatten(1, 2), Order(grid)).to(_order(first, grid))


def run_blocks(stage: swin.SwinBlocks, tokens: Tokens) -> Tokens:
    """Run a stage's blocks; the tokens come in the order of the first, and go in that of the last."""
    for block in stage.blocks:
        assert isinstance(block, swin.SwinBlock)
        order = _order(block, tokens.order.grid)
        values, mask = tokens.to(order).values, attention_mask(order.key)
        if stage.checkpointing and stage.training and torch.is_grad_enabled():
            values = checkpoint(_block, block, values, mask, use_reentrant=False)
        else:
            values = _block(block, values, mask)
        tokens = Tokens(values, order)
    return tokens


def _order(block: swin.SwinBlock, grid: Grid) -> Order:
    return window_order(grid, block.window, shifted=block.shifted)


def _block(block: swin.SwinBlock, values: Tensor, mask: Tensor | None) -> Tensor:
    """Run a block on (B, windows * N, C) tokens in its windows' order; mask: (windows, N, N) or None."""
    normed = block.norm1(values)
    values = _attention(block.attn, normed, mask, values, _factors(block, values))
    first, second = ((layer.weight, layer.bias) for layer in (block.mlp.fc1, block.mlp.fc2))
    return kernels.mlp(block.norm2(values), first, second, values, _factors(block, values))


def _attention(
    layer: swin.WindowAttention,
    values: Tensor,
    mask: Tensor | None,
    residual: Tensor,
    factors: Tensor | None,
) -> Tensor:
    batch, slots, width = values.shape
    tokens = layer.window**2
    qkv = kernels.linear(values, layer.qkv.weight, layer.qkv.bias).view(batch, -1, tokens, 3 * width)
    bias = layer.bias() if mask is None else layer.bias() + mask[:, None]
    attended = kernels.window_attention(qkv, bias, layer.heads).view(batch, slots, width)
    return kernels.linear(attended, layer.proj.weight, layer.proj.bias, residual, factors)


def _factors(block: swin.SwinBlock, values: Tensor) -> Tensor | None:
    factors = block.drop_path.factors(values)
    return None if factors is None else factors.view(-1, 1, 1)
