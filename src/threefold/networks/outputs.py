"""What every network returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """Outputs of a network for a batch of B images of spatial shape S (2 or 3 axes).

    A field is None where the network has no head for it, always the same fields for the same network.

    Attributes:
        classes: (B, K) logits of the K diagnoses, before softmax.
        segmentation: (B, L, *S) logits of background (0) and L - 1 labels, before softmax. With a binary
            mask as target L is 2; with structures L is their number plus one.
        reconstruction: (B, C, *S) the image again, in the units of the network's input (0..1).
        features: (B, F) pooled encoder features, the representation that the tasks share.
    """

    classes: Tensor | None = None
    segmentation: Tensor | None = None
    reconstruction: Tensor | None = None
    features: Tensor | None = None
