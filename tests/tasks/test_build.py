"""From an experiment to tasks and weights."""

from __future__ import annotations

import pytest
import torch

from threefold.experiment import Experiment, RampSpec
from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs
from threefold.tasks.build import build_tasks, task_weight, task_weights


def experiment(**tasks: object) -> Experiment:
    return Experiment.model_validate({"name": "x", "tasks": tasks})


def test_tasks_come_in_the_experiments_order() -> None:
    everything = experiment(reconstruction={}, segmentation={}, classification={})
    tasks = build_tasks(everything, class_counts=(3, 4))
    assert tuple(task.name for task in tasks) == everything.tasks.names
    assert [task.name for task in build_tasks(experiment(segmentation={}), class_counts=())] == [
        "segmentation"
    ]


@pytest.mark.parametrize(("weights", "ratio"), [("none", 1.0), ("balanced", 9.0)])
def test_class_counts_weigh_only_where_asked(weights: str, ratio: float) -> None:
    (task,) = build_tasks(experiment(classification={"class_weights": weights}), class_counts=(90, 10))
    yes = torch.ones(2, dtype=torch.bool)
    nothing = torch.zeros(2, 1, 1, dtype=torch.uint8)
    batch = Batch(("a", "b"), nothing[:, None].float(), torch.tensor([0, 1]), yes, nothing, yes, nothing, yes)
    values = task.losses(Outputs(classes=torch.zeros(2, 2)), batch).values
    assert (values[1] / values[0]).item() == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.0), (49, 0.0), (50, 0.05), (125, 0.1), (499, 0.45), (599, 0.5)]
)
def test_ramp_grows_in_steps_to_its_limit(epoch: int, expected: float) -> None:
    ramp = RampSpec(start=0, step=0.05, every=50, limit=0.5)
    assert task_weight(ramp, epoch) == pytest.approx(expected)


def test_a_falling_ramp_stops_at_zero_and_a_number_stays() -> None:
    assert task_weight(RampSpec(start=1, step=-0.6, every=1), 5) == 0
    assert task_weight(0.3, 77) == 0.3


def test_weights_by_name() -> None:
    weighted = experiment(
        classification={"weight": 0.3}, segmentation={"weight": {"start": 0, "step": 0.1, "every": 2}}
    )
    assert task_weights(weighted, 4) == {"classification": 0.3, "segmentation": pytest.approx(0.2)}
