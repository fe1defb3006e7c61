"""From the tables of structures and of predictions to numbers: per structure, and of the arch's topology."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.evaluation.estimate import Estimate, Floats, Place
from threefold.evaluation.groups import (
    Group,
    Level,
    groups_of,
    mean_by_patient,
    natural_order,
    plain_units,
)
from threefold.evaluation.metrics import metrics
from threefold.evaluation.predictions import Predictions
from threefold.evaluation.structures import structure_values
from threefold.experiment import EvaluationSpec

Ints = NDArray[np.int64]
Key = tuple[str, str]
"""A metric, and the structure that it is of; empty: of the mean over structures, or of the whole case."""


def structure_numbers(level: Level, predictions: Predictions, spec: EvaluationSpec) -> Iterator[Estimate]:
    """Yield the numbers of each structure, of a case's mean over them, and of the topology, by group.

    Beside the groups of `groups_of` each class is a group of its own, so that a diagnosis in which
    structures differ can be seen apart. A patient's value is the mean of the cases'.
    """
    test = predictions.schema_part("test")
    of_test = case_values(test, predictions)
    if not of_test:
        return
    for group in (*groups_of(test), *_classes(test, predictions.classes)):
        patients = np.unique(group.rows["patient_id"].to_numpy(str), return_inverse=True)[1].astype(np.int64)
        chosen = test.index.isin(group.rows.index)
        values = {key: value[chosen] for key, value in of_test.items()}
        if level == "patient":
            count = len(np.unique(patients))
            values = {key: mean_by_patient(patients, value, count) for key, value in values.items()}
            patients = np.arange(count)
        yield from _means(Place(level, group, spec, predictions.leaks), patients, values)


def _classes(test: pd.DataFrame, classes: Sequence[str]) -> Iterator[Group]:
    found = {str(name) for name in test["label"]} - {""}
    names = [name for name in classes if name in found] or natural_order(found)
    if len(names) > 1:
        yield from (Group("class", name, test[test["label"] == name]) for name in names)


def case_values(rows: pd.DataFrame, predictions: Predictions) -> Mapping[Key, Floats]:
    """Return the values of each case, (n,); NaN where a case has none."""
    values: dict[Key, Floats] = {}
    if predictions.structures is not None:
        values |= structure_values(predictions.structures, rows["case_id"].tolist())
    return values | {(name, ""): value for name, value in _topology(rows).items()}


def _topology(rows: pd.DataFrame) -> Mapping[str, Floats]:
    """Return what the arch and the graph of structures say of each case; NaN where they say nothing."""
    return {
        name: metric.of_cases(rows)
        for name, metric in metrics().items()
        if metric.of == "topology" and metric.of_cases is not None and metric.has_cases(rows)
    }


def _means(place: Place, patients: Ints, values: Mapping[Key, Floats]) -> Iterator[Estimate]:
    """Yield the mean of each value over the units that have it.

    Values that the same units have are resampled together: most structures are in every case.

    Args:
        place: what is counted, and where.
        patients: (n,) of the units.
        values: (n,) each.
    """
    together: dict[bytes, list[Key]] = {}
    for key, value in values.items():
        together.setdefault((~np.isnan(value)).tobytes(), []).append(key)
    rows: dict[Key, Estimate] = {}
    for keys in together.values():
        rows |= _means_together(place, patients, {key: values[key] for key in keys})
    yield from (rows[key] for key in values)


def _means_together(place: Place, patients: Ints, values: Mapping[Key, Floats]) -> dict[Key, Estimate]:
    """Return the means of values that the same units have."""
    stacked = np.stack(list(values.values()), axis=1)  # (n, V)
    there = ~np.isnan(stacked[:, 0])
    stacked = stacked[there]
    units = plain_units(patients[there])

    def means(weights: Floats) -> Mapping[Key, Floats]:
        total = weights.sum(axis=1, keepdims=True)  # (R, 1)
        found = np.divide(
            weights @ stacked, total, out=np.full((len(weights), len(values)), np.nan), where=total > 0
        )
        return dict(zip(values, found.T, strict=True))

    points = means(np.ones((1, len(units))))
    intervals = place.bootstrap(means, units)
    rows = {}
    for (name, structure), value in zip(values, stacked.T, strict=True):
        metric = metrics()[name]
        # The number of a case's misses is no share, that of one structure's is.
        is_number = metric.is_counted and not structure
        rows[name, structure] = place.estimate(
            metric,
            float(points[name, structure][0]),
            intervals.get((name, structure)),
            units,
            needed=np.ones(len(units), np.bool_),
            class_name=structure,
            positives=int(value.sum()) if metric.is_share else None,
            is_mean=is_number,
            why=metric.without_one if structure else metric.without,
        )
    return rows
