"""Calibration slope and intercept against scikit-learn's logistic regression, and by hospital."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from threefold.evaluation.evaluate import evaluate
from threefold.evaluation.predictions import Predictions, validate
from threefold.evaluation.reliability import flagged, reliability, slope_and_intercept
from threefold.experiment import EvaluationSpec

SPEC = EvaluationSpec(replicates=50)


def _sample(n: int, slope: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    x = rng.normal(0, 2, n)
    return rng.random(n) < expit(shift + slope * x), expit(x)


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.4, 1.0), (2.0, -1.0)])
def test_slope_and_intercept_are_those_of_logistic_regression(slope: float, shift: float) -> None:
    event, chance = _sample(300, slope, shift)
    weights = np.stack([np.ones(300), np.random.default_rng(2).integers(0, 4, 300)]).astype(float)
    found = slope_and_intercept(event, chance, weights)
    x = logit(chance)
    for row, weight in enumerate(weights):
        fit = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(x[:, None], event, weight)
        assert found[0][row] == pytest.approx(fit.coef_[0, 0], rel=1e-4)
        root = brentq(lambda a, weight=weight: (weight * (event - expit(a + x))).sum(), -20, 20)
        assert found[1][row] == pytest.approx(root, abs=1e-6)


def test_what_is_told_apart_without_error_has_no_slope_and_one_class_has_nothing() -> None:
    chance = np.array([0.1, 0.2, 0.8, 0.9])
    slope, intercept = slope_and_intercept(chance > 0.5, chance, np.ones((1, 4)))
    assert math.isnan(slope[0])
    assert math.isfinite(intercept[0])
    slope, intercept = slope_and_intercept(np.ones(4, bool), chance, np.ones((1, 4)))
    assert math.isnan(slope[0])
    assert math.isnan(intercept[0])


def _table() -> Predictions:
    """Two hospitals; at the second the probabilities are overconfident, the sets too small."""
    event, chance = _sample(400, 0.5, 0.0)
    calibrated = expit(0.5 * logit(chance))
    names = np.where(event, "yes", "no")
    first = np.arange(400) < 200
    sets = np.where(first, "no | yes", np.where(chance > 0.5, "yes", "no"))
    return validate(
        pd.DataFrame(
            {
                "case_id": [f"c{k}" for k in range(400)],
                "patient_id": [f"p{k // 2}" for k in range(400)],
                "site": np.where(first, "north", "south"),
                "label": names,
                "probability_no": 1 - chance,
                "probability_yes": chance,
                "calibrated_probability_no": 1 - calibrated,
                "calibrated_probability_yes": calibrated,
                "prediction_set": sets,
                "out_of_distribution": np.where(first, "no", "yes"),
            }
        )
    )


def test_raw_and_calibrated_by_hospital_with_intervals() -> None:
    found = {(each.which, each.row.group, each.row.metric): each.row for each in reliability(_table(), SPEC)}
    raw, calibrated = (found[which, "all", "calibration_slope"] for which in ("raw", "calibrated"))
    assert raw.value == pytest.approx(calibrated.value / 2, rel=1e-6)
    assert raw.low < 0.5 < raw.high
    assert calibrated.low < 1 < calibrated.high
    error = "calibration_error"
    assert found["calibrated", "all", error].value < found["raw", "all", error].value
    assert {group for _, group, _ in found} == {"all", "north", "south"}


def test_coverage_and_size_of_sets_by_hospital_and_of_the_worst() -> None:
    evaluation = evaluate(_table(), SPEC)
    north, south = (evaluation.find("coverage", group_kind="site", group=name) for name in ("north", "south"))
    assert north is not None
    assert south is not None
    assert north.value == 1
    assert south.value < 0.9
    worst = evaluation.find("coverage", group_kind="worst site", group="south")
    assert worst is not None
    assert worst.value == south.value
    size = evaluation.find("set_size")
    assert size is not None
    assert size.value == 1.5


def test_the_share_of_flagged_images_by_hospital() -> None:
    found = {row.group: row.value for row in flagged(_table(), SPEC)}
    assert found == {"all": 0.5, "north": 0.0, "south": 1.0}
    assert not flagged(validate(_table().table.drop(columns="out_of_distribution")), SPEC)


def test_two_steps_are_enough_of_many_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.05, 0.95, 6000)
    event = rng.random(6000) < chance**1.3
    weights = rng.multinomial(6000, np.full(6000, 1 / 6000), 20).astype(np.float64)
    quick = slope_and_intercept(event, chance, weights)
    monkeypatch.setattr("threefold.evaluation.reliability._MANY", 10_000)
    exact = slope_and_intercept(event, chance, weights)
    for found, expected in zip(quick, exact, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert expected.std() > 0.01  # so that what is missed is little of an interval
