"""How far numbers move from the sites that were trained on to others: differences between site groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from threefold.errors import PredictionsError
from threefold.evaluation.comparison import Measured
from threefold.evaluation.estimate import EXACT, Difference, Estimate
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
from threefold.evaluation.metrics import is_share, shown_in
from threefold.evaluation.predictions import Predictions
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]


def shifts(
    predictions: Predictions, spec: EvaluationSpec, *, threshold: float | None = None
) -> tuple[Difference, ...]:
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
        for metric in shown_in("shift")
        for row in _shift(tables, metric, names[0], other, spec)
    )


def _shift(tables: Tables, metric: str, first: str, other: str, spec: EvaluationSpec) -> Iterator[Difference]:
    try:
        both = [measured(tables, metric, f"site_group={group}") for group in (first, other)]
    except PredictionsError:
        return  # the predictions have no such target
    if not any(len(each.patients) for each in both):
        return
    draws = [_draws(each, spec, spec.seed) for each in both]  # as the group's own table draws them
    leaks = tables.predictions.leaks
    at = [_at(name, metric, both[k], draws[k], spec, leaks) for k, name in enumerate((first, other))]
    why, ends = ", ".join(f"{each.group} has no value" for each in at if not np.isfinite(each.value)), None
    if not why:
        apart = _draws(both[1], spec, spec.seed + 1)  # from the first group's draws
        drawn = min(len(apart), len(draws[0]))  # a large group has fewer
        interval = percentile_interval(apart[:drawn] - draws[0][:drawn], spec.confidence)
        if min(each.fewest_patients for each in both) < FEWEST_PATIENTS:
            interval = FEW
        ends, why = interval.ends, interval.reason
    change = replace(
        at[1],
        value=at[1].value - at[0].value,
        interval=ends,
        n=at[0].n + at[1].n,
        patients=at[0].patients + at[1].patients,
        why=why,
        remark="",
    )
    yield Difference(at[0], at[1], change)


def _at(group: str, metric: str, of: Measured, draws: Floats, spec: EvaluationSpec, leaks: bool) -> Estimate:
    n, patients = len(of.numbered), int(of.numbered.max(initial=-1)) + 1
    value = float(of.metric(np.ones((1, n)))[0]) if n else np.nan
    interval = Interval(None, 0, "no case has it" if not n else "not estimable")
    remark = ""
    if np.isfinite(value):
        interval = percentile_interval(draws, spec.confidence) if patients >= FEWEST_PATIENTS else FEW
        if is_share(metric) and value in (0.0, 1.0) and not of.is_mean_over_classes:
            interval = exact_interval(value, of.fewest_patients, spec.confidence)
            remark = EXACT
    return Estimate(
        group_kind="site group",
        group=group,
        metric=metric,
        value=value,
        interval=interval.ends,
        n=n,
        patients=patients,
        replicates_missing=interval.missing,
        why=interval.reason,
        remark=remark,
        leaks=leaks,
    )


def _draws(of: Measured, spec: EvaluationSpec, seed: int) -> Floats:
    """Return the metric in each resample of the patients, (R,); empty without patients."""
    blocks = [of.metric(weights) for weights in patient_weights(of.numbered, spec.replicates, seed)]
    return np.concatenate(blocks) if blocks else np.empty(0)
