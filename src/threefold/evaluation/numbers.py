"""How far predicted numbers are from true ones, by group, with intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.errors import PredictionsError, bounded
from threefold.evaluation.classification import weighted_mean
from threefold.evaluation.estimate import Estimate, Place
from threefold.evaluation.groups import Group, SampleUnits, groups_of, plain_units
from threefold.evaluation.metrics import METRICS, Metric, metric_of, within
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]
INTERVAL = ("interval_low", "interval_high")
_OF_INTERVALS = ("interval_coverage", "interval_width", "spread_ratio")
LIMIT = 1.96
"""Standard deviations from the bias to a limit of agreement (Bland and Altman 1986)."""


def _require_numbers(table: pd.DataFrame) -> None:
    """Refuse cells that hold something other than a number.

    Raises:
        PredictionsError: naming the column, the case and the cell.
    """
    for column in ("truth", "predicted"):
        cells = table[column].astype(object).where(table[column].notna(), "").astype(str)
        wrong = pd.to_numeric(cells, errors="coerce").isna() & ~cells.str.lower().isin(["", "nan"])
        if wrong.any():
            case, cell = table.loc[wrong, "case_id"].iloc[0], cells[wrong].iloc[0]
            raise PredictionsError(
                f"{column} of case {case} is not a number: '{bounded(cell)}' ({int(wrong.sum())} such "
                f"cases). A task's `columns` has to return a number as {column}, or NaN where it is unknown."
            )


def evaluate_numbers(
    table: pd.DataFrame, spec: EvaluationSpec, *, leaks: bool = False
) -> tuple[Estimate, ...]:
    """Return the metrics of the test cases whose number is known: of all, by site group and by site.

    With errors e = predicted - true over n cases: bias is their mean, the limits of agreement are bias
    -+ 1.96 times their standard deviation (n - 1), R2 is 1 - sum e^2 / sum (true - mean true)^2. Where the
    table has the intervals and the spread of a calibration (`inference.calibration`): the share of intervals
    that contain the true number, their mean width, and the root mean square of e divided by the spread.

    Args:
        table: of one task: case_id, patient_id, site, site_group, part, truth and predicted.
        spec: replicates, confidence and seed; resamples are of patients.
        leaks: the split shares patients between training and test.
    """
    _require_numbers(table)
    numbers = table.assign(
        truth=pd.to_numeric(table["truth"], errors="coerce"),
        predicted=pd.to_numeric(table["predicted"], errors="coerce"),
    )
    known = numbers[(numbers["part"] == "test") & numbers["truth"].notna() & numbers["predicted"].notna()]
    rows: list[Estimate] = []
    for group in groups_of(known.reset_index(drop=True)):
        rows += _numbers(Place("case", group, spec, leaks), group)
    return tuple(rows)


def _numbers(place: Place, group: Group) -> list[Estimate]:
    truth, predicted = (group.rows[name].to_numpy(np.float64) for name in ("truth", "predicted"))
    patients = np.unique(group.rows["patient_id"].to_numpy(str), return_inverse=True)[1]
    none = np.zeros(len(truth), np.int64)
    units = SampleUnits(patients, none, np.zeros((len(truth), 0)), {})
    errors, trust = _metrics_of(truth, predicted), _trust_of(group.rows)

    def metrics(weights: Floats) -> dict[str, Floats]:
        return {**errors(weights), **trust(weights)}

    values = metrics(np.ones((1, len(truth)))) if len(truth) else {}
    intervals = place.bootstrap(metrics, units) if len(truth) else {}
    own = (metric_of(name) for name in place.spec.metrics)
    return [
        *(
            place.estimate(
                metric,
                float(values[name][0]) if name in values else np.nan,
                intervals.get(name),
                units,
                needed=np.ones(len(truth), np.bool_),
                why="no case with a known number" if not len(truth) else _why(name, truth),
            )
            for name, metric in METRICS.items()
            if metric.of == "number" and (name not in _OF_INTERVALS or INTERVAL[0] in group.rows)
        ),
        *(
            _mean(place, metric, patients, metric.of_cases(group.rows))
            for metric in own
            if metric.of == "number" and metric.of_cases is not None
        ),
    ]


def _mean(place: Place, metric: Metric, patients: NDArray[np.int64], values: Floats) -> Estimate:
    """Return the mean of the cases' values of someone else's metric, (n,); NaN where a case has none."""
    there = ~np.isnan(values)
    values, units = values[there], plain_units(patients[there])

    def mean(weights: Floats) -> dict[str, Floats]:
        return {metric.name: weighted_mean(values, weights)}

    return place.estimate(
        metric,
        float(mean(np.ones((1, len(values))))[metric.name][0]),
        place.bootstrap(mean, units).get(metric.name),
        units,
        needed=np.ones(len(values), np.bool_),
        why=metric.without,
    )


def _why(name: str, truth: Floats) -> str:
    """Return why a metric is not estimable; empty where it is."""
    if name == "r2" and np.ptp(truth) == 0:
        return "the true numbers are all the same"
    if name == "interval_width":
        return "an interval without a bound"
    if name in ("lower_limit", "upper_limit") and len(truth) < 2:
        return "one case has no spread"
    return ""


def _trust_of(rows: pd.DataFrame) -> Callable[[Floats], dict[str, Floats]]:
    """Return what intervals and spread come to; nothing where a table has none."""
    if any(name not in rows for name in (*INTERVAL, "spread")):
        return lambda weights: {}
    columns = {
        name: pd.to_numeric(rows[name], errors="coerce").to_numpy(np.float64)
        for name in ("truth", "predicted", *INTERVAL, "spread")
    }
    covered = within(rows, "truth", *INTERVAL)
    ends = (columns[name] for name in INTERVAL)
    width = np.nan_to_num(-np.subtract(*ends), nan=np.inf)
    ratio = ((columns["predicted"] - columns["truth"]) / columns["spread"]) ** 2

    def metrics(weights: Floats) -> dict[str, Floats]:
        return {
            "interval_coverage": weighted_mean(covered, weights),
            "interval_width": weighted_mean(width, weights),
            "spread_ratio": np.sqrt(weighted_mean(ratio, weights)),
        }

    return metrics


def _metrics_of(truth: Floats, predicted: Floats) -> Callable[[Floats], dict[str, Floats]]:
    error = predicted - truth
    # About their mean: the unit's zero may be far away.
    centred = truth - truth.mean() if len(truth) else truth
    rounding = 1e-12 * np.max(centred**2, initial=0)

    def metrics(weights: Floats) -> dict[str, Floats]:
        """(R, n) how often each case counts to (R,) of each metric."""
        total = weights.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            bias = weights @ error / total
            squared = weights @ error**2 / total
            mean = weights @ centred / total
            variance = weights @ centred**2 / total - mean**2
            spread = np.sqrt(np.maximum(squared - bias**2, 0) * total / (total - 1))
            return {
                "mae": weights @ np.abs(error) / total,
                "rmse": np.sqrt(squared),
                "r2": np.where(variance > rounding, 1 - squared / variance, np.nan),
                "bias": bias,
                "lower_limit": bias - LIMIT * spread,
                "upper_limit": bias + LIMIT * spread,
            }

    return metrics
