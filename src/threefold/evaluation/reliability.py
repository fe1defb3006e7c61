"""How honest probabilities are, by group, as predicted and calibrated; and how many images are flagged.

With the logit x of the probability of an event (the positive class of two; else that the decided class is
right), logit P(event) = a + b x is fitted by maximum likelihood (Cox 1958). The slope b is 1 for honest
probabilities and below 1 for overconfident ones. The intercept is a with b fixed to 1 (calibration in the
large): 0 for honest probabilities, above 0 where the event is more frequent than predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from threefold.evaluation.classification import calibration_error
from threefold.evaluation.estimate import Estimate, Place
from threefold.evaluation.groups import Group, SampleUnits, groups_of, plain_units
from threefold.evaluation.metrics import metric_of
from threefold.evaluation.predictions import (
    CALIBRATED_PREFIX,
    OUT_OF_DISTRIBUTION,
    Predictions,
    probability_column,
)
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Which = Literal["raw", "calibrated"]
MEASURES = ("calibration_slope", "calibration_intercept", "calibration_error")
_SMALLEST = 1e-9  # probability, whose logit is taken
_STEPS = 30
_STEPS_AGAIN = 8  # of a resample, from where all cases ended
_MANY = 5000  # cases, of which two steps are enough: what they miss falls with their number
_LONGEST_STEP = 2.0
_STEEPEST = 12.0  # log odds a standard deviation: what is told apart without error goes there


@dataclass(frozen=True)
class Reliability:
    """A number of a group's probabilities.

    Attributes:
        which: raw, as the network gave them, or calibrated.
        row: the number.
    """

    which: Which
    row: Estimate


def reliability(predictions: Predictions, spec: EvaluationSpec) -> tuple[Reliability, ...]:
    """Return slope, intercept and calibration error of the test cases: of all, by site group and by site.

    Args:
        predictions: with probabilities; without calibrated ones there are raw numbers alone.
        spec: replicates, confidence and seed of the intervals.
    """
    test = predictions.schema_part("test")
    names = [f"{CALIBRATED_PREFIX}{name}" for name in predictions.classes]
    kinds: dict[Which, list[str]] = {"raw": [*map(probability_column, predictions.classes)]}
    if all(name in test for name in names):
        kinds["calibrated"] = names
    labelled = test[test["label"] != ""].reset_index(drop=True)
    found: list[Reliability] = []
    for group in groups_of(labelled) if predictions.classes else ():
        place = Place("case", group, spec, predictions.leaks)
        for which, columns in kinds.items():
            found += [Reliability(which, row) for row in _measured(place, group, predictions, columns)]
    return tuple(found)


def flagged(predictions: Predictions, spec: EvaluationSpec) -> tuple[Estimate, ...]:
    """Return the share of test images that are flagged as out of distribution: of all, by group and by site.

    Cases of which it is not known don't count; nothing where it is known of none.
    """
    test = predictions.part("test")
    if OUT_OF_DISTRIBUTION not in test:
        return ()
    told = test[OUT_OF_DISTRIBUTION].fillna("").astype(str)
    known = test[told.isin(["yes", "no"])].reset_index(drop=True)
    if not len(known):
        return ()
    return tuple(_share(Place("case", group, spec, predictions.leaks), group) for group in groups_of(known))


def slope_and_intercept(event: Bools, chance: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return calibration slope and intercept, (R,) each; NaN where the event always or never happens.

    Nor is there a slope where the probabilities tell both apart without error: none is the likeliest.

    Args:
        event: (n,) whether it happened.
        chance: (n,) its probability.
        weights: (R, n).
    """
    x = _logit(chance)
    centre, scale = x.mean(), x.std() or 1.0
    ones, z = np.ones((1, len(x))), (x - centre) / scale
    again = _STEPS_AGAIN if len(x) <= _MANY else 2
    start = _fit(event, z, ones, np.zeros(2), _STEPS)[0]
    fitted = _fit(event, z, weights, start, again)
    alone = _shift(event, x, ones, 0.0, _STEPS)[0]
    shifted = _shift(event, x, weights, alone, again)
    happened, total = weights @ event.astype(np.float64), weights.sum(axis=1)
    both = (happened > 0) & (happened < total)
    slope = np.where(both & (np.abs(fitted[:, 1]) < _STEEPEST), fitted[:, 1] / scale, np.nan)
    return slope, np.where(both, shifted, np.nan)


def _logit(chance: Floats) -> Floats:
    clipped = np.clip(chance, _SMALLEST, 1 - _SMALLEST)
    return np.log(clipped / (1 - clipped))


def _fit(event: Bools, z: Floats, weights: Floats, start: Floats, steps: int) -> Floats:
    """Return the likeliest (a, b) of logit P = a + b z by Newton's method, (R, 2), from one start (2,)."""
    chance = expit(start[0] + start[1] * z)
    excess, curve = event - chance, chance * (1 - chance)
    sums = weights @ np.stack([excess, excess * z, curve, curve * z, curve * z**2], axis=1)
    found = start + _newton(*sums.T)
    for _ in range(steps - 1):
        chance = expit(found[:, :1] + found[:, 1:] * z)
        excess, curve = weights * (event - chance), weights * chance * (1 - chance)
        found += _newton(excess.sum(axis=1), excess @ z, curve.sum(axis=1), curve @ z, curve @ z**2)
    return found


def _newton(first: Floats, second: Floats, n: Floats, nz: Floats, nzz: Floats) -> Floats:
    """Return a step of (a, b), (R, 2), from the sums of excess and curvature by 1, z and z squared."""
    determinant = np.maximum(n * nzz - nz**2, 1e-12)
    step = np.stack([nzz * first - nz * second, n * second - nz * first], axis=1) / determinant[:, None]
    return np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)


def _shift(event: Bools, x: Floats, weights: Floats, start: float, steps: int) -> Floats:
    """Return the likeliest a of logit P = a + x by Newton's method, (R,), from one start."""
    found = np.full(len(weights), start)
    for number in range(steps):
        if number == 0:  # alike for all, so that sums are products of matrices
            chance = expit(start + x)
            excess, curve = weights @ (event - chance), weights @ (chance * (1 - chance))
        else:
            chance = expit(found[:, None] + x)
            excess = (weights * (event - chance)).sum(axis=1)
            curve = (weights * chance * (1 - chance)).sum(axis=1)
        found += np.clip(excess / np.maximum(curve, 1e-12), -_LONGEST_STEP, _LONGEST_STEP)
    return found


def _measured(place: Place, group: Group, predictions: Predictions, columns: list[str]) -> Iterator[Estimate]:
    told = group.rows[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    there = ~np.isnan(told).any(axis=1)
    rows, told = group.rows[there], told[there]
    labels = pd.Index(predictions.classes, dtype=object).get_indexer(pd.Index(rows["label"], dtype=object))
    if predictions.positive_index is not None:
        event, chance = labels == predictions.positive_index, told[:, predictions.positive_index]
    else:
        event, chance = told.argmax(axis=1) == labels, told.max(axis=1, initial=0)
    units = _units(rows)

    def measures(weights: Floats) -> Mapping[str, Floats]:
        slope, intercept = slope_and_intercept(event, chance, weights)
        return dict(zip(MEASURES, (slope, intercept, calibration_error(event, chance, weights)), strict=True))

    points = measures(np.ones((1, len(rows)))) if len(rows) else {}
    intervals = place.bootstrap(measures, units) if len(rows) else {}
    for name in MEASURES:
        yield place.estimate(
            metric_of(name),
            float(points[name][0]) if points else np.nan,
            intervals.get(name),
            units,
            needed=np.ones(len(rows), np.bool_),
            why="no labelled case" if not len(rows) else "always alike, or told apart without error",
        )


def _share(place: Place, group: Group) -> Estimate:
    values = (group.rows[OUT_OF_DISTRIBUTION] == "yes").to_numpy(np.float64)
    units = _units(group.rows)

    def share(weights: Floats) -> Mapping[str, Floats]:
        return {"flagged": weights @ values / weights.sum(axis=1)}

    return place.estimate(
        metric_of("flagged"),
        float(values.mean()),
        place.bootstrap(share, units).get("flagged"),
        units,
        needed=np.ones(len(values), np.bool_),
        positives=int(values.sum()),
        why="",
    )


def _units(rows: pd.DataFrame) -> SampleUnits:
    return plain_units(pd.factorize(rows["patient_id"].to_numpy(object), sort=True)[0].astype(np.int64))
