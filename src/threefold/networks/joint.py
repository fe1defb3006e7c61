"""Joint-SwinTransformer (arXiv 2505.06185): a classifier on two encoders, one of them trained before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from threefold.core.outputs import Head, Outputs
from threefold.errors import WeightsError
from threefold.experiment import JointSwinSpec
from threefold.networks.cam import CamLayer
from threefold.networks.heads import apply_pooled, first_of, pooled_head
from threefold.networks.swin import SwinEncoder, initialise
from threefold.networks.swin_unet import SwinUnet


class JointSwin(nn.Module):
    """Classify by the pooled features of a frozen encoder, concatenated with those of a trained one.

    Args:
        spec: sizes of both encoders.
        in_channels: channels of the image.
        heads: by task, pooled ones alone.

    The frozen encoder holds random weights until `adopt` fills it.
    """

    def __init__(self, spec: JointSwinSpec, *, in_channels: int, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.encoder = SwinEncoder(spec.encoder, in_channels)
        self.frozen = SwinEncoder(spec.encoder, in_channels).requires_grad_(False).eval()
        self.kinds = dict(heads)
        self.heads = nn.ModuleDict(
            {name: pooled_head(2 * self.encoder.width, head) for name, head in heads.items()}
        )
        for head in self.heads.values():
            initialise(head, spec.encoder)

    def adopt(self, trained: SwinUnet | Mapping[str, Tensor]) -> None:
        """Fill the frozen encoder.

        Args:
            trained: the network that was trained before, or the state dict of its encoder.

        Raises:
            WeightsError: if its encoder is not of this network's size.
        """
        weights = trained.encoder.state_dict() if isinstance(trained, SwinUnet) else trained
        try:
            self.frozen.load_state_dict(weights)
        except RuntimeError as error:
            raise WeightsError(
                "the encoder that was trained before does not fit the joint network's frozen encoder; give "
                f"both experiments the same network.encoder and data.preprocessing. {error}"
            ) from error

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; the frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    def former_names(self) -> dict[str, str]:
        """Return how names of weights began in earlier versions, and begin now."""
        return {"classifier.": f"heads.{first_of(self.kinds, 'pooled')}."}

    def shared_parameter(self) -> str:
        """Return the last parameter that every task's gradient passes through."""
        return "encoder.norm.weight"

    def cam_layer(self) -> CamLayer:
        """Return the trained encoder's; what the frozen one contributes is in no map."""
        return self.encoder.cam_layer().within("encoder")

    def stage_layers(self) -> dict[str, str]:
        """Return the submodule of each stage of the trained encoder by the stage's name, finest first."""
        return {name: f"encoder.{module}" for name, module in self.encoder.stage_layers().items()}

    def forward(self, image: Tensor) -> Outputs:
        """(B, C, H, W) image to logits; the features are (B, 2F), the frozen encoder's first."""
        with torch.no_grad():
            before = self.frozen(image).pooled
        features = torch.cat((before, self.encoder(image).pooled), dim=1)  # (B, 2F)
        return Outputs(apply_pooled(self.heads, self.kinds, features), features)
