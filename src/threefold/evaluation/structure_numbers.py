"""From the tables of structures and of predictions to numbers: per structure, and of the arch's topology."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from threefold.evaluation.classification import weighted_mean
from threefold.evaluation.groups import Group, Level, Units, groups_of, natural_order, patient_units
from threefold.evaluation.metrics import METRICS
from threefold.evaluation.predictions import Predictions
from threefold.evaluation.rows import Floats, Place, Row
from threefold.evaluation.structures import STRUCTURE_METRICS, structure_values
from threefold.experiment import EvaluationSpec

# Metrics that exist for the same cases are resampled together.
_TOGETHER = (
    ("structure_dice", "asd_mm", "hd95_mm", "cl_dice", "missed_structures"),
    ("b0_error", "b1_error", "b2_error"),
    ("extra_structures",),
)
_OF_CASE = ("graph_edits", "topology_match", "topology_right", "topology_agrees")
assert {*STRUCTURE_METRICS} == {name for group in _TOGETHER for name in group}


def structure_numbers(level: Level, predictions: Predictions, spec: EvaluationSpec) -> Iterator[Row]:
    """Yield the numbers of each structure, of a case's mean over them, and of the topology, by group.

    Beside the groups of `groups_of` each class is a group of its own, so that a diagnosis in which
    structures differ can be seen apart. A patient's value is the mean of the cases'.
    """
    test = predictions.part("test")
    for group in (*groups_of(test), *_classes(test)):
        place = Place(level, group, spec, predictions.leaks)
        units = _units(group, predictions, level)
        for names, structure in _groups_of_metrics(units):
            yield from _means(place, units, names, structure)


def _classes(test: pd.DataFrame) -> Iterator[Group]:
    names = natural_order({str(name) for name in test["label"]} - {""})
    if len(names) > 1:
        yield from (Group("class", name, test[test["label"] == name]) for name in names)


def _units(group: Group, predictions: Predictions, level: Level) -> Units:
    rows = group.rows
    values: dict[str, Floats] = {}
    if predictions.structures is not None:
        of_case = structure_values(predictions.structures, rows["case_id"].tolist())
        values = {f"{metric}|{structure}": value for (metric, structure), value in of_case.items()}
    values |= {f"{name}|": value for name, value in _topology(rows).items()}
    cases = Units(
        patients=np.unique(rows["patient_id"].to_numpy(str), return_inverse=True)[1].astype(np.int64),
        labels=np.full(len(rows), -1, np.int64),
        probabilities=np.zeros((len(rows), 0)),
        # what `patient_units` needs of any units
        values={**values, **dict.fromkeys(("missed_lesions", "false_alarms"), np.full(len(rows), np.nan))},
    )
    return cases if level == "case" else patient_units(cases, positive=None, rule="mean")


def _topology(rows: pd.DataFrame) -> Mapping[str, Floats]:
    """Return what the arch and the graph of structures say of each case; NaN where they say nothing."""
    found: dict[str, Floats] = {}
    if "graph_edits" in rows:
        edits = pd.to_numeric(rows["graph_edits"], errors="coerce").to_numpy(np.float64)
        found |= {"graph_edits": edits, "topology_match": np.where(np.isnan(edits), np.nan, edits == 0)}
    if "topology_class" in rows:
        spoken, label = (rows[name].fillna("").to_numpy(str) for name in ("topology_class", "label"))
        # An arch that says nothing is not right, where the diagnosis is known.
        found["topology_right"] = np.where(label != "", spoken == label, np.nan)
    if "agrees" in rows:
        agrees = rows["agrees"].fillna("").to_numpy(str)
        found["topology_agrees"] = np.where(agrees != "", agrees == "yes", np.nan)
    return found


def _groups_of_metrics(units: Units) -> Iterator[tuple[tuple[str, ...], str]]:
    structures = dict.fromkeys(key.partition("|")[2] for key in units.values if "|" in key)
    for structure in structures:
        for names in _TOGETHER:
            if f"{names[0]}|{structure}" in units.values:
                yield names, structure
    yield from (((name,), "") for name in _OF_CASE if f"{name}|" in units.values)


def _means(place: Place, units: Units, names: tuple[str, ...], structure: str) -> Iterator[Row]:
    there = units.where(~np.isnan(units.values[f"{names[0]}|{structure}"]))
    values = {name: there.values[f"{name}|{structure}"] for name in names}

    def metrics(weights: Floats) -> Mapping[str, Floats]:
        return {name: weighted_mean(value, weights) for name, value in values.items()}

    points = metrics(np.ones((1, len(there))))
    intervals = place.bootstrap(metrics, there)
    for name in names:
        metric = METRICS[name]
        # The number of a case's misses is no share, that of one structure's is.
        counted = metric.is_share or name in ("missed_structures", "extra_structures")
        yield place.row(
            metric,
            float(points[name][0]),
            intervals.get(name),
            there,
            needed=np.ones(len(there), np.bool_),
            class_name=structure,
            positives=int(values[name].sum()) if counted else None,
            is_mean=name in ("missed_structures", "extra_structures") and not structure,
            why="no case with it" if structure else "no case that says",
        )
