"""Regression of a number: absolute, squared or Huber loss in standard deviations of the training cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from threefold.core.batch import Batch
from threefold.core.outputs import Head, Outputs
from threefold.experiment import RegressionSpec
from threefold.tasks.task import Task, TaskContext

_LOSSES: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.huber_loss}


class RegressionTask(Task):
    """The loss of (prediction - truth) / s, s the standard deviation of the training cases.

    The head gives the number in its own unit: its last step multiplies by s and adds the training cases'
    mean, and both are kept with the network's weights.
    """

    metrics = RegressionSpec.metrics

    def __init__(self, context: TaskContext, spec: RegressionSpec) -> None:
        """Create the task from its settings."""
        super().__init__(context)
        self._loss = _LOSSES[spec.loss]
        values = np.array([*context.values], np.float64)
        self._mean = float(values.mean()) if values.size else 0.0
        spread = float(values.std()) if values.size else 1.0
        self._scale = spread if spread > 0 else 1.0

    @property
    def head(self) -> Head:
        """Return one output, in the target's unit."""
        return Head("pooled", 1, (self._mean, self._scale))

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the loss of each case (B,), from the number (B, 1) in its unit."""
        assert self.target is not None
        error = (self.output(outputs)[:, 0] - batch.targets[self.target].values) / self._scale
        return self._loss(error, error.new_zeros(error.shape), reduction="none")

    def answer(self, output: Tensor) -> Tensor:
        """Return the number (B, 1) float64 in its unit."""
        return output.double()

    def columns(self, answer: NDArray[np.float64], truth: float | None) -> dict[str, Any]:
        """Return truth (NaN: unknown) and predicted, in the target's unit."""
        return {"truth": math.nan if truth is None else truth, "predicted": float(answer[0])}

    def record(self, outputs: Outputs, batch: Batch) -> list[tuple[float, float]]:
        """Return each case's true and predicted number."""
        assert self.target is not None
        truths, found = batch.targets[self.target].values.tolist(), self.output(outputs)[:, 0].tolist()
        return [*zip(truths, found, strict=True)]

    def measure(self, records: Sequence[tuple[float, float]]) -> dict[str, float]:
        """Return mean absolute error and root mean squared error in the target's unit, and R2."""
        if not records:
            return dict.fromkeys(self.metrics, math.nan)
        truth, found = np.array(records, np.float64).T
        error, variance = found - truth, truth.var()
        squared = float((error**2).mean())
        return {
            "mae": float(np.abs(error).mean()),
            "rmse": math.sqrt(squared),
            "r2": float(1 - squared / variance) if variance > 0 else math.nan,
        }
