"""Reconstruction: the network's input image again."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from threefold.experiment import ReconstructionSpec
from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs
from threefold.tasks.task import CaseLosses, case_losses, head_output


class ReconstructionTask:
    """Mean squared (mse) or absolute (l1) difference of reconstruction and input image, per case.

    The mean is over channels and voxels, padding included. Every case has its image, so every case counts.
    """

    name = "reconstruction"

    def __init__(self, spec: ReconstructionSpec) -> None:
        """Make the task as the experiment says."""
        self._loss = spec.loss

    def losses(self, outputs: Outputs, batch: Batch) -> CaseLosses:
        """Return the loss of each case from outputs.reconstruction (B, C, *S)."""
        reconstruction = head_output(outputs.reconstruction, self.name)
        difference = F.mse_loss if self._loss == "mse" else F.l1_loss
        values = difference(reconstruction, batch.image.float(), reduction="none").flatten(1).mean(dim=1)
        present = torch.ones(len(batch), dtype=torch.bool, device=values.device)
        return case_losses(values, present)
