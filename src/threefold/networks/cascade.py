"""A segmenter, then a classifier that reads what it found (arXiv 2311.07234)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from threefold.core.outputs import Head, Outputs
from threefold.errors import RunError
from threefold.experiment import CascadeSpec, MaskShapeSpec
from threefold.networks.attention_unet import AttentionUnet
from threefold.networks.cam import CamLayer
from threefold.networks.densenet import DenseNet
from threefold.networks.heads import Renamed
from threefold.networks.mask_shape import MaskShape


class Cascade(nn.Module):
    """Segment an image and classify it by its segmentation, with or without the image itself.

    The classifier's gradient flows into the segmenter, through the softmax, unless the mask is detached or
    the segmenter frozen: then it has no gradient at all and stays in evaluation mode.

    Args:
        spec: both networks and what passes between them.
        in_channels: channels C of the image.
        heads: by task; dense ones are the segmenter's, of which the classifier reads the first, pooled ones
            the classifier's.
        dimensions: spatial axes, 2 or 3.

    Attributes:
        segmenter: the attention U-Net; its weights are named `segmenter.` + their names in a run of its own.
        classifier: the DenseNet, likewise, or the linear layer on the shape of the mask.
    """

    def __init__(
        self, spec: CascadeSpec, *, in_channels: int, heads: Mapping[str, Head], dimensions: int = 3
    ) -> None:
        super().__init__()
        dense = {name: head for name, head in heads.items() if head.kind == "dense"}
        pooled = {name: head for name, head in heads.items() if head.kind == "pooled"}
        self.reads = next(iter(dense))
        labels = dense[self.reads].outputs
        self.segmenter = AttentionUnet(
            spec.segmenter, in_channels=in_channels, heads=dense, dimensions=dimensions
        )
        self.image_as, _, self.mask_as = spec.classifier_input.rpartition("+")
        self.detaches_mask = spec.detach_mask
        channels = (in_channels if self.image_as else 0) + (2 if self.mask_as == "region" else labels)
        self.classifier: DenseNet | MaskShape = (
            MaskShape(spec.classifier, in_channels=channels, heads=pooled, dimensions=dimensions)
            if isinstance(spec.classifier, MaskShapeSpec)
            else DenseNet(spec.classifier, in_channels=channels, heads=pooled, dimensions=dimensions)
        )
        self.frozen = spec.freeze_segmenter
        if self.frozen:
            self.segmenter.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen segmenter stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.segmenter.eval()
        return self

    def former_names(self) -> dict[str, str]:
        """Return how names of weights began in earlier versions, and begin now."""
        return {
            f"{part}.{old}": f"{part}.{new}"
            for part, network in (("segmenter", self.segmenter), ("classifier", self.classifier))
            if isinstance(network, Renamed)
            for old, new in network.former_names().items()
        }

    def shared_parameter(self) -> str | None:
        """Return the last parameter that every task's gradient passes through; None: there is none."""
        return None if self.frozen or self.detaches_mask else f"segmenter.heads.{self.reads}.weight"

    def cam_layer(self) -> CamLayer:
        """Return the classifier's; of a mask's shape, which has no layers, the segmenter's.

        Raises:
            RunError: the shape is of a mask through which no gradient flows.
        """
        if isinstance(self.classifier, MaskShape):
            if self.detaches_mask or self.frozen:
                raise RunError(
                    "Grad-CAM follows the gradient of the diagnosis, which ends at the mask: a mask-shape "
                    "classifier with detach_mask or a frozen segmenter has no layer to show."
                )
            return self.segmenter.cam_layer().within("segmenter")
        return self.classifier.cam_layer().within("classifier")

    def stage_layers(self) -> dict[str, str]:
        """Return the submodules of the segmenter's levels, then those of the classifier's blocks, by name."""
        return {
            name: f"{part}.{module}"
            for part, network in (("segmenter", self.segmenter), ("classifier", self.classifier))
            if not isinstance(network, MaskShape)
            for name, module in network.stage_layers().items()
        }

    def forward(self, image: Tensor) -> Outputs:
        """(B, C, *S) image to (B, L, *S) and (B, K) logits; the features are the classifier's, (B, F)."""
        with torch.no_grad() if self.frozen else nullcontext():
            dense = self.segmenter(image).heads
        classified = self.classifier(self.classifier_input(image, dense[self.reads]))
        return Outputs({**dense, **classified.heads}, classified.features)

    def classifier_input(self, image: Tensor, segmentation: Tensor) -> Tensor:
        """Return what the classifier reads: (B, C or 0 + L or 2, *S).

        Args:
            image: (B, C, *S).
            segmentation: (B, L, *S) logits.
        """
        logits = segmentation.detach() if self.detaches_mask else segmentation
        probabilities = logits.softmax(dim=1)
        foreground = probabilities[:, 1:].sum(dim=1, keepdim=True)  # (B, 1, *S)
        if self.mask_as == "region":
            probabilities = torch.cat((probabilities[:, :1], foreground), dim=1)  # (B, 2, *S)
        if self.image_as:
            image = image.to(probabilities) * (foreground if self.image_as == "gated" else 1)
            probabilities = torch.cat((image, probabilities), dim=1)
        return probabilities
