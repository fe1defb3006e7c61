"""Findings that do not exclude each other: the mean over them of each finding's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.evaluation.diagnosis import diagnosis
from threefold.evaluation.estimate import Estimate, Place
from threefold.evaluation.groups import Group, SampleUnits, groups_of
from threefold.evaluation.metrics import metric_of, shown_in
from threefold.evaluation.predictions import probability_column
from threefold.evaluation.task_tables import TRUTH_PREFIX, findings_in
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]


def mean_over_findings(
    table: pd.DataFrame, spec: EvaluationSpec, *, leaks: bool = False
) -> tuple[Estimate, ...]:
    """Return the mean over findings of AUC and average precision: of all test cases, by group and by site.

    Cases of which no finding is known don't count. A finding that a group has in none of its known cases, or
    in all, has neither; the mean is then over the others, and the estimate's class name says how many it is
    over.

    Args:
        table: of one task of findings.
        spec: replicates, confidence and seed; resamples are of patients, the same for all findings.
        leaks: the split shares patients between training and test.
    """
    findings = findings_in(table)
    truths = table[[f"{TRUTH_PREFIX}{finding}" for finding in findings]]
    known = truths.apply(pd.to_numeric, errors="coerce").notna().any(axis=1)
    rows: list[Estimate] = []
    for group in groups_of(table[(table["part"] == "test") & known].reset_index(drop=True)):
        rows += _means(Place("case", group, spec, leaks), group, findings)
    return tuple(rows)


def _means(place: Place, group: Group, findings: Sequence[str]) -> list[Estimate]:
    patients = np.unique(group.rows["patient_id"].to_numpy(str), return_inverse=True)[1]
    count = len(group.rows)
    units = SampleUnits(patients, np.zeros(count, np.int64), np.zeros((count, 0)), {})
    parts = [part for finding in findings if (part := _of(group.rows, finding)) is not None]
    wanted = shown_in("findings")
    over = f"mean of {len(parts)} of {len(findings)} findings"

    def metrics(weights: Floats) -> Mapping[str, Floats]:
        each = [of(weights) for of in parts]
        return {name: np.mean([one[name] for one in each], axis=0) for name in wanted}

    values = metrics(np.ones((1, count))) if parts else {}
    intervals = place.bootstrap(metrics, units) if parts else {}
    return [
        place.estimate(
            metric_of(name),
            float(values[name][0]) if parts else np.nan,
            intervals.get(name),
            units,
            needed=np.ones(count, np.bool_),
            class_name=over,
            is_mean=True,
            why="" if parts else "no finding is there in some cases and absent in others",
        )
        for name in wanted
    ]


def _of(rows: pd.DataFrame, finding: str) -> Callable[[Floats], dict[str, Floats]] | None:
    """Return a finding's metrics as a function of weights; None where it is in no known case, or in all."""
    truth = pd.to_numeric(rows[f"{TRUTH_PREFIX}{finding}"], errors="coerce").to_numpy(np.float64)
    scores = pd.to_numeric(rows[probability_column(finding)], errors="coerce").to_numpy(np.float64)
    known = ~np.isnan(truth) & ~np.isnan(scores)
    labels = truth[known].astype(np.int64)
    if not 0 < labels.sum() < len(labels):
        return None
    probabilities = np.stack([1 - scores[known], scores[known]], axis=1)
    wanted = shown_in("findings")
    of = diagnosis(labels, probabilities, positive=1, threshold=0.5, names=wanted)

    def metrics(weights: Floats) -> dict[str, Floats]:
        found = of(weights[:, known])
        return {name: found[name, None] for name in wanted}

    return metrics
