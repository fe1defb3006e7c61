"""Numbers of a table of evidence: means by group, each with its n and its interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.evaluation.estimate import Estimate, Place
from threefold.evaluation.groups import Group, groups_of, plain_units
from threefold.evaluation.metrics import metrics
from threefold.evaluation.predictions import Predictions
from threefold.evaluation.weighting import weighted_mean
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]

ZERO_MAP = "zero_map"


def evidence_rows(
    evidence: pd.DataFrame, predictions: Predictions, spec: EvaluationSpec, metrics: Sequence[str]
) -> tuple[Estimate, ...]:
    """Return the mean of each column over all test cases, each site group and each site.

    Args:
        evidence: by case id; NaN where a case has none.
        predictions: say which patient, site and site group a case is of.
        spec: replicates, confidence and seed.
        metrics: the columns; those without any number are left out.
    """
    rows = predictions.part("test").set_index("case_id", drop=False)
    columns = evidence.reindex(index=rows.index, columns=list(metrics))
    groups = groups_of(pd.concat([rows[[*_IDENTITY]], columns], axis=1))
    measured = [name for name in metrics if columns[name].notna().any()]
    return tuple(row for group in groups for row in _of_group(group, measured, predictions.leaks, spec))


_IDENTITY = ("case_id", "patient_id", "site", "site_group")


def _of_group(group: Group, metrics: Sequence[str], leaks: bool, spec: EvaluationSpec) -> Iterator[Estimate]:
    place = Place("case", group, spec, leaks)
    patients = np.unique(group.rows["patient_id"].to_numpy(str), return_inverse=True)[1].astype(np.int64)
    for name in metrics:
        values = group.rows[name].to_numpy(np.float64)
        there = ~np.isnan(values)
        yield _mean(place, name, values[there], patients[there])


def _mean(place: Place, name: str, values: Floats, patients: NDArray[np.int64]) -> Estimate:
    units = plain_units(patients)
    found = place.bootstrap(lambda weights: {name: weighted_mean(values, weights)}, units)
    return place.estimate(
        metrics()[name],
        float(values.mean()) if len(values) else np.nan,
        found.get(name),
        units,
        needed=np.ones(len(values), np.bool_),
        why="no such case",
    )
