"""What a task is: a loss per case, over the cases that carry its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs


@dataclass(frozen=True)
class CaseLosses:
    """Losses of one task for a batch of B cases.

    Attributes:
        values: (B,) float32 loss per case; exactly 0 (and without gradient) where the target is absent.
        present: (B,) bool, True where the case carries the target.
    """

    values: Tensor
    present: Tensor


class Task(Protocol):
    """A task: its name in experiments and logs, and its loss."""

    @property
    def name(self) -> str:
        """Name in experiments, logs and tables."""
        ...

    def losses(self, outputs: Outputs, batch: Batch) -> CaseLosses:
        """Return the loss of each case; cases without the target count zero.

        Raises:
            ValueError: if the network has no head for this task.
        """
        ...


def case_losses(values: Tensor, present: Tensor) -> CaseLosses:
    """Zero `values` (B,) where the target is absent, and cut the gradient there."""
    return CaseLosses(values=values.where(present, 0.0), present=present)


def head_output(output: Tensor | None, task: str) -> Tensor:
    """Return a head's output as float32, whatever precision the network ran in.

    Raises:
        ValueError: if the network has no such head.
    """
    if output is None:
        raise ValueError(f"the {task} task needs a network with a head for it, this network has none")
    return output.float()
