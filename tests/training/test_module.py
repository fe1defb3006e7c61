"""The learner's losses: partial labels, how a step's cases are spread, non-finite ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from threefold.cohorts.cohort import CohortSpec
from threefold.core.batch import Batch, Sample, collate
from threefold.core.outputs import Outputs
from threefold.core.targets import MaskSpec
from threefold.errors import ExperimentError
from threefold.experiment import BalancingSpec, Experiment
from threefold.tasks.balancing import build_balancer
from threefold.tasks.build import build_tasks
from threefold.training.data import epoch_steps
from threefold.training.module import Learner, StepLosses, non_finite_cases, shared_parameter, step_total

COHORT = CohortSpec(name="x", modality="ct", dimensions=2, classes=("no", "yes"), mask=MaskSpec())
TASKS = {"classification": {}, "segmentation": {}, "reconstruction": {}}
WEIGHTS = {"classification": 0.3, "segmentation": 1.0, "reconstruction": 0.4}


class Toy(nn.Module):
    """A head per task and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.classification = nn.Linear(16, 2)
        self.segmentation = nn.Conv2d(1, 2, 1)
        self.reconstruction = nn.Conv2d(1, 1, 1)

    def forward(self, image: Tensor) -> Outputs:
        return Outputs(
            {
                "classification": self.classification(image.flatten(1)),
                "segmentation": self.segmentation(image),
                "reconstruction": self.reconstruction(image),
            }
        )


def _learner(method: str = "fixed") -> Learner:
    torch.manual_seed(0)
    experiment = Experiment.model_validate({"name": "toy", "tasks": TASKS})
    balancer = build_balancer(BalancingSpec.model_validate({"method": method}), tuple(TASKS))
    return Learner(Toy(), build_tasks(experiment, COHORT), balancer, bf16=False).double()


def _batch(count: int, *, masks: bool = True, labels: bool = True) -> Batch:
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            f"case-{i}",
            rng.random((1, 4, 4), dtype=np.float32),
            {
                **({"mask": rng.integers(0, 2, (4, 4)).astype(np.uint8)} if masks and i % 3 else {}),
                **({"label": i % 2} if labels and i % 4 else {}),
            },
        )
        for i in range(count)
    ]
    batch = collate(samples, COHORT.all_targets)
    return replace(batch, image=batch.image.double())


def _part(batch: Batch, cases: slice) -> Batch:
    return replace(batch.map(lambda tensor: tensor[cases]), case_ids=batch.case_ids[cases])


def _counts(batch: Batch) -> Tensor:
    return _learner().present(batch).sum(dim=1)


def _gradients(
    learner: Learner,
    parts: list[Batch],
    counts: Tensor,
    world: int = 1,
    counted: Sequence[bool] | None = None,
) -> dict[str, Tensor]:
    learner.zero_grad()
    for number, part in enumerate(parts):
        losses = StepLosses(**learner(**part.as_plain()))
        if counted is not None and not counted[number]:
            losses = losses.uncounted()
        step_total(learner, losses, counts, weights=WEIGHTS, batches=len(parts), world=world).backward()
    return {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ["fixed", "uncertainty"])
def test_accumulated_batches_give_the_gradient_of_the_whole(method: str) -> None:
    learner, batch = _learner(method), _batch(12)
    counts = _counts(batch)
    whole = _gradients(learner, [batch], counts)
    # Uneven on purpose: one part has no label, another one mask.
    parts = _gradients(learner, [_part(batch, s) for s in (slice(0, 1), slice(1, 4), slice(4, 12))], counts)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", ["fixed", "uncertainty"])
def test_the_mean_over_ranks_is_the_gradient_of_the_whole(method: str) -> None:
    learner, batch = _learner(method), _batch(12)
    counts = _counts(batch)
    whole = _gradients(learner, [batch], counts)
    ranks = [_gradients(learner, [_part(batch, s)], counts, world=2) for s in (slice(0, 6), slice(6, 12))]
    for name, gradient in whole.items():
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["fixed", "uncertainty"])
@pytest.mark.parametrize(("cases", "world"), [(12, 2), (11, 2), (9, 4), (1, 2), (2, 4)])
def test_a_last_step_that_does_not_divide_has_the_gradient_of_one_process(
    method: str, cases: int, world: int
) -> None:
    batch, learner = _batch(cases), _learner(method)
    counts = _counts(batch)
    whole = _gradients(learner, [batch], counts)
    (step,) = epoch_steps(range(cases), batch_size=3, accumulate=2, world=world)
    ranks = []
    for parts in step:
        own = [part or step[0][0][:1] for part in parts]  # another rank's case, which does not count
        slices = [_part(batch, slice(part[0], part[-1] + 1)) for part in own]
        counted = [bool(part) for part in parts]
        ranks.append(_gradients(learner, slices, counts, world, counted))
    for name, gradient in whole.items():
        mean = torch.stack([rank[name] for rank in ranks]).mean(dim=0)
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-6)


def test_the_total_is_the_weighted_sum_of_the_means_over_present_cases() -> None:
    learner, batch = _learner(), _batch(12)
    losses = StepLosses(**learner(**batch.as_plain()))
    total = step_total(learner, losses, _counts(batch), weights=WEIGHTS, batches=1, world=1)
    means = [values[there].mean() for values, there in zip(losses.values, losses.present, strict=True)]
    expected = sum(weight * mean for weight, mean in zip(WEIGHTS.values(), means, strict=True))
    torch.testing.assert_close(total, expected, check_dtype=False)


@pytest.mark.parametrize("method", ["fixed", "uncertainty"])
def test_a_batch_without_a_target_adds_exactly_zero_and_a_gradient_of_zeros(method: str) -> None:
    learner, batch = _learner(method), _batch(6, masks=False, labels=False)
    losses = StepLosses(**learner(**batch.as_plain()))
    assert losses.values[0].abs().sum() == 0
    assert losses.values[1].abs().sum() == 0
    assert losses.anchor == 0
    gradients = _gradients(learner, [batch], _counts(batch))
    # There, so that every rank reduces the same gradients; zero, so that nothing moves.
    assert gradients["network.classification.weight"].abs().sum() == 0
    assert gradients["network.segmentation.weight"].abs().sum() == 0
    assert gradients["network.reconstruction.weight"].abs().sum() > 0


def test_cases_with_a_non_finite_loss_are_named_by_task() -> None:
    learner, batch = _learner(), _batch(6)
    image = batch.image.clone()
    image[2, 0, 1, 1] = torch.inf
    losses = StepLosses(**learner(**replace(batch, image=image).as_plain()))
    found = non_finite_cases(learner, losses, batch.case_ids)
    assert "reconstruction: case-2" in found
    assert "segmentation: case-2" in found
    assert all("case-1" not in line for line in found)
    assert non_finite_cases(learner, StepLosses(**learner(**batch.as_plain())), batch.case_ids) == []


def test_bf16_runs_the_network_low_and_the_losses_in_float32() -> None:
    learner = _learner().float()
    low = Learner(learner.network, learner.tasks, learner.balancer, bf16=True)
    batch = _batch(6)
    image = batch.image.float()
    exact, rough = learner.predict(image), low.predict(image)
    exactly, roughly = exact.heads["classification"], rough.heads["classification"]
    assert roughly.dtype == torch.float32
    assert not torch.equal(exactly, roughly)
    torch.testing.assert_close(roughly, exactly, rtol=0.02, atol=0.02)


def test_what_is_present_is_known_before_the_network_is_asked() -> None:
    learner, batch = _learner(), _batch(6)
    found = dict(zip(learner.names, learner.present(batch).tolist(), strict=True))
    assert found == {
        "classification": [i % 4 != 0 for i in range(6)],
        "segmentation": [i % 3 != 0 for i in range(6)],
        "reconstruction": [True] * 6,
    }


def test_gradnorm_needs_a_network_that_names_what_its_tasks_share() -> None:
    with pytest.raises(ExperimentError, match="which Toy does not name; use uncertainty"):
        shared_parameter(Toy())
