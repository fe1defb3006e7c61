"""Findings that are not mutually exclusive: binary cross-entropy of each."""

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
from threefold.core.targets import MultilabelTarget
from threefold.evaluation import classification
from threefold.evaluation.predictions import probability_column
from threefold.experiment import MultilabelSpec
from threefold.tasks.task import Task, TaskContext

Record = tuple[tuple[float, ...], tuple[float, ...]]


class MultilabelTask(Task):
    """Mean of the binary cross-entropies of a case's known findings, from one logit each.

    Balanced, a finding that m of its n known training cases have weighs n / 2m where it is there and
    n / 2(n - m) where it isn't.
    """

    metrics = MultilabelSpec.metrics

    def __init__(self, context: TaskContext, spec: MultilabelSpec) -> None:
        """Create the task from its settings."""
        super().__init__(context)
        assert isinstance(context.known, MultilabelTarget)
        self.known = context.known
        self._weights: Tensor | None = None
        if spec.class_weights == "balanced":
            self._weights = _balanced_weights(context.values, len(self.known.classes))

    @property
    def head(self) -> Head:
        """Return one output per finding."""
        return Head("pooled", len(self.known.classes))

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the loss of each case (B,), from logits (B, K); unknown findings are ignored."""
        logits = self.output(outputs)
        assert self.target is not None
        target = batch.targets[self.target]
        each = F.binary_cross_entropy_with_logits(logits, target.values, reduction="none")  # (B, K)
        if self._weights is not None:
            self._weights = self._weights.to(logits)
            each = each * torch.where(target.values > 0, self._weights[1], self._weights[0])
        known = target.present
        return each.where(known, 0.0).sum(dim=1) / known.sum(dim=1).clamp(min=1)

    def answer(self, output: Tensor) -> Tensor:
        """Return the probability of each finding (B, K) float64."""
        return output.double().sigmoid()

    def columns(self, answer: NDArray[np.float64], truth: tuple[bool | None, ...] | None) -> dict[str, Any]:
        """Return truth_FINDING (1, 0, empty: unknown) and one probability per finding."""
        names = self.known.classes
        known = (None,) * len(names) if truth is None else truth
        told = {
            f"truth_{name}": "" if one is None else int(one) for name, one in zip(names, known, strict=True)
        }
        found = {probability_column(name): value for name, value in zip(names, answer.tolist(), strict=True)}
        return {**told, **found}

    def record(self, outputs: Outputs, batch: Batch) -> list[Record]:
        """Return each case's findings (1, 0, or NaN if unknown) and their probabilities."""
        assert self.target is not None
        target = batch.targets[self.target]
        truths = target.values.where(target.present, math.nan).tolist()
        rows = self.answer(self.output(outputs)).tolist()
        return [(tuple(truth), tuple(row)) for truth, row in zip(truths, rows, strict=True)]

    def measure(self, records: Sequence[Record]) -> dict[str, float]:
        """Return the mean over findings of AUC and of average precision, of those that can be estimated."""
        truths = np.array([truth for truth, _ in records], np.float64).reshape(-1, len(self.known.classes))
        probabilities = np.array([row for _, row in records], np.float64).reshape(truths.shape)
        found: dict[str, list[float]] = {"auc": [], "average_precision": []}
        for truth, scores in zip(truths.T, probabilities.T, strict=True):
            known = ~np.isnan(truth)
            positive = truth[known] == 1
            if positive.any() and not positive.all():
                found["auc"].append(classification.auc(positive, scores[known]))
                found["average_precision"].append(classification.average_precision(positive, scores[known]))
        return {name: float(np.mean(values)) if values else math.nan for name, values in found.items()}


def _balanced_weights(values: Sequence[tuple[bool | None, ...]], count: int) -> Tensor:
    """Return (2, K) weights of a finding that is absent and one that is there; 1 where one never occurs."""
    there = torch.tensor([sum(row[k] is True for row in values) for k in range(count)], dtype=torch.float64)
    absent = torch.tensor([sum(row[k] is False for row in values) for k in range(count)], dtype=torch.float64)
    both = (there > 0) & (absent > 0)
    known = there + absent
    return torch.stack(
        [torch.where(both, known / (2 * n.clamp(min=1)), 1.0) for n in (absent, there)]
    ).float()
