"""Temperature: scipy's answer, the distortion undone, and the same order of the cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from threefold.evaluation.calibration import (
    RANGE,
    calibration_changes,
    fit_temperatures,
    temperature_of,
    with_temperature,
)
from threefold.evaluation.predictions import Predictions, validate
from threefold.experiment import EvaluationSpec

SPEC = EvaluationSpec(replicates=200)


def draw(n: int, classes: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Honest labels, and probabilities as sharp as 1 / temperature."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, classes))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random((n, 1)) > honest.cumsum(1)).sum(1)
    return labels, with_temperature(honest, 1 / temperature)


def table(temperature: float, classes: int = 2, n: int = 400) -> Predictions:
    labels, probabilities = draw(n, classes, temperature, seed=0)
    names = "abcd"[:classes]
    frame = pd.DataFrame({f"probability_{name}": probabilities[:, k] for k, name in enumerate(names)})
    frame["label"] = [names[label] for label in labels]
    frame["case_id"] = [f"c{i}" for i in range(n)]
    frame["patient_id"] = [f"p{i // 2}" for i in range(n)]
    frame["site"] = [f"s{i // 2 % 2}" for i in range(n)]
    frame["part"] = np.where(np.arange(n) < n // 2, "validation", "test")
    return validate(frame)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_temperature_has_the_smallest_log_loss(classes: int) -> None:
    labels, probabilities = draw(300, classes, 2.5, seed=1)
    weights = np.stack([np.ones(300), np.random.default_rng(2).integers(0, 4, 300)]).astype(float)
    for found, weight in zip(fit_temperatures(labels, probabilities, weights), weights, strict=True):

        def loss(t: float, weight: np.ndarray = weight) -> float:
            scaled = with_temperature(probabilities, t)
            return float(log_loss(labels, scaled, sample_weight=weight, labels=range(classes)))

        best = minimize_scalar(loss, bounds=RANGE, method="bounded", options={"xatol": 1e-7})
        assert found == pytest.approx(best.x, rel=1e-4)


def test_overconfidence_is_undone_and_its_interval_covers() -> None:
    found = temperature_of(table(3.0, n=2000), SPEC)
    assert found.low < 3 < found.high
    assert found.value == pytest.approx(3, rel=0.25)
    assert (found.n, found.patients, found.note) == (1000, 500, "")


@pytest.mark.parametrize("classes", [2, 3])
def test_every_site_is_measured_before_and_after(classes: int) -> None:
    predictions = table(3.0, classes)
    found = list(calibration_changes(predictions, 3.0, SPEC))
    assert {each.first.group for each in found} == {"all", "s0", "s1"}
    for each in found:
        assert each.change.value == pytest.approx(each.second.value - each.first.value)
        assert each.first.n == (200 if each.first.group == "all" else 100)
    everyone = {each.first.metric: each for each in found if each.first.group == "all"}
    test = predictions.part("test")
    names = list(predictions.classes)
    reference = log_loss(test["label"], test[[f"probability_{name}" for name in names]], labels=names)
    assert everyone["log_loss"].first.value == pytest.approx(reference)
    for metric in ("log_loss", "calibration_error", "brier"):
        assert everyone[metric].change.value < 0
    assert everyone["log_loss"].change.high < 0


def test_order_and_extremes_stay() -> None:
    probabilities = np.array([[0.0, 1.0], [0.3, 0.7], [0.31, 0.69], [1.0, 0.0]])
    scaled = with_temperature(probabilities, 4.0)
    assert np.isfinite(scaled).all()
    assert scaled.sum(axis=1) == pytest.approx(1)
    assert (np.argsort(scaled[:, 1]) == np.argsort(probabilities[:, 1])).all()
    assert with_temperature(probabilities[1:3], 1.0) == pytest.approx(probabilities[1:3])


def test_what_can_not_be_fitted_is_said() -> None:
    predictions = table(1.0)
    rows = predictions.table
    one = validate(rows[(rows["part"] == "test") | (rows["label"] == "a")])
    found = temperature_of(one, SPEC)
    assert np.isnan(found.value)
    assert "one class only" in found.note
    after = next(iter(calibration_changes(one, found.value, SPEC)))
    assert not np.isnan(after.first.value)
    assert "there is no temperature" in after.second.note
    right = rows.assign(probability_a=np.where(rows["label"] == "a", 0.6, 0.4))
    sure = temperature_of(validate(right.assign(probability_b=1 - right["probability_a"])), SPEC)
    assert np.isnan(sure.value)
    assert "told right and by a margin" in sure.note
