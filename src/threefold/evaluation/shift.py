"""How far numbers move from the sites that were trained on to others: differences between site groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threefold.errors import PredictionsError
from threefold.evaluation.comparison import Measured
from threefold.evaluation.groups import groups_of
from threefold.evaluation.intervals import patient_weights, percentile_interval
from threefold.evaluation.measures import Tables, measured
from threefold.evaluation.predictions import Predictions
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]

METRICS_SHOWN = (
    "auc",
    "balanced_accuracy",
    "f1",
    "sensitivity",
    "specificity",
    "calibration_error",
    "dice",
    "missed_lesions",
    "psnr",
    "structure_dice",
    "hd95_mm",
    "cl_dice",
    "topology_right",
)


@dataclass(frozen=True)
class Shift:
    """A metric at two groups of sites, and its difference.

    Attributes:
        metric: its name.
        group, other: names of the site groups; the difference is other - group.
        value, other_value: at each; NaN where it does not exist.
        difference, low, high: and its interval, by resampling the patients of both; NaN where not estimable.
        n, patients, other_n, other_patients: cases that have the metric, and their patients.
        note: why there is no difference or no interval; empty where there is one.
        leaks: the split shares patients between training and test.
    """

    metric: str
    group: str
    other: str
    value: float
    other_value: float
    difference: float
    low: float
    high: float
    n: int
    patients: int
    other_n: int
    other_patients: int
    note: str
    leaks: bool


def shifts(
    predictions: Predictions, spec: EvaluationSpec, *, threshold: float | None = None
) -> tuple[Shift, ...]:
    """Return how each metric differs between the first site group (internal, if any) and each other one.

    The groups' patients are resampled apart from each other: a patient belongs to one site.

    Args:
        predictions: the table.
        spec: replicates, confidence and seed.
        threshold: of the positive class of two; None: 0.5.

    Returns:
        By other group and metric; empty without two site groups among the test cases.
    """
    names = [group.name for group in groups_of(predictions.part("test")) if group.kind == "site group"]
    tables = Tables(predictions, threshold)
    return tuple(
        row
        for other in names[1:]
        for metric in METRICS_SHOWN
        for row in _shift(tables, metric, names[0], other, spec)
    )


def _shift(tables: Tables, metric: str, group: str, other: str, spec: EvaluationSpec) -> Iterator[Shift]:
    try:
        both = [measured(tables, metric, name) for name in (group, other)]
    except PredictionsError:
        return  # the predictions have no such target
    if not any(len(each.patients) for each in both):
        return
    values = [_value(each) for each in both]
    difference, low, high, note = values[1] - values[0], np.nan, np.nan, ""
    absent = [
        f"{name} has no value" for name, value in zip((group, other), values, strict=True) if np.isnan(value)
    ]
    if absent:
        note = ", ".join(absent)
    elif not np.isfinite(difference):
        note = "infinite in a case"
    else:
        here, there = (_draws(each, spec, spec.seed + place) for place, each in enumerate(both))
        interval = percentile_interval(there - here, spec.confidence)
        low, high, note = interval.low, interval.high, interval.reason
    yield Shift(
        metric,
        group,
        other,
        values[0],
        values[1],
        difference,
        low,
        high,
        len(both[0].patients),
        len(set(both[0].patients)),
        len(both[1].patients),
        len(set(both[1].patients)),
        note,
        tables.predictions.leaks,
    )


def _value(of: Measured) -> float:
    return float(of.metric(np.ones((1, len(of.patients))))[0]) if len(of.patients) else float("nan")


def _draws(of: Measured, spec: EvaluationSpec, seed: int) -> Floats:
    """Return the metric in each resample of the patients, (R,)."""
    numbered = np.unique(of.patients, return_inverse=True)[1].astype(np.int64)
    metric: Callable[[Floats], Floats] = of.metric
    return np.concatenate([metric(weights) for weights in patient_weights(numbered, spec.replicates, seed)])
