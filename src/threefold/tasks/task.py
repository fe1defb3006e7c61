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
        values: (B,) loss per case; exactly 0 (and without gradient) where the target is absent.
        present: (B,) bool, True where the case carries the target.
        terms: (B,) parts of `values` by name (for example cross_entropy, dice), unweighted, for the log.
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
    """A task: its name in experiments and logs, its loss, and what a network needs to serve it."""

    name: str

    def losses(self, outputs: Outputs, batch: Batch) -> CaseLosses:
        """Return the loss of each case; cases without the target count zero."""
        ...
