"""What a task is: a loss per case, over the cases that carry its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs


@dataclass(frozen=True)
class CaseLosses:
    """Losses of one task for a batch of B cases.

    Attributes:
        values: (B,) float32 loss per case; exactly 0 (and without gradient) where the target is absent.
        present: (B,) bool, True where the case carries the target.
        terms: (B,) parts of `values` by name (for example cross_entropy, dice), unweighted and detached,
            for the log; 0 where the target is absent.
    """

    values: Tensor
    present: Tensor
    terms: Mapping[str, Tensor]

    def mean(self, count: Tensor | None = None) -> Tensor:
        """Mean over the cases that carry the target; exactly 0 where none does.

        Args:
            count: number of such cases to divide by, where it is not this batch's own
                (over all ranks, or over accumulated batches).
        """
        if count is None:
            count = self.present.sum()
        return self.values.sum() / torch.clamp(count, min=1)


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


def case_losses(values: Tensor, present: Tensor, terms: Mapping[str, Tensor]) -> CaseLosses:
    """Zero `values` and `terms`, all (B,), where the target is absent, and cut the gradient there."""
    return CaseLosses(
        values=values.where(present, 0.0),
        present=present,
        terms={name: term.detach().where(present, 0.0) for name, term in terms.items()},
    )


def head_output(output: Tensor | None, task: str) -> Tensor:
    """Return a head's output as float32, whatever precision the network ran in.

    Raises:
        ValueError: if the network has no such head.
    """
    if output is None:
        raise ValueError(f"the {task} task needs a network with a head for it, this network has none")
    return output.float()
