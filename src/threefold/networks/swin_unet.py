"""MTL-Swin-Unet (arXiv 2505.06185): a Swin encoder, a decoder a dense task, a head on the pooled features.

The decoder is that of Swin-Unet (Cao et al. 2021, arXiv 2105.05537).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from threefold.core.outputs import Head, Outputs
from threefold.experiment import SwinSpec, SwinUnetSpec
from threefold.networks.cam import CamLayer
from threefold.networks.heads import apply_pooled, first_of, pooled_head
from threefold.networks.swin import (
    EncoderFeatures,
    SwinBlocks,
    SwinEncoder,
    drop_path_rates,
    initialise,
    stage_width,
)

_ORDER = ("pooled", "dense", "restored")
"""Of the heads: their first weights are drawn in it."""


class PatchExpanding(nn.Module):
    """Each token becomes 2x2 tokens of half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(width // 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) to (B, 2H, 2W, C/2)."""
        out: Tensor = self.norm(spread(self.expand(tokens), 2))
        return out


class DecoderStage(SwinBlocks):
    """The encoder's tokens are joined to the decoder's, then the blocks of that resolution follow."""

    def __init__(self, spec: SwinSpec, stage: int) -> None:
        width = stage_width(spec, stage)
        super().__init__(width, spec.heads[stage], spec, drop_path_rates(spec)[stage])
        self.expanding = PatchExpanding(2 * width)
        self.join = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor, skip: Tensor) -> Tensor:
        """(B, H/2, W/2, 2C) of the coarser stage and (B, H, W, C) of the encoder to (B, H, W, C)."""
        return self.run_blocks(self.join(torch.cat((self.expanding(tokens), skip), dim=-1)))


class FinalExpanding(nn.Module):
    """Each token becomes patch x patch pixels: expansion, LayerNorm, 1x1 head."""

    def __init__(self, width: int, patch: int, out_channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.expand = nn.Linear(width, patch**2 * width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) tokens to (B, out_channels, H * patch, W * patch) pixels."""
        pixels: Tensor = self.head(self.norm(spread(self.expand(tokens), self.patch)))
        return pixels.movedim(-1, 1).contiguous()


class SwinDecoder(nn.Module):
    """The Swin-Unet decoder: patch expanding, concatenated skips, blocks; then a final expansion."""

    def __init__(self, spec: SwinSpec, out_channels: int) -> None:
        super().__init__()
        finer = range(len(spec.depths) - 1)
        self.stages = nn.ModuleList(DecoderStage(spec, stage) for stage in finer)  # finest first
        self.norm = nn.LayerNorm(spec.embed_dim)
        self.final = FinalExpanding(spec.embed_dim, spec.patch, out_channels)
        initialise(self, spec)

    def forward(self, features: EncoderFeatures) -> Tensor:
        """Return (B, out_channels, H, W) on the padded image's grid."""
        tokens = features.tokens
        for number in reversed(range(len(self.stages))):
            tokens = self.stages[number](tokens, features.skips[number])
        planes: Tensor = self.final(self.norm(tokens))
        return planes


def spread(tokens: Tensor, side: int) -> Tensor:
    """Spread the channels of each token over side x side: (B, H, W, side^2 * C) to (B, H*side, W*side, C)."""
    batch, height, width, channels = tokens.shape
    parts = tokens.view(batch, height, width, side, side, channels // side**2).transpose(2, 3)
    return parts.reshape(batch, height * side, width * side, channels // side**2)


class SwinUnet(nn.Module):
    """One encoder for all tasks; a decoder or head exists only where a task asks for it.

    Args:
        spec: sizes of the encoder, and by mirror of the decoders.
        in_channels: channels C of the image.
        heads: by task; a dense head and a restored image have a decoder each.
    """

    def __init__(
        self,
        spec: SwinUnetSpec,
        *,
        in_channels: int,
        heads: Mapping[str, Head],
    ) -> None:
        super().__init__()
        self.encoder = SwinEncoder(spec.encoder, in_channels)
        self.kinds = dict(sorted(heads.items(), key=lambda one: _ORDER.index(one[1].kind)))
        self.heads = nn.ModuleDict(
            {
                name: pooled_head(self.encoder.width, head)
                if head.kind == "pooled"
                else SwinDecoder(spec.encoder, head.outputs)
                for name, head in self.kinds.items()
            }
        )
        for name, head in self.kinds.items():
            if head.kind == "pooled":
                initialise(self.heads[name], spec.encoder)

    def former_names(self) -> dict[str, str]:
        """Return how names of weights began in earlier versions, and begin now."""
        kinds = {"classifier.": "pooled", "segmentation.": "dense", "reconstruction.": "restored"}
        names = ((old, first_of(self.kinds, kind)) for old, kind in kinds.items())
        return {old: f"heads.{name}." for old, name in names if name is not None}

    def shared_parameter(self) -> str:
        """Return the last parameter that every task's gradient passes through."""
        return "encoder.norm.weight"

    def cam_layer(self) -> CamLayer:
        """Return the encoder's."""
        return self.encoder.cam_layer().within("encoder")

    def stage_layers(self) -> dict[str, str]:
        """Return the submodule of each stage of the encoder by the stage's name, finest first."""
        return {name: f"encoder.{module}" for name, module in self.encoder.stage_layers().items()}

    def forward(self, image: Tensor) -> Outputs:
        """(B, C, H, W) image to logits and reconstruction on the image's own grid."""
        height, width = image.shape[-2:]
        features = self.encoder(image)
        decoded = {
            name: self.heads[name](features)[..., :height, :width]
            for name, head in self.kinds.items()
            if head.kind != "pooled"
        }
        pooled = apply_pooled(self.heads, self.kinds, features.pooled)
        return Outputs({**pooled, **decoded}, features.pooled)
