"""Classification of the diagnosis: softmax cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from threefold.experiment import ClassificationSpec
from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs
from threefold.tasks.task import CaseLosses, case_losses, head_output


class ClassificationTask:
    """Cross-entropy of softmax(logits) with the label, per case.

    For a case of class y, with class weights w and label smoothing e over K classes:
    loss = (1 - e) w_y (-log p_y) + e/K sum_k w_k (-log p_k).
    """

    name = "classification"

    def __init__(self, spec: ClassificationSpec, class_weights: Tensor | None = None) -> None:
        """Make the task.

        Args:
            spec: what the experiment says.
            class_weights: (K,) weight of each class; None weighs all classes 1.
        """
        self._smoothing = spec.label_smoothing
        self._class_weights = class_weights

    def losses(self, outputs: Outputs, batch: Batch) -> CaseLosses:
        """Return the cross-entropy of each case from outputs.classes (B, K)."""
        logits = head_output(outputs.classes, self.name)
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(logits)  # moves once, then returns itself
        present = batch.has_label
        values = F.cross_entropy(
            logits,
            batch.label.where(present, 0),
            weight=self._class_weights,
            label_smoothing=self._smoothing,
            reduction="none",
        )
        return case_losses(values, present)


def balanced_class_weights(class_counts: Sequence[int]) -> Tensor:
    """Return (K,) weights inverse to the classes' frequency, whose mean over the counted cases is 1.

    w_k = n / (m n_k), with n cases and m classes that have any. A class without a case weighs 1.
    """
    counts = torch.tensor(class_counts, dtype=torch.float64)
    seen = counts > 0
    weights = counts.sum() / (seen.sum().clamp(min=1) * counts.clamp(min=1))
    return weights.where(seen, 1.0).float()
