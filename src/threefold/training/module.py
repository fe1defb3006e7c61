"""The trained module: a network with its tasks, from a batch to the losses of its cases."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from threefold.core.batch import Batch
from threefold.core.outputs import Outputs
from threefold.errors import ExperimentError
from threefold.tasks.balancing import Balancer
from threefold.tasks.task import Task


@dataclass(frozen=True)
class StepLosses:
    """Losses of a batch of B cases for T tasks, in the order of the learner's tasks.

    Attributes:
        values: (T, B) loss per task and case; exactly 0 (and without gradient) where the target is absent.
        present: (T, B) bool.
        anchor: scalar, exactly 0, that depends on the features, which no task reads: with the values each
            parameter has a gradient at each step, whatever targets the batch carries, on every rank.
    """

    values: Tensor
    present: Tensor
    anchor: Tensor

    def uncounted(self) -> StepLosses:
        """Return losses that do not count: the gradient of each parameter is 0."""
        return StepLosses(0.0 * self.values, torch.zeros_like(self.present), self.anchor)

    def sums(self) -> Tensor:
        """Sum over the cases that carry the target: (T,)."""
        return self.values.sum(dim=1)


class Learner(nn.Module):
    """A network, its tasks and their balancer: everything with a gradient or a state.

    Args:
        network: from images (B, C, *S) to `Outputs`.
        tasks: their names are the keys of losses and weights.
        balancer: weighs the tasks' losses.
        bf16: run the network under autocast to bfloat16; losses stay float32.
    """

    def __init__(
        self, network: nn.Module, tasks: tuple[Task, ...], balancer: Balancer, *, bf16: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.tasks = tasks
        self.balancer = balancer
        self._bf16 = bf16

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(task.name for task in self.tasks)

    def forward(self, **fields: Any) -> dict[str, Tensor]:
        """Return the fields of `StepLosses` for `Batch.as_plain`.

        Plain tensors in and out: wrappers for several processes look into arguments and results, and do
        not know frozen dataclasses.
        """
        batch = Batch.from_plain(**fields)
        outputs = self.predict(batch.image)
        return vars(self._losses(outputs, batch))

    def present(self, batch: Batch) -> Tensor:
        """Return (T, B) bool: the cases that each task uses.

        Known before the forward pass, so that a loss can be divided by the number of cases over all ranks and
        accumulated batches.
        """
        return torch.stack([task.present(batch) for task in self.tasks])

    def _losses(self, outputs: Outputs, batch: Batch) -> StepLosses:
        present = self.present(batch)  # (T, B)
        losses = [
            task.losses(outputs, batch).where(there, 0.0)
            for task, there in zip(self.tasks, present, strict=True)
        ]
        anchor = 0.0 if outputs.features is None else outputs.features.float().sum()
        return StepLosses(torch.stack(losses), present, 0.0 * (anchor + losses[0].new_zeros(())))

    def predict(self, image: Tensor) -> Outputs:
        """Run the network on (B, C, *S) images; outputs are float32."""
        with torch.autocast(image.device.type, torch.bfloat16) if self._bf16 else nullcontext():
            outputs: Outputs = self.network(image)
        return outputs.map(Tensor.float) if self._bf16 else outputs

    def evaluate(self, batch: Batch) -> tuple[Outputs, StepLosses]:
        """Return outputs and losses, without gradients."""
        with torch.no_grad():
            outputs = self.predict(batch.image)
            return outputs, self._losses(outputs, batch)

    def shared(self) -> Tensor | None:
        """Return the parameter that every task's gradient passes through, where the balancer needs it."""
        if not self.balancer.needs_shared:
            return None
        return self.network.get_parameter(shared_parameter(self.network))


def shared_parameter(network: nn.Module) -> str:
    """Return the name of the last parameter that every task's gradient passes through.

    Raises:
        ExperimentError: the network names none.
    """
    named = getattr(network, "shared_parameter", None)
    name = named() if callable(named) else None
    if name is None:
        raise ExperimentError(
            "balancing.method gradnorm compares gradients at the layer that all tasks share, which "
            f"{type(network).__name__} does not name; use uncertainty."
        )
    return str(name)


def step_total(
    learner: Learner,
    losses: StepLosses,
    counts: Tensor,
    *,
    weights: Mapping[str, float],
    batches: int,
    world: int,
) -> Tensor:
    """Return this batch's share of the step's loss, to be differentiated.

    The gradients of a step's batches add up, and those of the ranks are averaged. So that the result is the
    gradient of the mean over all cases of the step, however they are spread over batches and ranks, a
    task's loss here is (sum over this batch's cases) / (cases with the target in the whole step) * world.

    Args:
        learner: gives the balancer.
        losses: this batch's.
        counts: (T,) cases with the target in the step, over its batches and all ranks.
        weights: of each task in this epoch.
        batches: this rank's number of batches in the step.
        world: number of ranks.
    """
    # The balancer sees the loss at its full size, whatever the number of batches: uncertainty's own term
    # and gradnorm's progress are not linear in it.
    means = losses.sums() / counts.clamp(min=1) * (world * batches)
    total = learner.balancer.total(
        dict(zip(learner.names, means.unbind(), strict=True)),
        weights,
        learner.shared() if learner.training else None,
        dict(zip(learner.names, (counts > 0).unbind(), strict=True)),
    )
    return total / batches + losses.anchor


def non_finite_cases(learner: Learner, losses: StepLosses, case_ids: tuple[str, ...]) -> list[str]:
    """Return "task: case, case" for each task with a loss that is not finite; empty when all are."""
    bad = ~losses.values.isfinite()
    if not bool(bad.any()):
        return []
    return [
        f"{name}: {', '.join(case for case, is_bad in zip(case_ids, row.tolist(), strict=True) if is_bad)}"
        for name, row in zip(learner.names, bad, strict=True)
        if bool(row.any())
    ]
