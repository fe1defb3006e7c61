"""Differences between site groups: values from scikit-learn, intervals from a plain bootstrap."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from threefold.evaluation.estimate import Difference
from threefold.evaluation.evaluate import evaluate
from threefold.evaluation.predictions import Predictions, validate
from threefold.evaluation.shift import shifts
from threefold.experiment import EvaluationSpec

SPEC = EvaluationSpec(replicates=2000)


def make(patients: int = 60, *, groups: bool = True, leaks: bool = False) -> Predictions:
    rng = np.random.default_rng(3)
    patient = np.repeat(np.arange(patients), 2)
    outside = patient % 2 == 1
    positive = rng.random(len(patient)) < 0.5
    sure = (0.3 - 0.2 * outside) * (2 * positive - 1)
    chance = np.clip(0.5 + sure + rng.normal(0, 0.2, len(patient)), 0, 1)
    table = pd.DataFrame(
        {
            "case_id": [f"c{k}" for k in range(len(patient))],
            "patient_id": [f"p{p}" for p in patient],
            "site": np.where(outside, "far", "near"),
            "site_group": np.where(outside, "external", "internal") if groups else "",
            "part": "test",
            "label": np.where(positive, "yes", "no"),
            "probability_no": 1 - chance,
            "probability_yes": chance,
            "mask_truth_voxels": np.where(outside, np.nan, 10.0),
            "mask_predicted_voxels": np.where(outside, np.nan, 10.0),
            "mask_overlap_voxels": np.where(outside, np.nan, rng.integers(4, 10, len(patient))),
        }
    )
    return validate(table, leaks=leaks)


def of(metric: str, rows: tuple[Difference, ...]) -> Difference:
    (row,) = [row for row in rows if row.change.metric == metric]
    return row


def test_a_difference_is_that_of_scikit_learns_values_and_its_interval_a_bootstraps() -> None:
    predictions = make()
    row = of("auc", shifts(predictions, SPEC))
    test = predictions.part("test")
    parts = [test[test["site_group"] == name] for name in ("internal", "external")]

    def auc(rows: pd.DataFrame) -> float:
        return float(roc_auc_score(rows["label"] == "yes", rows["probability_yes"]))

    assert (row.first.value, row.second.value) == pytest.approx([auc(part) for part in parts])
    assert row.change.value == pytest.approx(auc(parts[1]) - auc(parts[0]))
    rng, found = np.random.default_rng(7), []
    numbers = [((part["label"] == "yes").to_numpy(), part["probability_yes"].to_numpy()) for part in parts]
    by_patient = [[*part.reset_index().groupby("patient_id").indices.values()] for part in parts]
    for _ in range(400):
        rows = [np.concatenate([p[k] for k in rng.integers(0, len(p), len(p))]) for p in by_patient]
        drawn = [roc_auc_score(yes[at], chance[at]) for (yes, chance), at in zip(numbers, rows, strict=True)]
        found.append(drawn[1] - drawn[0])
    assert (row.change.low, row.change.high) == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.03)
    assert row.change.low < row.change.value < row.change.high < 0  # made worse far away
    assert (row.first.n, row.first.patients, row.second.n, row.second.patients) == (60, 30, 60, 30)


@pytest.mark.parametrize(
    ("metric", "threshold"),
    [("auc", 0.5), ("sensitivity", 0.5), ("sensitivity", 0.0), ("specificity", 0.0), ("missed_lesions", 0.5)],
)
def test_a_group_s_interval_is_the_one_of_the_tables(metric: str, threshold: float) -> None:
    predictions = make()
    row = of(metric, shifts(predictions, SPEC, threshold=threshold))
    evaluation = evaluate(predictions, SPEC, threshold=threshold)
    for at in (row.first, row.second):
        there = evaluation.find(metric, group_kind="site group", group=at.group)
        assert there is not None
        expected = (there.value, there.low, there.high)
        assert (at.value, at.low, at.high) == pytest.approx(expected, nan_ok=True)


def test_fewer_than_five_patients_have_no_interval() -> None:
    row = of("calibration_error", shifts(make(8), SPEC))
    assert row.change.why == row.first.why == row.second.why == "fewer than 5 patients"
    assert np.isnan([row.change.low, row.first.low, row.second.high]).all()


def test_what_a_group_does_not_have_is_said() -> None:
    row = of("dice", shifts(make(), SPEC))
    assert np.isnan([row.change.value, row.change.low, row.second.value]).all()
    assert row.change.why == "external has no value"
    assert row.second.why == "no case has it"
    assert row.first.low < row.first.value < row.first.high


def test_a_share_of_all_has_the_exact_interval_and_a_difference_of_none_no_interval() -> None:
    predictions = make()
    table = predictions.part("test").copy()
    for name in ("truth", "predicted", "overlap"):
        table[f"mask_{name}_voxels"] = 10.0
    row = of("missed_lesions", shifts(validate(table), SPEC))
    assert (row.first.low, row.first.high) == pytest.approx((0, 1 - 0.025 ** (1 / 30)))
    assert row.change.value == 0
    assert row.change.why == "every resample gives the same value"


def test_there_is_no_shift_without_two_groups() -> None:
    assert shifts(make(groups=False), SPEC) == ()
    alone = make()
    table = alone.part("test")
    assert shifts(validate(table[table["site_group"] == "internal"].copy()), SPEC) == ()


def test_a_leak_is_marked() -> None:
    assert all(row.change.leaks for row in shifts(make(leaks=True), EvaluationSpec(replicates=20)))
