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
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from threefold.experiment import AttentionUnetSpec
from threefold.networks import kernels, kernels3d
from threefold.networks.cam import CamLayer
from threefold.networks.outputs import Outputs

_CONV: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_NORM: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_PUBLISHED_GAIN = 0.1


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
        return kernels3d.conv_norm_relu(values, self.conv, self.norm, self.dropout)


class PointwiseUnit(nn.Module):
    """1x1 convolution and batch norm; `kernels3d` runs them."""

    def __init__(self, dimensions: int, width_in: int, width: int) -> None:
        super().__init__()
        self.conv = _CONV[dimensions](width_in, width, 1)
        self.norm = _NORM[dimensions](width)

    def layers(self) -> tuple[nn.Module, nn.Module]:
        """Return the convolution and the norm."""
        return self.conv, self.norm


class AttentionGate(nn.Module):
    """Weigh each voxel of the skip by what the coarser level makes of it."""

    def __init__(self, dimensions: int, width: int) -> None:
        super().__init__()
        inner = max(width // 2, 1)
        self.coarse = PointwiseUnit(dimensions, width, inner)
        self.skip = PointwiseUnit(dimensions, width, inner)
        self.score = PointwiseUnit(dimensions, inner, 1)

    def layers(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Return the three units' layers, for the skip to be gated and merged in one step."""
        return self.coarse.layers(), self.skip.layers(), self.score.layers()


class Merge(nn.Module):
    """Convolution, instance norm, dropout and PReLU of the gated skip and the coarser level."""

    def __init__(self, dimensions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = _CONV[dimensions](2 * width, width, 3, padding=1)
        self.act = nn.PReLU()
        self.dropout = dropout


class DecoderLevel(nn.Module):
    """The coarser level's features on this level's grid, joined to the skip that the gate lets through."""

    def __init__(self, dimensions: int, coarser: int, width: int, dropout: float) -> None:
        super().__init__()
        self.up = ConvUnit(dimensions, coarser, width, dropout=0.0, up=True)
        self.gate = AttentionGate(dimensions, width)
        self.merge = Merge(dimensions, width, dropout)

    def forward(self, values: Tensor, skip: Tensor) -> Tensor:
        """(B, coarser, *S/2) features and (B, C, *S) skip to (B, C, *S)."""
        merge = self.merge
        return kernels3d.gated_merge(
            self.up(values),
            skip,
            self.gate.layers(),
            merge.conv,
            merge.act.weight,
            merge.dropout if self.training else 0.0,
        )


class AttentionUnet(nn.Module):
    """Segment an image; with `classes`, tell its class from the pooled deepest features as well.

    Args:
        spec: channels, dropout and initialisation.
        in_channels: channels C of the image.
        labels: segmentation labels L, background included; None: no decoder.
        classes: diagnoses K to tell apart; None: no classification head.
        dimensions: spatial axes, 2 or 3.
    """

    def __init__(
        self,
        spec: AttentionUnetSpec,
        *,
        in_channels: int,
        labels: int | None,
        classes: int | None,
        dimensions: int = 3,
    ) -> None:
        super().__init__()
        widths, deepest = spec.channels, spec.channels[-1]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                ConvUnit(dimensions, before, width, stride=2 if level else 1, dropout=spec.dropout),
                ConvUnit(dimensions, width, width, dropout=spec.dropout),
            )
            for level, (before, width) in enumerate(zip((in_channels, *widths), widths, strict=False))
        )
        self.decoder = None
        self.head = None
        if labels is not None:
            self.decoder = nn.ModuleList(
                DecoderLevel(dimensions, coarser, width, spec.dropout) for width, coarser in pairwise(widths)
            )  # finest first
            self.head = _CONV[dimensions](widths[0], labels, 1)
        self.classifier = None if classes is None else nn.Linear(deepest, classes)
        self.stride = 2 ** (len(widths) - 1)
        if spec.initialisation == "published":
            initialise_as_published(self)
        if self.head is not None and spec.background_prior is not None:
            prefer_background(self.head, spec.background_prior)

    def cam_layer(self) -> CamLayer:
        """Return the deepest level, whose mean the class is told by."""
        return CamLayer(f"encoder.{len(self.encoder) - 1}", "channels first", self.stride)

    def stage_layers(self) -> dict[str, str]:
        """Return the submodule of each level of the encoder by the level's name, finest first."""
        return {f"level {i + 1}": f"encoder.{i}" for i in range(len(self.encoder))}

    def forward(self, image: Tensor) -> Outputs:
        """(B, C, *S) image of any size to (B, L, *S) and (B, K) logits.

        The image is padded with zeros at its far ends to a multiple of the deepest level's stride, and to two
        voxels of that level at least, and the segmentation is cropped again.
        """
        size = image.shape[2:]
        segmentation = None
        with kernels.precision(image):
            values = kernels3d.as_channels_last(kernels3d.pad(image, self._padded(size)))
            with kernels3d.precision(values):
                skips = []
                for block in self.encoder:
                    values = block(values)
                    skips.append(values)
                pooled = kernels3d.pool(skips.pop())  # (B, F)
                if self.decoder is not None and self.head is not None:
                    for level in reversed(self.decoder):
                        values = level(values, skips.pop())
                    segmentation = kernels3d.crop(kernels3d.project(values, self.head), size).contiguous()
        if segmentation is not None and kernels.avoids_bfloat16(image):
            segmentation = segmentation.bfloat16()
        return Outputs(
            classes=None
            if self.classifier is None
            else self.classifier(pooled.to(self.classifier.weight.dtype)),
            segmentation=segmentation,
            features=pooled,
        )

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
