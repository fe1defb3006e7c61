"""MTL-Swin-Unet (arXiv 2505.06185): a Swin encoder, a decoder a dense task, a head on the pooled features.

The decoder is that of Swin-Unet (Cao et al. 2021, arXiv 2105.05537).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from threefold.core.outputs import Head, Outputs
from threefold.experiment import SwinSpec, SwinUnetSpec
from threefold.networks import kernels
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
from threefold.networks.windows import Order, Tokens

_ORDER = ("pooled", "dense", "restored")
"""Of the heads: their first weights are drawn in it."""


class PatchExpanding(nn.Module):
    """Each token becomes 2x2 tokens of half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(width // 2)

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the tokens of the grid of twice the size."""
        height, width = tokens.order.grid
        values = self.expand(tokens.to(Order((height, width))).values)
        batch, length, channels = values.shape
        values = self.norm(values.view(batch, 4 * length, channels // 4))  # (B, 4L, C/2)
        return Tokens(values, Order((2 * height, 2 * width), "expanded"))


class DecoderStage(SwinBlocks):
    """The encoder's tokens are joined to the decoder's, then the blocks of that resolution follow."""

    def __init__(self, spec: SwinSpec, stage: int) -> None:
        width = stage_width(spec, stage)
        super().__init__(width, spec.heads[stage], spec, drop_path_rates(spec)[stage])
        self.expanding = PatchExpanding(2 * width)
        self.join = nn.Linear(2 * width, width)

    def decode(self, tokens: Tokens, skip: Tokens) -> Tokens:
        """Expand the coarser stage's tokens, join the skip's, and attend."""
        expanded = self.expanding(tokens).to(skip.order)
        joined = self.join(torch.cat((expanded.values, skip.values), dim=-1))
        return self.forward(Tokens(joined, skip.order))


class FinalExpanding(nn.Module):
    """Each token becomes patch x patch pixels: expansion, LayerNorm, 1x1 head."""

    def __init__(self, width: int, patch: int, out_channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.expand = nn.Linear(width, patch**2 * width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_channels, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """(B, H, W, C) tokens to (B, out_channels, H * patch, W * patch) pixels."""
        batch, height, width, channels = values.shape
        pixels = kernels.expansion_head(
            values.view(batch, height * width, channels),
            self.expand.weight,
            self.norm.weight,
            self.norm.bias,
            self.head.weight,
        )
        channels = pixels.shape[-1]
        pixels = pixels.view(batch, height, width, self.patch, self.patch, channels)
        planes = pixels.permute(0, 5, 1, 3, 2, 4)  # (B, K, H, patch, W, patch)
        return planes.reshape(batch, channels, height * self.patch, width * self.patch)


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
        batch, height, width, channels = features.tokens.shape
        tokens = Tokens(features.tokens.view(batch, height * width, channels), Order((height, width)))
        for stage in range(len(self.stages) - 1, -1, -1):
            decoder_stage: DecoderStage = self.stages[stage]  # type: ignore[assignment]
            tokens = decoder_stage.decode(tokens, features.skips[stage])
        planes: Tensor = self.final(self.norm(tokens.raster()))
        return planes


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
        with kernels.precision(image):
            features = self.encoder(image)
            decoded = {
                name: self.heads[name](features)[..., :height, :width]
                for name, head in self.kinds.items()
                if head.kind != "pooled"
            }
            pooled = apply_pooled(self.heads, self.kinds, features.pooled)
            return Outputs({**pooled, **decoded}, features.pooled)
