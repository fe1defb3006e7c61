"""Classification of the diagnosis: softmax cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from threefold.core.batch import Batch
from threefold.core.outputs import Head, Outputs
from threefold.core.targets import ClassTarget
from threefold.evaluation import classification
from threefold.evaluation.predictions import probability_column
from threefold.experiment import ClassificationSpec
from threefold.tasks.task import Task, TaskContext


class ClassificationTask(Task):
    """Cross-entropy of softmax(logits) with the class, per case.

    For a case of class y, with class weights w and label smoothing e over K classes:
    loss = (1 - e) w_y (-log p_y) + e/K sum_k w_k (-log p_k).
    """

    metrics = ClassificationSpec.metrics

    def __init__(self, context: TaskContext, spec: ClassificationSpec) -> None:
        """Make the task as the experiment says."""
        super().__init__(context)
        assert isinstance(context.known, ClassTarget)
        self.known = context.known
        self._smoothing = spec.label_smoothing
        self._class_weights: Tensor | None = None
        if spec.class_weights == "balanced":
            counts = [sum(value == k for value in context.values) for k in range(len(self.known.classes))]
            self._class_weights = balanced_class_weights(counts)

    @property
    def head(self) -> Head:
        """Return one output a class."""
        return Head("pooled", len(self.known.classes))

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the cross-entropy of each case (B,), from logits (B, K)."""
        logits = self.output(outputs)
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(logits)  # moves once, then returns itself
        assert self.target is not None
        target = batch.targets[self.target]
        return F.cross_entropy(
            logits,
            target.values.where(target.present, 0),
            weight=self._class_weights,
            label_smoothing=self._smoothing,
            reduction="none",
        )

    def answer(self, output: Tensor) -> Tensor:
        """Return the classes' probabilities (B, K) float64."""
        return output.double().softmax(dim=1)

    def columns(self, answer: NDArray[np.float64], truth: int | None) -> dict[str, Any]:
        """Return label (empty: not known) and a probability a class."""
        names = self.known.classes
        found = {probability_column(name): value for name, value in zip(names, answer.tolist(), strict=True)}
        return {"label": "" if truth is None else names[truth], **found}

    def record(self, outputs: Outputs, batch: Batch) -> list[tuple[int, tuple[float, ...]]]:
        """Return each case's class and probabilities."""
        assert self.target is not None
        rows = self.answer(self.output(outputs)).tolist()
        labels = batch.targets[self.target].values.tolist()
        return [(label, tuple(row)) for label, row in zip(labels, rows, strict=True)]

    def measure(self, records: Sequence[tuple[int, tuple[float, ...]]]) -> dict[str, float]:
        """Return AUC and average precision of the positive class (of more than two: the mean over each
        against the rest), and the mean recall of the most probable class."""
        labels = np.array([label for label, _ in records], np.int64)
        probabilities = np.array([row for _, row in records], np.float64)
        positive, count = self.known.positive_class, len(self.known.classes)
        asked = range(count) if positive is None else (positive,)
        found = {}
        for name, metric in (
            ("auc", classification.auc),
            ("average_precision", classification.average_precision),
        ):
            values = [metric(labels == k, probabilities[:, k]) for k in asked] if records else [math.nan]
            found[name] = float(np.mean(values))
        return {**found, "balanced_accuracy": _balanced_accuracy(labels, probabilities, count)}


def _balanced_accuracy(labels: NDArray[np.int64], probabilities: NDArray[np.float64], classes: int) -> float:
    """Return the mean recall of the most probable class; NaN where a class has no case."""
    if len({*labels.tolist()}) < classes:
        return math.nan
    right = probabilities.argmax(axis=1) == labels
    return float(np.mean([right[labels == k].mean() for k in range(classes)]))


def balanced_class_weights(class_counts: Sequence[int]) -> Tensor:
    """Return (K,) weights inverse to the classes' frequency, whose mean over the counted cases is 1.

    w_k = n / (m n_k), with n cases and m classes that have any. A class without a case weighs 1.
    """
    counts = torch.tensor(class_counts, dtype=torch.float64)
    seen = counts > 0
    weights = counts.sum() / (seen.sum().clamp(min=1) * counts.clamp(min=1))
    return weights.where(seen, 1.0).float()
