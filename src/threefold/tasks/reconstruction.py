"""Reconstruction of the network's input image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from threefold.core.batch import Batch
from threefold.core.outputs import Head, Outputs
from threefold.evaluation.reconstruction import psnr
from threefold.experiment import ReconstructionSpec
from threefold.tasks.task import Task, TaskContext


class ReconstructionTask(Task):
    """Mean squared (mse) or absolute (l1) difference of reconstruction and input image, per case.

    The mean is over channels and voxels, padding included. Every case has its image, so every case counts.
    """

    metrics = ReconstructionSpec.metrics

    def __init__(self, context: TaskContext, spec: ReconstructionSpec) -> None:
        """Create the task from its settings."""
        super().__init__(context)
        self._loss = spec.loss

    @property
    def head(self) -> Head:
        """Return an image like the input."""
        return Head("restored", self.context.channels)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the loss of each case (B,), from the restored image (B, C, *S)."""
        difference = F.mse_loss if self._loss == "mse" else F.l1_loss
        restored = self.output(outputs)
        return difference(restored, batch.image.float(), reduction="none").flatten(1).mean(dim=1)

    def record(self, outputs: Outputs, batch: Batch) -> list[float]:
        """Return each case's PSNR, dB."""
        restored, truth = self.output(outputs).cpu().numpy(), batch.image.cpu().numpy()
        return [psnr(a, b) for a, b in zip(truth, restored, strict=True)]

    def measure(self, records: Sequence[float]) -> dict[str, float]:
        """Return the mean PSNR, dB."""
        return {"psnr": float(np.mean(records)) if records else float("nan")}
