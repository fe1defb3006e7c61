"""Shape features of a predicted mask and a linear layer on them: segmentation for classification.

Hooper et al. 2023 (NeurIPS, "A case for reframing automated medical image classification as segmentation")
classify by simple functions of the predicted mask, such as its size and its largest probability. These cannot
distinguish shapes, so the spread of the mask and, in 2D, the harmonics of its outline are added.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threefold.core.outputs import Head, Outputs
from threefold.experiment import MaskShapeSpec
from threefold.networks.heads import apply_pooled, pooled_head

_LEAST = 1e-6
"""Of a share of the image, or of a squared length: keeps logarithms and gradients finite."""


class MaskShape(nn.Module):
    """Classify an image by the shape of what was segmented in it: a linear layer on standardised features.

    Args:
        spec: number of harmonics.
        in_channels: number of labels L, the background first, whose shape is not used.
        heads: by task, pooled ones only.
        dimensions: spatial axes, 2 or 3.
    """

    def __init__(
        self, spec: MaskShapeSpec, *, in_channels: int, heads: Mapping[str, Head], dimensions: int = 3
    ) -> None:
        super().__init__()
        self.harmonics = spec.harmonics if dimensions == 2 else 0
        width = (in_channels - 1) * (2 + dimensions + self.harmonics)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.kinds = dict(heads)
        self.heads = nn.ModuleDict({name: pooled_head(width, head) for name, head in heads.items()})

    def forward(self, probabilities: Tensor) -> Outputs:
        """(B, L, *S) probabilities to (B, K) logits; the features are the shape features, (B, F).

        They are standardised with the statistics of the batch in training, with running ones in evaluation.
        """
        exact = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
        features = shape_features(exact[:, 1:], self.harmonics).flatten(1)
        norm = self.norm
        # A single case has no deviation.
        is_batch = self.training and len(features) > 1
        features = F.batch_norm(features, norm.running_mean, norm.running_var, training=is_batch)
        return Outputs(apply_pooled(self.heads, self.kinds, features), features)


def shape_features(masks: Tensor, harmonics: int) -> Tensor:
    """Return the size, the largest probability, the spread and the harmonics of the outline of soft masks.

    All are invariant to translation and rotation of the mask; size and spread change with its scale.

    Args:
        masks: (B, M, *S), 0..1.
        harmonics: number of harmonics, 2D only; 0: none.

    Returns:
        (B, M, 2 + D + harmonics): the logarithm of the share of the image; the largest probability; the
        standard deviation of the position along the D principal axes, shortest first, as a share of the
        image's longest side; and for k = 1, 2, ... the absolute mean of exp(i k angle) over the mask, the
        angle about its centre. Of a star-shaped mask whose radius is R (1 + d cos(k angle)), d small, that is
        d.
    """
    size, longest = masks.shape[2:], max(masks.shape[2:])
    places = [(torch.arange(side, dtype=masks.dtype, device=masks.device) + 0.5) / longest for side in size]
    grid = torch.stack(torch.meshgrid(*places, indexing="ij")).flatten(1)  # (D, V)
    flat = masks.flatten(2)  # (B, M, V)
    share = flat.mean(dim=2, keepdim=True)
    weights = flat / flat.sum(dim=2, keepdim=True).clamp(min=_LEAST)  # (B, M, V)
    centre = weights @ grid.T  # (B, M, D)
    apart = grid - centre[..., None]  # (B, M, D, V)
    spread = torch.einsum("bmv,bmdv,bmev->bmde", weights, apart, apart)
    least = _LEAST * torch.eye(len(size), dtype=masks.dtype, device=masks.device)
    features = [
        (share + _LEAST).log(),
        flat.amax(dim=2, keepdim=True),
        torch.linalg.eigvalsh(spread + least).clamp(min=_LEAST).sqrt(),
    ]
    if harmonics:
        down, across = (apart / (apart.square().sum(dim=2, keepdim=True) + _LEAST).sqrt()).unbind(dim=2)
        real, imaginary = torch.ones_like(across), torch.zeros_like(across)
        for _ in range(harmonics):  # exp(i k angle), by one more factor exp(i angle)
            real, imaginary = real * across - imaginary * down, real * down + imaginary * across
            means = [(weights * part).sum(dim=2, keepdim=True) for part in (real, imaginary)]
            features.append((means[0].square() + means[1].square() + _LEAST).sqrt())
    return torch.cat(features, dim=2)
