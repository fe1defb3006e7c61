"""What is trained: a network with its tasks, from a batch to the losses of its cases."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs
from threefold.tasks.balancing import Balancer
from threefold.tasks.task import CaseLosses, Task


@dataclass(frozen=True)
class StepLosses:
    """Losses of a batch of B cases for T tasks, in the order of the learner's tasks.

    Attributes:
        values: (T, B) loss per task and case; 0 where the target is absent.
        present: (T, B) bool.
        anchor: scalar, exactly 0, that depends on the features, which no task reads: with the values each
            parameter has a gradient at each step, whatever targets the batch carries, on every rank.
    """

    values: Tensor
    present: Tensor
    anchor: Tensor

    def uncounted(self) -> StepLosses:
        """Return the losses of cases that count for nothing; each parameter has a gradient of 0."""
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
        """Return the fields of `StepLosses` for the fields of a `Batch`.

        Plain tensors in and out: wrappers for several processes look into arguments and results, and do
        not know frozen dataclasses.
        """
        batch = Batch(**fields)
        outputs = self.predict(batch.image)
        losses = [task.losses(outputs, batch) for task in self.tasks]
        return vars(_stack(losses, outputs))

    def predict(self, image: Tensor) -> Outputs:
        """Run the network on (B, C, *S) images; outputs are float32."""
        with torch.autocast(image.device.type, torch.bfloat16) if self._bf16 else nullcontext():
            outputs: Outputs = self.network(image)
        if not self._bf16:
            return outputs
        return Outputs(**{k: v if v is None else v.float() for k, v in vars(outputs).items()})

    def evaluate(self, batch: Batch) -> tuple[Outputs, Mapping[str, CaseLosses]]:
        """Return outputs and losses by task, without gradients."""
        with torch.no_grad():
            outputs = self.predict(batch.image)
            return outputs, {task.name: task.losses(outputs, batch) for task in self.tasks}

    def shared(self) -> Tensor | None:
        """Return the parameter that every task's gradient passes through, where the balancer needs it."""
        return self.network.get_parameter("encoder.norm.weight") if self.balancer.needs_shared else None


def _stack(losses: list[CaseLosses], outputs: Outputs) -> StepLosses:
    features = losses[0].values.new_zeros(()) if outputs.features is None else outputs.features.float().sum()
    return StepLosses(
        values=torch.stack([loss.values for loss in losses]),  # (T, B)
        present=torch.stack([loss.present for loss in losses]),  # (T, B)
        anchor=0.0 * features,
    )


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
