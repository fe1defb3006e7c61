"""Attention U-Net (Oktay et al. 2018, arXiv 1804.03999): the segmenter of arXiv 2311.07234.

Equal to MONAI's AttentionUnet with kernel 3 and strides 2, which the paper's implementation uses.
How the terms map to the paper of the attention gates:

| here                | paper                                          |
| ------------------- | ---------------------------------------------- |
| AttentionGate       | attention gate, equations (1) to (3)           |
| AttentionGate.coarse, .skip, .score | W_g, W_x and psi               |
| up (of a level)     | the gating signal g                            |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threefold.core.outputs import Head, Outputs
from threefold.experiment import AttentionUnetSpec
from threefold.networks.cam import CamLayer
from threefold.networks.grids import crop, pad, pool, pool_inside
from threefold.networks.heads import apply_pooled, first_of, pooled_head

_CONV: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_NORM: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_PUBLISHED_GAIN = 0.1


class Head2d(nn.Conv2d):
    """1x1 convolution from a pixel's features to its logits."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__(width, labels, 1)


class Head3d(nn.Conv3d):
    """1x1 convolution from a voxel's features to its logits."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__(width, labels, 1)


_HEAD: dict[int, type[Head2d | Head3d]] = {2: Head2d, 3: Head3d}


class ConvUnit(nn.Module):
    """Convolution, batch norm, dropout, ReLU; `up` doubles the grid by a transposed convolution."""

    def __init__(
        self, dimensions: int, width_in: int, width: int, *, stride: int = 1, dropout: float, up: bool = False
    ) -> None:
        super().__init__()
        self.conv = (
            _UP[dimensions](width_in, width, 3, stride=2, padding=1, output_padding=1)
            if up
            else _CONV[dimensions](width_in, width, 3, stride=stride, padding=1)
        )
        self.norm = _NORM[dimensions](width)
        self.dropout = dropout

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, *S) to (B, width, *T): T is S, half of it (stride 2) or twice it (up)."""
        normed = self.norm(self.conv(values))
        return F.relu(F.dropout(normed, self.dropout, self.training))


class PointwiseUnit(nn.Module):
    """1x1 convolution and batch norm."""

    def __init__(self, dimensions: int, width_in: int, width: int) -> None:
        super().__init__()
        self.conv = _CONV[dimensions](width_in, width, 1)
        self.norm = _NORM[dimensions](width)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, *S) to (B, width, *S)."""
        normed: Tensor = self.norm(self.conv(values))
        return normed


class AttentionGate(nn.Module):
    """Weigh each voxel of the skip by what the coarser level makes of it."""

    def __init__(self, dimensions: int, width: int) -> None:
        super().__init__()
        inner = max(width // 2, 1)
        self.coarse = PointwiseUnit(dimensions, width, inner)
        self.skip = PointwiseUnit(dimensions, width, inner)
        self.score = PointwiseUnit(dimensions, inner, 1)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """(B, C, *S) twice to the skip, weighed."""
        summed = F.relu(self.coarse(coarse) + self.skip(skip))
        return skip * torch.sigmoid(self.score(summed))


class Merge(nn.Module):
    """Convolution, instance norm, dropout and PReLU of the gated skip and the coarser level."""

    def __init__(self, dimensions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = _CONV[dimensions](2 * width, width, 3, padding=1)
        self.act = nn.PReLU()
        self.dropout = dropout

    def forward(self, gated: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, *S) twice to the same."""
        normed = F.instance_norm(self.conv(torch.cat((gated, coarse), dim=1)))
        merged: Tensor = self.act(F.dropout(normed, self.dropout, self.training))
        return merged


class DecoderLevel(nn.Module):
    """The coarser level's features on this level's grid, joined to the skip that the gate lets through."""

    def __init__(self, dimensions: int, coarser: int, width: int, dropout: float) -> None:
        super().__init__()
        self.up = ConvUnit(dimensions, coarser, width, dropout=0.0, up=True)
        self.gate = AttentionGate(dimensions, width)
        self.merge = Merge(dimensions, width, dropout)

    def forward(self, values: Tensor, skip: Tensor) -> Tensor:
        """(B, coarser, *S/2) features and (B, C, *S) skip to (B, C, *S)."""
        coarse = self.up(values)
        merged: Tensor = self.merge(self.gate(coarse, skip), coarse)
        return merged


class AttentionUnet(nn.Module):
    """Segment an image, and answer for the whole of it from pooled features.

    Those are the deepest ones averaged over the image, or those of all levels averaged over what the network
    segments (`spec.pooling`).

    Args:
        spec: channels, dropout, initialisation and pooling.
        in_channels: channels C of the image.
        heads: by task, pooled and dense; dense ones share the decoder.
        dimensions: spatial axes, 2 or 3.
    """

    def __init__(
        self,
        spec: AttentionUnetSpec,
        *,
        in_channels: int,
        heads: Mapping[str, Head],
        dimensions: int = 3,
    ) -> None:
        super().__init__()
        widths = spec.channels
        self.encoder = nn.ModuleList(
            nn.Sequential(
                ConvUnit(dimensions, before, width, stride=2 if level else 1, dropout=spec.dropout),
                ConvUnit(dimensions, width, width, dropout=spec.dropout),
            )
            for level, (before, width) in enumerate(zip((in_channels, *widths), widths, strict=False))
        )
        self.kinds = dict(sorted(heads.items(), key=lambda one: one[1].kind))  # dense, then pooled
        self.decoder = None
        if any(head.kind == "dense" for head in heads.values()):
            self.decoder = nn.ModuleList(
                DecoderLevel(dimensions, coarser, width, spec.dropout) for width, coarser in pairwise(widths)
            )  # finest first
        self.pools_image = "image" in spec.pooling
        self.region = first_of(self.kinds, "dense") if "region" in spec.pooling else None
        self.detaches_mask = spec.detach_mask
        pooled = (widths[-1] if self.pools_image else 0) + (
            sum(widths) + sum(widths[:-1]) if self.region is not None else 0
        )
        self.heads = nn.ModuleDict(
            {
                name: pooled_head(pooled, head)
                if head.kind == "pooled"
                else _HEAD[dimensions](widths[0], head.outputs)
                for name, head in self.kinds.items()
            }
        )
        self.stride = 2 ** (len(widths) - 1)
        if spec.initialisation == "published":
            initialise_as_published(self)
        for head in self.heads.values():
            if spec.background_prior is not None and isinstance(head, _CONV[dimensions]):
                prefer_background(head, spec.background_prior)

    def former_names(self) -> dict[str, str]:
        """Return how names of weights began in earlier versions, and begin now."""
        names = (("head.", first_of(self.kinds, "dense")), ("classifier.", first_of(self.kinds, "pooled")))
        return {old: f"heads.{name}." for old, name in names if name is not None}

    def shared_parameter(self) -> str:
        """Return the last parameter that every task's gradient passes through."""
        return f"encoder.{len(self.encoder) - 1}.1.norm.weight"

    def cam_layer(self) -> CamLayer:
        """Return the deepest level, whose mean the class is told by."""
        return CamLayer(f"encoder.{len(self.encoder) - 1}", "channels first", self.stride)

    def stage_layers(self) -> dict[str, str]:
        """Return the submodule of each level of the encoder by the level's name, finest first."""
        return {f"level {i + 1}": f"encoder.{i}" for i in range(len(self.encoder))}

    def forward(self, image: Tensor) -> Outputs:
        """(B, C, *S) image of any size to (B, L, *S) of each dense head and (B, K) of each pooled one.

        The features are (B, F): the deepest level's mean over the image, then the means over the region of
        the encoder's levels and of the decoder's, in the order in which they run; of these what `pooling`
        asks for.

        The image is padded with zeros at its far ends to a multiple of the deepest level's stride, and to two
        voxels of that level at least, and the segmentation is cropped again.
        """
        size = image.shape[2:]
        values = pad(image, self._padded(size))
        skips = []
        for block in self.encoder:
            values = block(values)
            skips.append(values)
        levels = [*skips] if self.region is not None else []
        parts = [pool(skips[-1])] if self.pools_image else []
        dense: dict[str, Tensor] = {}
        del skips[-1]
        if self.decoder is not None:
            for level in reversed(self.decoder):
                values = level(values, skips.pop())
                levels += [values] if self.region is not None else []
            for name, head in self.kinds.items():
                if head.kind == "dense":
                    dense[name] = crop(self.heads[name](values), size).contiguous()
        if self.region is not None:
            inside = self._inside(dense[self.region], values.shape[2:])
            parts += [pool_inside(one, inside) for one in levels]
        pooled = torch.cat(parts, dim=1)  # (B, F)
        return Outputs(apply_pooled(self.heads, self.kinds, pooled) | dense, pooled)

    def _inside(self, segmentation: Tensor, padded: Sequence[int]) -> Tensor:
        """(B, L, *S) logits to the probability of all structures together, (B, 1, *P), 0 in the padding."""
        logits = segmentation.detach() if self.detaches_mask else segmentation
        return pad(1 - logits.softmax(dim=1)[:, :1], padded)

    def _padded(self, size: Sequence[int]) -> list[int]:
        """Return the size of the padded image: batch norm needs two voxels of the deepest level."""
        padded = [-(-side // self.stride) * self.stride for side in size]
        if max(padded) == self.stride:
            padded[-1] *= 2
        return padded


def initialise_as_published(network: nn.Module) -> None:
    """Draw weights as the paper's implementation does: Xavier normal with gain 0.1; biases start at zero."""
    kinds = (nn.Linear, *_CONV.values(), *_UP.values())
    for module in network.modules():
        if isinstance(module, kinds):
            nn.init.xavier_normal_(module.weight, gain=_PUBLISHED_GAIN)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def prefer_background(head: nn.Conv2d | nn.Conv3d, share: float) -> None:
    """Set the bias of a head of L labels so that weights of zero give p_0 = share and the others the same."""
    labels = head.out_channels
    with torch.no_grad():
        head.bias.zero_()  # type: ignore[union-attr]
        head.bias[0] = math.log(share * (labels - 1) / (1 - share))  # type: ignore[index]
