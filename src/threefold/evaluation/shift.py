"""How far numbers move from the sites that were trained on to others: differences between site groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threefold.errors import PredictionsError
from threefold.evaluation.comparison import Measured
from threefold.evaluation.groups import groups_of
from threefold.evaluation.intervals import (
    FEW,
    FEWEST_PATIENTS,
    Interval,
    exact_interval,
    patient_weights,
    percentile_interval,
)
from threefold.evaluation.measures import Tables, measured
from threefold.evaluation.metrics import is_share
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
    "hd95_px",
    "cl_dice",
    "topology_right",
)


@dataclass(frozen=True)
class AtSites:
    """A metric at a group of sites.

    Attributes:
        group: its name.
        value: NaN where the metric does not exist.
        low, high: ends of its interval, by resampling patients; NaN where it has none.
        n, patients: cases that have the metric, and their patients.
        note: why there is no value or no interval; empty where there is one.
    """

    group: str
    value: float
    low: float
    high: float
    n: int
    patients: int
    note: str


@dataclass(frozen=True)
class Shift:
    """A metric at two groups of sites, and its difference.

    Attributes:
        metric: its name.
        first, other: at each of them.
        difference, low, high: other - first and its interval, by resampling the patients of both; NaN where
            not estimable.
        note: why there is no difference or no interval; empty where there is one.
        leaks: the split shares patients between training and test.
    """

    metric: str
    first: AtSites
    other: AtSites
    difference: float
    low: float
    high: float
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
    names = [group.name for group in groups_of(predictions.schema_part("test")) if group.kind == "site group"]
    tables = Tables(predictions, threshold)
    return tuple(
        row
        for other in names[1:]
        for metric in METRICS_SHOWN
        for row in _shift(tables, metric, names[0], other, spec)
    )


def _shift(tables: Tables, metric: str, first: str, other: str, spec: EvaluationSpec) -> Iterator[Shift]:
    try:
        both = [measured(tables, metric, f"site_group={group}") for group in (first, other)]
    except PredictionsError:
        return  # the predictions have no such target
    if not any(len(each.patients) for each in both):
        return
    draws = [_draws(each, spec, spec.seed) for each in both]  # as the group's own table draws them
    at = [_at(name, metric, both[k], draws[k], spec) for k, name in enumerate((first, other))]
    difference, interval = at[1].value - at[0].value, Interval(np.nan, np.nan, 0)
    note = ", ".join(f"{each.group} has no value" for each in at if not np.isfinite(each.value))
    if not note:
        apart = _draws(both[1], spec, spec.seed + 1)  # from the first group's draws
        drawn = min(len(apart), len(draws[0]))  # a large group has fewer
        interval = percentile_interval(apart[:drawn] - draws[0][:drawn], spec.confidence)
        if min(each.fewest_patients for each in both) < FEWEST_PATIENTS:
            interval = FEW
        note = interval.reason
    yield Shift(metric, at[0], at[1], difference, interval.low, interval.high, note, tables.predictions.leaks)


def _at(group: str, metric: str, of: Measured, draws: Floats, spec: EvaluationSpec) -> AtSites:
    n, patients = len(of.numbered), int(of.numbered.max(initial=-1)) + 1
    value = float(of.metric(np.ones((1, n)))[0]) if n else np.nan
    interval = Interval(np.nan, np.nan, 0, "no case has it" if not n else "not estimable")
    if np.isfinite(value):
        interval = percentile_interval(draws, spec.confidence) if patients >= FEWEST_PATIENTS else FEW
        if is_share(metric) and value in (0.0, 1.0) and not of.is_mean_over_classes:
            interval = exact_interval(value, of.fewest_patients, spec.confidence)
    return AtSites(group, value, interval.low, interval.high, n, patients, interval.reason)


def _draws(of: Measured, spec: EvaluationSpec, seed: int) -> Floats:
    """Return the metric in each resample of the patients, (R,); empty without patients."""
    blocks = [of.metric(weights) for weights in patient_weights(of.numbered, spec.replicates, seed)]
    return np.concatenate(blocks) if blocks else np.empty(0)
