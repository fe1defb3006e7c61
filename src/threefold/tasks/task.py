"""The interface of a task: its head, the cases it uses, its loss per case, its predictions and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threefold.core.batch import Batch
from threefold.core.outputs import Head, Outputs
from threefold.core.targets import TargetSpec, TargetValue


@dataclass(frozen=True)
class TaskContext:
    """The experiment and data for which a task is created.

    Attributes:
        name: name of the task in its experiment.
        target: name of its target; None: it learns from the image alone.
        known: specification of the target.
        values: values of the target in the training cases that have it; empty when a trained network is
            loaded.
        channels: channels of the network's input.
    """

    name: str
    target: str | None = None
    known: TargetSpec | None = None
    values: Sequence[TargetValue] = field(default=())
    channels: int = 1


class Task(ABC):
    """A learning task.

    A subclass defines its head and its loss, and optionally its predictions and its metrics on the validation
    part.

    Attributes:
        metrics: names of what `measure` returns.
        name, target: see `TaskContext`.
    """

    metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, context: TaskContext) -> None:
        """Store the context."""
        self.context = context
        self.name, self.target = context.name, context.target

    @property
    @abstractmethod
    def head(self) -> Head | None:
        """The head that the network provides under the task's name; None: no head."""

    @abstractmethod
    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return (B,) float32, the loss of each case; values for cases without the target are ignored.

        Raises:
            ValueError: if the network has no head for this task.
        """

    def present(self, batch: Batch) -> Tensor:
        """Return (B,) bool: the cases that the task uses."""
        if self.target is None:
            return torch.ones(len(batch), dtype=torch.bool, device=batch.image.device)
        return batch.targets[self.target].known()

    def answer(self, output: Tensor) -> Tensor:
        """Return the prediction of each case from the head's output (B, outputs, ...)."""
        return output

    def columns(self, answer: NDArray[np.float64], truth: TargetValue | None) -> dict[str, Any]:
        """Return the columns of one case in the table of predictions: the truth and a pooled head's answer.

        Args:
            answer: (outputs,).
            truth: the case's value of the target as the table has it; of a label map its path, for
                `images.reading.read_label_map`. None: unknown.
        """
        return {f"output_{i}": value for i, value in enumerate(answer.tolist())}

    def record(self, outputs: Outputs, batch: Batch) -> list[Any]:
        """Return, for each of the B cases, the data that `measure` needs: plain data, sent between
        processes."""
        return [None] * len(batch)

    def measure(self, records: Sequence[Any]) -> Mapping[str, float]:
        """Return the metrics of a validation part from the records of its cases; NaN: not estimable."""
        return {}

    def output(self, outputs: Outputs) -> Tensor:
        """Return the output of the task's head as float32, whatever the network's precision.

        Raises:
            ValueError: if the network has no such head.
        """
        if self.name not in outputs.heads:
            raise ValueError(
                f"the {self.name} task needs a network with a head for it, this network has none"
            )
        return outputs.heads[self.name].float()
