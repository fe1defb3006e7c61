"""Validation metrics over all cases against scikit-learn and plain numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from torch import nn

from threefold.cohorts.cohort import CohortSpec
from threefold.core.targets import MaskSpec
from threefold.errors import TrainingError
from threefold.experiment import Experiment
from threefold.tasks.balancing import FixedBalancer
from threefold.tasks.build import build_tasks
from threefold.tasks.segmentation import dices
from threefold.training.module import Learner
from threefold.training.validation import (
    CaseRecord,
    gather_records,
    refuse_non_finite,
    validation_metrics,
)

WEIGHTS = {"classification": 0.3, "segmentation": 1.0, "reconstruction": 0.4}


def _metrics(
    records: dict[str, CaseRecord],
    *classes: str,
    positive: str | None = None,
    weights: Any = None,
    metric: str = "loss",
) -> dict[str, float]:
    spec = CohortSpec(
        name="x", modality="ct", dimensions=2, classes=classes, positive=positive, mask=MaskSpec()
    )
    weights = weights or WEIGHTS
    selection = {"selection": {"metric": metric}}
    experiment = Experiment.model_validate(
        {"name": "x", "tasks": {task: {} for task in weights}, "training": selection}
    )
    learner = Learner(nn.Identity(), build_tasks(experiment, spec), FixedBalancer(tuple(weights)), bf16=False)
    return validation_metrics(records, learner, experiment, weights)


def _records(classes: int, count: int = 30) -> dict[str, CaseRecord]:
    rng = np.random.default_rng(classes)
    records = {}
    for i in range(count):
        p = rng.dirichlet(np.ones(classes))
        losses = {"reconstruction": float(rng.random())}
        kept: dict[str, Any] = {"reconstruction": 20.0 + i}
        if i % 3:
            losses["segmentation"] = float(rng.random())
        if i % 5:
            losses["classification"] = float(rng.random())
            kept["classification"] = (int(rng.integers(classes)), tuple(float(x) for x in p))
        if i % 3:
            kept["segmentation"] = float(rng.random())
        records[f"{i:02d}"] = CaseRecord(losses=losses, records=kept)
    return records


def _labelled(records: dict[str, CaseRecord]) -> tuple[list[int], list[tuple[float, ...]]]:
    found = [one.records["classification"] for one in records.values() if "classification" in one.records]
    return [label for label, _ in found], [row for _, row in found]


def test_two_classes() -> None:
    records = _records(2)
    found = _metrics(records, "no", "yes")
    truth, rows = _labelled(records)
    score = [row[1] for row in rows]
    assert found["auc"] == pytest.approx(roc_auc_score(truth, score))
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, score))
    assert found["psnr"] == pytest.approx(np.mean([r.records["reconstruction"] for r in records.values()]))
    dice = [r.records["segmentation"] for r in records.values() if "segmentation" in r.records]
    assert found["dice"] == pytest.approx(np.mean(dice))
    means = {
        task: np.mean([r.losses[task] for r in records.values() if task in r.losses]) for task in WEIGHTS
    }
    assert found["loss_segmentation"] == pytest.approx(means["segmentation"])
    assert found["loss"] == pytest.approx(sum(WEIGHTS[task] * mean for task, mean in means.items()))


def test_every_task_has_a_say_where_tasks_select() -> None:
    records = _records(2)
    found = _metrics(records, "no", "yes", metric="tasks")
    assert found["tasks"] == pytest.approx((found["auc"] + found["dice"]) / 2)
    assert "tasks" not in _metrics(records, "no", "yes")
    masked = {name: one for name, one in records.items() if "classification" not in one.records}
    assert _metrics(masked, "no", "yes", metric="tasks")["tasks"] == _metrics(masked, "no", "yes")["dice"]
    with pytest.raises(ValueError, match="tasks, the mean of auc, dice and r2, but no task gives one"):
        _metrics(records, "no", "yes", metric="tasks", weights={"reconstruction": 1.0})


def test_the_positive_class_is_the_cohorts() -> None:
    records = _records(2)
    assert _metrics(records, "no", "yes", positive="no")["average_precision"] != pytest.approx(
        _metrics(records, "no", "yes")["average_precision"]
    )


def test_three_classes_are_averaged_one_against_the_rest() -> None:
    records = _records(3)
    truth, scores = _labelled(records)
    found = _metrics(records, "a", "b", "c")
    assert found["auc"] == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr"))


@pytest.mark.parametrize("classes", [2, 3])
def test_balanced_accuracy_is_of_the_most_probable_class(classes: int) -> None:
    records = _records(classes)
    labels, rows = _labelled(records)
    decided = [int(np.argmax(row)) for row in rows]
    found = _metrics(records, *"abc"[:classes])["balanced_accuracy"]
    assert found == pytest.approx(balanced_accuracy_score(labels, decided))
    without_last = {
        name: one
        for name, one in records.items()
        if "classification" not in one.records or one.records["classification"][0] != classes - 1
    }
    missing = _metrics(without_last, *"abc"[:classes])["balanced_accuracy"]
    assert math.isnan(missing)


def test_one_class_is_not_estimable_and_not_zero() -> None:
    records = {"a": CaseRecord({"classification": 0.5}, {"classification": (1, (0.2, 0.8))})}
    found = _metrics(records, "no", "yes", weights={"classification": 1.0})
    assert math.isnan(found["auc"])
    assert found["loss"] == 0.5


def test_a_task_without_a_target_is_left_out_of_the_loss() -> None:
    records = {"a": CaseRecord({"reconstruction": 0.5}, {"reconstruction": 20.0})}
    found = _metrics(records, "no", "yes")
    assert found["loss"] == pytest.approx(0.4 * 0.5)
    assert math.isnan(found["loss_segmentation"])
    assert math.isnan(found["dice"])


def test_dice_of_a_case_averages_the_labels_that_it_has() -> None:
    truth = torch.tensor([[[0, 1, 1, 2]], [[0, 0, 0, 0]], [[1, 1, 0, 0]], [[1, 1, 1, 1]]])  # (B, 1, 4)
    guess = torch.tensor([[[0, 1, 0, 2]], [[1, 0, 0, 0]], [[0, 0, 1, 1]], [[1, 1, 1, 1]]])
    logits = torch.nn.functional.one_hot(guess, 3).movedim(-1, 1).float()
    found = dices(logits[:3], truth[:3])
    assert found[0] == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(found[1])  # nothing there: no Dice
    assert found[2] == 0  # missed, and counted


def test_a_non_finite_loss_names_task_and_case() -> None:
    records = {"a": CaseRecord({"segmentation": 0.5}), "b": CaseRecord({"segmentation": math.nan})}
    with pytest.raises(TrainingError, match=r"segmentation: b\)"):
        refuse_non_finite(records, WEIGHTS)


def test_records_are_in_the_order_of_their_ids() -> None:
    records = {"b": CaseRecord({}), "a": CaseRecord({})}
    assert list(gather_records(records, 1)) == ["a", "b"]
