"""Validation metrics over all cases against scikit-learn and plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from threefold.cohorts.cohort import CohortSpec, MaskSpec
from threefold.errors import TrainingError
from threefold.training.validation import (
    CaseRecord,
    _dices,
    gather_records,
    refuse_non_finite,
    validation_metrics,
)

WEIGHTS = {"classification": 0.3, "segmentation": 1.0, "reconstruction": 0.4}


def _spec(*classes: str) -> CohortSpec:
    return CohortSpec(name="x", modality="ct", dimensions=2, classes=classes, mask=MaskSpec())


def _records(classes: int, count: int = 30) -> dict[str, CaseRecord]:
    rng = np.random.default_rng(classes)
    records = {}
    for i in range(count):
        p = rng.dirichlet(np.ones(classes))
        losses = {"reconstruction": float(rng.random())}
        if i % 3:
            losses["segmentation"] = float(rng.random())
        if i % 5:
            losses["classification"] = float(rng.random())
        records[f"{i:02d}"] = CaseRecord(
            losses=losses,
            label=int(rng.integers(classes)) if i % 5 else None,
            probabilities=tuple(float(x) for x in p),
            dice=float(rng.random()) if i % 3 else math.nan,
            psnr=20 + i,
        )
    return records


def test_two_classes() -> None:
    records = _records(2)
    found = validation_metrics(records, _spec("no", "yes"), WEIGHTS)
    labelled = [r for r in records.values() if r.label is not None]
    truth, score = [r.label for r in labelled], [r.probabilities[1] for r in labelled]
    assert found["auc"] == pytest.approx(roc_auc_score(truth, score))
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, score))
    assert found["psnr"] == pytest.approx(np.mean([r.psnr for r in records.values()]))
    assert found["dice"] == pytest.approx(np.nanmean([r.dice for r in records.values()]))
    means = {
        task: np.mean([r.losses[task] for r in records.values() if task in r.losses]) for task in WEIGHTS
    }
    assert found["loss_segmentation"] == pytest.approx(means["segmentation"])
    assert found["loss"] == pytest.approx(sum(WEIGHTS[task] * mean for task, mean in means.items()))


def test_the_positive_class_is_the_cohorts() -> None:
    records = _records(2)
    spec = _spec("no", "yes").model_copy(update={"positive": "no"})
    assert validation_metrics(records, spec, WEIGHTS)["average_precision"] != pytest.approx(
        validation_metrics(records, _spec("no", "yes"), WEIGHTS)["average_precision"]
    )


def test_three_classes_are_averaged_one_against_the_rest() -> None:
    records = _records(3)
    labelled = [r for r in records.values() if r.label is not None]
    truth, scores = [r.label for r in labelled], [r.probabilities for r in labelled]
    found = validation_metrics(records, _spec("a", "b", "c"), WEIGHTS)
    assert found["auc"] == pytest.approx(roc_auc_score(truth, scores, multi_class="ovr"))


@pytest.mark.parametrize("classes", [2, 3])
def test_balanced_accuracy_is_of_the_most_probable_class(classes: int) -> None:
    records = _records(classes)
    labelled = [r for r in records.values() if r.label is not None]
    decided = [int(np.argmax(r.probabilities)) for r in labelled]
    found = validation_metrics(records, _spec(*"abc"[:classes]), WEIGHTS)["balanced_accuracy"]
    assert found == pytest.approx(balanced_accuracy_score([r.label for r in labelled], decided))
    without_last = {n: r for n, r in records.items() if r.label != classes - 1}
    missing = validation_metrics(without_last, _spec(*"abc"[:classes]), WEIGHTS)["balanced_accuracy"]
    assert math.isnan(missing)


def test_one_class_is_not_estimable_and_not_zero() -> None:
    records = {"a": CaseRecord({"classification": 0.5}, label=1, probabilities=(0.2, 0.8))}
    found = validation_metrics(records, _spec("no", "yes"), {"classification": 1.0})
    assert math.isnan(found["auc"])
    assert found["loss"] == 0.5


def test_a_task_without_a_target_is_left_out_of_the_loss() -> None:
    records = {"a": CaseRecord({"reconstruction": 0.5}, psnr=20.0)}
    found = validation_metrics(records, _spec("no", "yes"), WEIGHTS)
    assert found["loss"] == pytest.approx(0.4 * 0.5)
    assert math.isnan(found["loss_segmentation"])
    assert math.isnan(found["dice"])


def test_dice_of_a_case_averages_the_labels_that_it_has() -> None:
    truth = torch.tensor([[[0, 1, 1, 2]], [[0, 0, 0, 0]], [[1, 1, 0, 0]], [[1, 1, 1, 1]]])  # (B, 1, 4)
    guess = torch.tensor([[[0, 1, 0, 2]], [[1, 0, 0, 0]], [[0, 0, 1, 1]], [[1, 1, 1, 1]]])
    logits = torch.nn.functional.one_hot(guess, 3).movedim(-1, 1).float()
    found = _dices(logits, truth, [True, True, True, False])
    assert found[0] == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(found[1])  # nothing there: no Dice
    assert found[2] == 0  # missed, and counted
    assert math.isnan(found[3])  # no target


def test_a_non_finite_loss_names_task_and_case() -> None:
    records = {"a": CaseRecord({"segmentation": 0.5}), "b": CaseRecord({"segmentation": math.nan})}
    with pytest.raises(TrainingError, match=r"segmentation: b\)"):
        refuse_non_finite(records, WEIGHTS)


def test_records_are_in_the_order_of_their_ids() -> None:
    records = {"b": CaseRecord({}), "a": CaseRecord({})}
    assert list(gather_records(records, 1)) == ["a", "b"]
