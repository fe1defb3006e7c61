"""Dice, missed lesions and false alarms, from masks by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import evaluate
from threefold.evaluation.overlap import dice, false_alarms, missed_lesions
from threefold.evaluation.predictions import validate
from threefold.experiment import EvaluationSpec

QUICK = EvaluationSpec(replicates=200)


def test_dice_is_that_of_the_masks() -> None:
    rng = np.random.default_rng(0)
    truths, predictions = rng.random((2, 20, 6, 6)) < 0.3
    counts = [mask.sum(axis=(1, 2)) for mask in (truths, predictions, truths & predictions)]
    by_hand = [
        2 * np.logical_and(t, p).sum() / (t.sum() + p.sum()) for t, p in zip(truths, predictions, strict=True)
    ]
    np.testing.assert_allclose(dice(*counts), by_hand)


def test_the_policy_for_empty_masks() -> None:
    #                  hit  missed  found elsewhere  both empty  false alarm  no true mask
    truth = np.array([100, 100, 100, 0, 0, np.nan])
    predicted = np.array([50, 0, 40, 0, 7, 30])
    overlap = np.array([50, 0, 0, 0, 0, np.nan])
    nan = np.nan
    np.testing.assert_allclose(dice(truth, predicted, overlap), [2 / 3, 0, 0, nan, nan, nan])
    np.testing.assert_array_equal(missed_lesions(truth, overlap), [0, 1, 1, nan, nan, nan])
    np.testing.assert_array_equal(false_alarms(truth, predicted), [nan, nan, nan, 0, 1, nan])


@pytest.fixture
def masks() -> pd.DataFrame:
    """Six patients: two of two cases each, with every outcome once or twice."""
    return pd.DataFrame(
        {
            "case_id": list("abcdefgh"),
            "patient_id": ["1", "1", "2", "2", "3", "4", "5", "6"],
            "mask_truth_voxels": [100, 100, 100, 0, 100, 0, 0, np.nan],
            "mask_predicted_voxels": [100, 0, 0, 9, 300, 0, 7, 3],
            "mask_overlap_voxels": [100, 0, 0, 0, 100, 0, 0, np.nan],
        }
    )


def _row(table: pd.DataFrame, metric: str, level: str = "case") -> Estimate:
    found = evaluate(validate(table), QUICK).find(metric, level=level)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_means_over_cases_count_misses_and_alarms(masks: pd.DataFrame) -> None:
    mean_dice = _row(masks, "dice")
    assert mean_dice.value == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert (mean_dice.n, mean_dice.patients, mean_dice.positives) == (4, 3, None)
    missed = _row(masks, "missed_lesions")
    assert (missed.value, missed.n, missed.positives) == (0.5, 4, 2)
    alarms = _row(masks, "false_alarms")
    assert alarms.value == pytest.approx(2 / 3)
    assert (alarms.n, alarms.patients, alarms.positives) == (3, 3, 2)


def test_means_over_patients(masks: pd.DataFrame) -> None:
    # Patient 1: a hit and a miss; 2: a miss, and an alarm that a patient with a lesion can't have; 3: 0.5.
    assert _row(masks, "dice", "patient").value == pytest.approx((0.5 + 0 + 0.5) / 3)
    missed = _row(masks, "missed_lesions", "patient")
    assert (missed.value, missed.n, missed.positives) == (pytest.approx(1 / 3), 3, 1)
    alarms = _row(masks, "false_alarms", "patient")
    assert (alarms.value, alarms.n, alarms.positives) == (0.5, 2, 1)


def test_without_lesions_dice_is_not_estimable_and_stays(masks: pd.DataFrame) -> None:
    empty = masks[masks["mask_truth_voxels"] == 0]
    for metric in ("dice", "missed_lesions"):
        row = _row(empty, metric)
        assert np.isnan(row.value)
        assert (row.n, row.note) == (0, "not estimable (no true mask with a lesion)")
    assert _row(empty, "false_alarms").n == 3


def test_masks_without_truth_give_no_numbers_of_overlap(masks: pd.DataFrame) -> None:
    masks["psnr"] = 30.0
    masks[["mask_truth_voxels", "mask_overlap_voxels"]] = np.nan
    evaluation = evaluate(validate(masks), QUICK)
    assert {row.metric for row in evaluation.rows} == {"psnr"}


def test_every_lesion_missed_has_an_exact_interval_over_patients(masks: pd.DataFrame) -> None:
    masks["mask_overlap_voxels"] = masks["mask_overlap_voxels"].where(masks["mask_overlap_voxels"].isna(), 0)
    row = _row(masks, "missed_lesions")
    assert (row.value, row.high) == (1, 1)
    assert row.low == pytest.approx(0.025 ** (1 / 3))
    assert row.note == "exact binomial interval over patients"
    assert _row(masks, "dice").note == "no interval: fewer than 5 patients"
