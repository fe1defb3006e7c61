"""What a task is: the head it needs, which cases teach it, a loss per case, what it answers and measures."""

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
    """What a task is made for.

    Attributes:
        name: of the task in its experiment.
        target: name of the target that it learns; None: it learns from the image alone.
        known: what that target is.
        values: of the target, one for each training case that has it; empty where a trained network is read.
        channels: of the network's input.
    """

    name: str
    target: str | None = None
    known: TargetSpec | None = None
    values: Sequence[TargetValue] = field(default=())
    channels: int = 1


class Task(ABC):
    """Something that is learned.

    A subclass says what head it needs and what its loss is; what it answers, and what it measures on the
    validation part, it may say too.

    Attributes:
        metrics: names of what `measure` returns.
        name, target: see `TaskContext`.
    """

    metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, context: TaskContext) -> None:
        """Keep what the task is made for."""
        self.context = context
        self.name, self.target = context.name, context.target

    @property
    @abstractmethod
    def head(self) -> Head | None:
        """What the network has to give under the task's name; None: nothing."""

    @abstractmethod
    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return (B,) float32, the loss of each case; those of cases without the target count for nothing.

        Raises:
            ValueError: if the network has no head for this task.
        """

    def present(self, batch: Batch) -> Tensor:
        """Return (B,) bool: which cases teach the task."""
        if self.target is None:
            return torch.ones(len(batch), dtype=torch.bool, device=batch.image.device)
        return batch.targets[self.target].known()

    def answer(self, output: Tensor) -> Tensor:
        """Return what is said of each case, from the head's output (B, outputs, ...)."""
        return output

    def columns(self, answer: NDArray[np.float64], truth: TargetValue | None) -> dict[str, Any]:
        """Return what a table of predictions says of one case: the truth, and the answer of a pooled head.

        Args:
            answer: (outputs,).
            truth: the case's value of the target; None: not known.
        """
        return {f"output_{i}": value for i, value in enumerate(answer.tolist())}

    def record(self, outputs: Outputs, batch: Batch) -> list[Any]:
        """Return, for each of the B cases, what `measure` needs of it: plain data, sent between processes."""
        return [None] * len(batch)

    def measure(self, records: Sequence[Any]) -> Mapping[str, float]:
        """Return the metrics of a validation part from the records of its cases; NaN: not estimable."""
        return {}

    def output(self, outputs: Outputs) -> Tensor:
        """Return the output of the task's head as float32, whatever precision the network ran in.

        Raises:
            ValueError: if the network has no such head.
        """
        if self.name not in outputs.heads:
            raise ValueError(
                f"the {self.name} task needs a network with a head for it, this network has none"
            )
        return outputs.heads[self.name].float()
