"""From an experiment to tasks and weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from threefold.cohorts.cohort import Case, CohortSpec
from threefold.core.batch import Batch, Target
from threefold.core.outputs import Outputs
from threefold.errors import ExperimentError
from threefold.experiment import Experiment, RampSpec
from threefold.tasks.build import build_network, build_tasks, task_weight, task_weights

from .makers import batch_of, case_losses, everywhere, region

COHORT = CohortSpec.model_validate(
    {
        "name": "c",
        "modality": "mri",
        "dimensions": 2,
        "classes": ["no", "yes"],
        "mask": {},
        "structures": ["x", "y"],
        "targets": {
            "grade": {"kind": "class", "classes": ["low", "mid", "high"]},
            "findings": {"kind": "multilabel", "classes": ["f", "g"]},
            "age": {"kind": "number", "unit": "weeks"},
            "other": {"kind": "mask"},
        },
    }
)


def experiment(**tasks: object) -> Experiment:
    network = {
        "kind": "swin-unet",
        "encoder": {"embed_dim": 6, "depths": [1, 1], "heads": [1, 2], "window": 4},
    }
    return Experiment.model_validate({"name": "x", "tasks": tasks, "network": network})


def cases(name: str, values: Sequence[Any]) -> list[Case]:
    """Return cases of which a target alone is known; None: it is not."""
    return [
        Case(f"{i}", f"{i}", "s", Path("image"), targets={} if value is None else {name: value})
        for i, value in enumerate(values)
    ]


def test_tasks_come_in_the_experiments_order() -> None:
    everything = experiment(reconstruction={}, segmentation={}, classification={})
    tasks = build_tasks(everything, COHORT)
    assert tuple(task.name for task in tasks) == tuple(everything.tasks)
    assert [task.name for task in build_tasks(experiment(segmentation={}), COHORT)] == ["segmentation"]


@pytest.mark.parametrize(("weights", "ratio"), [("none", 1.0), ("balanced", 9.0)])
def test_class_counts_weigh_only_where_asked(weights: str, ratio: float) -> None:
    known = cases("label", [0] * 90 + [1] * 10 + [None] * 7)
    (task,) = build_tasks(experiment(classification={"class_weights": weights}), COHORT, known)
    batch = batch_of(torch.zeros(2, 1, 1, 1), label=everywhere(torch.tensor([0, 1])))
    losses = task.losses(Outputs({"classification": torch.zeros(2, 2)}), batch)
    assert (losses[1] / losses[0]).item() == pytest.approx(ratio)


def test_each_task_has_its_own_target_and_head() -> None:
    named = experiment(
        diagnosis={"kind": "classification", "target": "label"},
        grade={"kind": "classification", "target": "grade"},
        findings={"kind": "multilabel"},
        age={"kind": "regression"},
        vessels={"kind": "segmentation", "target": "structures"},
        lesion={"kind": "segmentation", "target": "other"},
        region={"target": "mask"},
    )
    tasks = {task.name: task for task in build_tasks(named, COHORT)}
    assert {name: task.target for name, task in tasks.items()} == {
        "diagnosis": "label",
        "grade": "grade",
        "findings": "findings",
        "age": "age",
        "vessels": "structures",
        "lesion": "other",
        "region": "mask",
    }
    outputs = build_network(named, COHORT)(torch.rand(2, 1, 16, 16))
    assert {name: out.shape[1] for name, out in outputs.heads.items()} == {
        "diagnosis": 2,
        "grade": 3,
        "findings": 2,
        "age": 1,
        "vessels": 3,
        "lesion": 2,
    }


def test_the_unit_of_a_number_travels_with_the_weights() -> None:
    aged = experiment(age={"kind": "regression"})
    tasks = build_tasks(aged, COHORT, cases("age", [30.0, None, 34.0, 38.0]))
    trained = build_network(aged, COHORT, tasks)
    head = trained.get_submodule("heads.age")
    assert (head.mean.item(), head.deviation.item()) == pytest.approx((34, (32 / 3) ** 0.5))
    read = build_network(aged, COHORT)
    read.load_state_dict(trained.state_dict())
    image = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(
        read.eval()(image).heads["age"], trained.eval()(image).heads["age"], rtol=0, atol=0
    )


def test_two_regions_of_one_segmentation_are_held_against_their_own_masks() -> None:
    both = experiment(
        segmentation={"target": "structures"},
        inner={"kind": "region", "target": "mask"},
        outer={"kind": "region", "target": "other"},
    )
    tasks = build_tasks(both, COHORT)
    generator = torch.Generator().manual_seed(0)

    def labels(count: int) -> Target:
        return everywhere(torch.randint(count, (2, 5, 4), generator=generator, dtype=torch.uint8))

    batch = batch_of(torch.zeros(2, 1, 5, 4), structures=labels(3), mask=labels(2), other=labels(2))
    outputs = Outputs({"segmentation": torch.randn(2, 3, 5, 4, generator=generator)})
    _, inner, outer = (case_losses(task, outputs, batch) for task in tasks)

    def alone(name: str) -> Tensor:
        targets = {"structures": batch.targets["structures"], "mask": batch.targets[name]}
        return case_losses(region(), outputs, Batch(batch.case_ids, batch.image, targets))

    torch.testing.assert_close(inner, alone("mask"))
    torch.testing.assert_close(outer, alone("other"))
    assert not torch.allclose(inner, outer)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"age": {"kind": "regression", "target": "label"}}, "kind number, but 'label' .* is of kind class"),
        ({"age": {"kind": "regression", "target": "weight"}}, "no such target; it has label \\(class\\)"),
        ({"multilabel": {"target": "age"}}, "kind multilabel, but 'age' .* is of kind number"),
    ],
)
def test_a_target_that_the_task_cannot_learn_is_refused(tasks: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        build_tasks(experiment(**tasks), COHORT)


def test_of_several_targets_one_has_to_be_named() -> None:
    several = COHORT.model_copy(update={"targets": {**COHORT.targets, "weight": COHORT.targets["age"]}})
    assert "all_targets" not in vars(several)
    with pytest.raises(ExperimentError, match=r"several of kind number: age, weight.*tasks.size.target"):
        build_tasks(experiment(size={"kind": "regression"}), several)


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
