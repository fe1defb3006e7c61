"""Temperature scaling: one number, fitted on validation cases, that makes probabilities honest on average.

The probabilities become softmax(log p / T) (Guo et al. 2017, arXiv 1706.04599). T is what gives the
validation cases the smallest log loss, which is convex in 1 / T. Where all validation cases are told right
the loss falls without end towards T = 0, and there is none. Whatever T, the order of the cases by the
probability of a class of two stays, and so do AUC and the decisions, with a threshold brought along.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from threefold.evaluation.classification import brier, calibration_error, weighted_mean
from threefold.evaluation.estimate import Difference, Estimate, Place
from threefold.evaluation.groups import SampleUnits, case_units, groups_of
from threefold.evaluation.intervals import bootstrap
from threefold.evaluation.metrics import metric_of
from threefold.evaluation.predictions import Predictions
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MEASURES = ("calibration_error", "brier", "log_loss")
RANGE = (0.05, 20.0)
"""Temperatures that are looked at."""
_SMALLEST = 1e-12  # probability, whose logarithm is taken
_HALVINGS = 40


def with_temperature(probabilities: Floats, temperature: Floats | float) -> Floats:
    """Return softmax(log p / T).

    Args:
        probabilities: (..., n, K); smaller ones count as 1e-12.
        temperature: a number, or an array that broadcasts to (..., n, K).
    """
    logits = np.log(np.maximum(probabilities, _SMALLEST))
    scaled: Floats = np.exp(log_softmax(logits / temperature, axis=-1))
    return scaled


def fit_temperatures(labels: Ints, probabilities: Floats, weights: Floats) -> Floats:
    """Return the temperature of the smallest log loss for R weightings of n cases, (R,), within RANGE.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K).
        weights: (R, n).
    """
    logits = np.log(np.maximum(probabilities, _SMALLEST))
    logits -= logits.max(axis=1, keepdims=True)
    of_truth = logits[np.arange(len(labels)), labels]
    low, high = (np.full(len(weights), end) for end in np.log(RANGE))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chance = np.exp(logits / np.exp(middle)[:, None, None])  # (R, n, K)
        expected = (chance * logits).sum(axis=2) / chance.sum(axis=2)
        # Derivative of the log loss by 1 / T, which rises with 1 / T: above 0, T is too low.
        too_low = (weights * (expected - of_truth)).sum(axis=1) > 0
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    found: Floats = np.exp((low + high) / 2)
    return found


def fit_temperature(labels: Ints, probabilities: Floats) -> tuple[float | None, str]:
    """Return the temperature of the smallest log loss, or None and why there is none.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K).
    """
    if len(np.unique(labels)) < 2:
        return None, f"the validation part has {'one class only' if len(labels) else 'no labelled case'}"
    value = float(fit_temperatures(labels, probabilities, np.ones((1, len(labels))))[0])
    if RANGE[0] * 1.001 < value < RANGE[1] / 1.001:
        return value, ""
    which = "right and by a margin" if value < 1 else "no better than by chance"
    return None, f"the validation cases are told {which}: no T of {RANGE[0]:g} to {RANGE[1]:g} is best"


def temperature_of(predictions: Predictions, spec: EvaluationSpec) -> Estimate:
    """Fit the temperature on the labelled cases of the validation part.

    Args:
        predictions: with probabilities.
        spec: replicates, confidence and seed of the interval.
    """
    cases = case_units(predictions.part("validation"), predictions)
    units = cases.where(cases.labels >= 0)
    n, patients = len(units), len(np.unique(units.patients))
    estimate = partial(Estimate, group="validation", metric="temperature", n=n, patients=patients)
    value, why = fit_temperature(units.labels, units.probabilities)
    if value is None:
        return estimate(value=np.nan, why=why)

    def fitted(weights: Floats) -> dict[str, Floats]:
        return {"temperature": fit_temperatures(units.labels, units.probabilities, weights)}

    interval = bootstrap(
        fitted, units.patients, replicates=spec.replicates, confidence=spec.confidence, seed=spec.seed
    )["temperature"]
    ends = interval.ends
    if ends is not None and (ends[0] <= RANGE[0] * 1.001 or ends[1] >= RANGE[1] / 1.001):
        why = f"resamples reach the end of the temperatures looked at, {RANGE[0]:g} to {RANGE[1]:g}"
        return estimate(value=value, why=why)
    return estimate(value=value, interval=ends, why=interval.reason)


def calibration_changes(
    predictions: Predictions, temperature: float, spec: EvaluationSpec
) -> Iterator[Difference]:
    """Yield each measure of the test part before and after, over all cases, by site group and by site.

    The intervals take the temperature as given: how sure it is itself is said by its own interval.

    Args:
        predictions: with probabilities.
        temperature: as fitted.
        spec: replicates, confidence and seed.
    """
    for group in groups_of(predictions.part("test")):
        cases = case_units(group.rows, predictions)
        units = cases.where(cases.labels >= 0)
        place = Place("case", group, spec, predictions.leaks)
        yield from _changes(place, units, temperature, predictions.positive_index)


def _changes(
    place: Place, units: SampleUnits, temperature: float, positive: int | None
) -> Iterator[Difference]:
    versions = {
        "before": units.probabilities,
        "after": with_temperature(units.probabilities, temperature),
    }

    def measured(weights: Floats) -> dict[tuple[str, str], Floats]:
        found = {
            (name, when): values
            for when, probabilities in versions.items()
            for name, values in _measures(units.labels, probabilities, positive, weights).items()
        }
        changes = {(name, "change"): found[name, "after"] - found[name, "before"] for name in MEASURES}
        return found | changes

    points, intervals = measured(np.ones((1, len(units)))), place.bootstrap(measured, units)
    everyone = np.ones(len(units), np.bool_)
    for name in MEASURES:
        before, after, change = (
            place.estimate(
                metric_of(name),
                float(points[name, when][0]),
                intervals.get((name, when)),
                units,
                needed=everyone,
                why="there is no temperature" if len(units) else "no labelled case",
            )
            for when in ("before", "after", "change")
        )
        yield Difference(before, after, change)


def _measures(
    labels: Ints, probabilities: Floats, positive: int | None, weights: Floats
) -> dict[str, Floats]:
    """Return each measure, (R,): of the positive class of two, else of the decided class (Brier: summed)."""
    of_truth = probabilities[np.arange(len(labels)), labels]
    loss = weighted_mean(-np.log(np.maximum(of_truth, _SMALLEST)), weights)
    if positive is not None:
        chance, is_positive = probabilities[:, positive], labels == positive
        return {
            "calibration_error": calibration_error(is_positive, chance, weights),
            "brier": brier(is_positive.astype(np.float64), chance, weights),
            "log_loss": loss,
        }
    right = probabilities.argmax(axis=1) == labels
    return {
        "calibration_error": calibration_error(right, probabilities.max(axis=1, initial=0), weights),
        "brier": brier(np.eye(probabilities.shape[1])[labels], probabilities, weights),
        "log_loss": loss,
    }
