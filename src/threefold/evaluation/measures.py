"""One metric of one table of predictions, as a function of how much each case weighs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.errors import PredictionsError
from threefold.evaluation.classification import weighted_mean
from threefold.evaluation.comparison import Measured
from threefold.evaluation.diagnosis import diagnosis
from threefold.evaluation.groups import SampleUnits, case_units, numbered_anew
from threefold.evaluation.metrics import (
    METRICS,
    diagnosis_metrics,
    is_named,
    metric_of,
    metrics,
    split_name,
)
from threefold.evaluation.predictions import Predictions, validate
from threefold.evaluation.structures import case_values
from threefold.evaluation.task_tables import findings_in, of_finding, of_task, tasks_in
from threefold.validation import did_you_mean

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

OF_ALL = "all"
NOT_TESTED = Measured(np.array([], str), np.array([], str), lambda weights: np.full(len(weights), np.nan))
"""A metric of a run whose test part has no case of the group."""
_GROUPED_BY = ("site_group", "site", "label")


@dataclass(frozen=True, eq=False)
class Tables:
    """What a run left to be compared.

    Attributes:
        predictions: with structures, where there are any.
        threshold: of the positive class's probability; None: two classes are decided at 0.5.
        evidence: further values by case id and name (attention, counterfactuals), NaN where a case has none.
        thresholds: as threshold, of diagnoses that have columns of their own, by task.
        positives: of diagnoses of two classes that have, the positive one, by task; else the last.
    """

    predictions: Predictions
    threshold: float | None = None
    evidence: pd.DataFrame = field(default_factory=pd.DataFrame)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    positives: Mapping[str, str] = field(default_factory=dict)

    def of_metric(self, metric: str) -> tuple[Tables, str]:
        """Return the tables of the task that a metric names, and the metric's own name.

        `density.auc` is of the diagnosis `density`, `findings.subdural.auc` of one finding, `age.mae` of a
        number; a metric without a dot is of these tables.
        """
        task, dot, name = metric.partition(".")
        kind = tasks_in(self.predictions.table.columns).get(task) if dot else None
        if kind is None:
            return self, metric
        finding = ""
        if kind == "findings":
            finding, _, name = name.rpartition(".")
        key = f"{task}.{finding}"
        if key not in self._by_task:
            self._by_task[key] = self._seen_as(task, kind, finding)
        return self._by_task[key], name

    def _seen_as(self, task: str, kind: str, finding: str) -> Tables:
        table, predictions = of_task(self.predictions.table, task), self.predictions
        if kind == "number":
            numbers = replace(predictions, table=table, classes=(), positive=None, structures=None)
            return Tables(numbers)
        if kind == "findings":
            if finding not in findings_in(table):
                hint = did_you_mean(finding, findings_in(table))
                raise PredictionsError(f"task {task} has no finding '{finding}'.{hint}")
            table = of_finding(table, finding)
        positive = self.positives.get(task)
        checked = validate(table, source=f"predictions of {task}", positive=positive, leaks=predictions.leaks)
        return Tables(checked, self.thresholds.get(task))

    @cached_property
    def _by_task(self) -> dict[str, Tables]:
        return {}

    @cached_property
    def tested(self) -> dict[str, _Tested]:
        """The test cases of each group that was asked for: they are asked for again by each metric."""
        return {}


class _Tested:
    """Test cases, and what several metrics of them need."""

    def __init__(self, rows: pd.DataFrame, predictions: Predictions) -> None:
        self.rows, self._predictions = rows, predictions

    def of(self, cases: pd.Index) -> _Tested:
        """Return some of the cases, by id; all of them, in the same order, are the same."""
        return self if cases.equals(self.rows.index) else _Tested(self.rows.loc[cases], self._predictions)

    @cached_property
    def units(self) -> SampleUnits:
        return case_units(self.rows, self._predictions)

    def values(self, others: tuple[str, ...]) -> Mapping[str, Floats]:
        """Return the value of each case by metric, METRIC:STRUCTURE of a structure's; NaN where it has none.

        Args:
            others: names of metrics that are not the program's.
        """
        if others not in self._values:
            self._values[others] = self._values_with(others)
        return self._values[others]

    @cached_property
    def _values(self) -> dict[tuple[str, ...], Mapping[str, Floats]]:
        return {}

    def _values_with(self, others: tuple[str, ...]) -> Mapping[str, Floats]:
        rows, found = self.rows, dict(self.units.values)
        for (name, structure), values in case_values(rows, self._predictions, others).items():
            found[f"{name}:{structure}" if structure else name] = values
        if others:  # it may need columns that no metric of the program's does
            rows = self._predictions.table.set_index("case_id", drop=False).loc[rows.index]
        for name, of in metrics(others).items():
            wanted = of.of == "number" or (name in others and of.is_of_a_case)
            if wanted and of.of_cases is not None and {*of.columns} <= {*rows}:
                found[name] = of.of_cases(rows)
        return found

    @cached_property
    def who(self) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
        """Id and patient of each case."""
        return self.rows.index.to_numpy(str), self.rows["patient_id"].to_numpy(str)

    def measured(
        self, chosen: Bools, metric: Callable[[Floats], Floats], needs: tuple[Bools, ...] = ()
    ) -> Measured:
        """Return a metric of some of the cases."""
        cases, patients = self.who if chosen.all() else (each[chosen] for each in self.who)
        return Measured(cases, patients, metric, needs, numbered_anew(self.units.patients[chosen]))


def measured_pair(first: Tables, second: Tables, metric: str, group: str) -> tuple[Measured, Measured]:
    """Return a metric of two runs on the test cases that both have it for.

    Args:
        first, second: tables of the runs.
        metric: its name.
        group: `all`, a site group, a site, a class, or COLUMN=VALUE of a further column of the table.

    Raises:
        PredictionsError: there is no such metric or group; a case is of another patient or has another label
            in the other table.
    """
    (first, metric), (second, _) = first.of_metric(metric), second.of_metric(metric)
    tested = [_tested(tables, group) for tables in (first, second)]
    shared = tested[0].rows.index.intersection(tested[1].rows.index, sort=False)
    tested = [each.of(shared) for each in tested]
    for what, column in (("of patient", "patient_id"), ("with label", "label")):
        here, there = (each.rows[column].to_numpy(str) for each in tested)
        differing = np.flatnonzero((here != there) & (here != "") & (there != ""))
        if differing.size:
            at = differing[0]
            raise PredictionsError(
                f"case '{shared[at]}': {what} '{here[at]}' in one run and {what} '{there[at]}' in the other. "
                "Compare runs on the same cohort."
            )
    found = [_measure(tables, metric, each) for tables, each in zip((first, second), tested, strict=True)]
    both = found[0][0] & found[1][0]
    baseline, variant = (make(both) for _, make in found)
    return baseline, variant


def measured(tables: Tables, metric: str, group: str) -> Measured:
    """Return a metric of a run on the test cases that it has it for.

    Raises:
        PredictionsError: there is no such metric or group.
    """
    tables, metric = tables.of_metric(metric)
    there, make = _measure(tables, metric, _tested(tables, group))
    return make(there)


def scores(tables: Tables, group: str) -> pd.DataFrame:
    """Return patient_id, positive (bool) and score of the labelled test cases of a group, by case id."""
    predictions = tables.predictions
    rows = _tested(tables, group).rows
    rows = rows[rows["label"] != ""]
    positive = predictions.positive or ""
    return pd.DataFrame(
        {
            "patient_id": rows["patient_id"],
            "positive": rows["label"] == positive,
            "score": rows[f"probability_{positive}"],
        }
    )


def has_group(tables: Tables, group: str) -> bool:
    """Whether a group has test cases."""
    rows = tables.predictions.part("test")
    column, is_column, value = group.partition("=")
    if is_column and column in rows and (rows[column].astype(str) == value).any():
        return True
    return group == OF_ALL or any((rows[name] == group).any() for name in _GROUPED_BY)


def _tested(tables: Tables, group: str) -> _Tested:
    """Return the test cases of a group, by case id."""
    if group not in tables.tested:
        tables.tested[group] = _Tested(_test_cases(tables, group), tables.predictions)
    return tables.tested[group]


def _test_cases(tables: Tables, group: str) -> pd.DataFrame:
    column, is_column, value = group.partition("=")
    rows = tables.predictions.schema_part("test", column).set_index("case_id", drop=False)
    if group == OF_ALL:
        return rows
    if is_column and column in rows:
        chosen = rows[column].astype(str) == value
        if chosen.any():
            return rows[chosen]
        values = sorted({*rows[column].astype(str)})
        raise PredictionsError(f"no test case has {column} '{value}'.{did_you_mean(value, values)}")
    for column in _GROUPED_BY:
        chosen = rows[column] == group
        if chosen.any():
            return rows[chosen]
    known = [OF_ALL, *sorted({*rows["site_group"], *rows["site"], *rows["label"]} - {""})]
    raise PredictionsError(f"there is no group '{group}' of test cases.{did_you_mean(group, known)}")


def _measure(tables: Tables, metric: str, tested: _Tested) -> tuple[Bools, Callable[[Bools], Measured]]:
    """Return which of the cases have a metric, and what measures it on some of them."""
    if tables.predictions.classes and metric in diagnosis_metrics(_foreign(metric)):
        return _diagnosis(tables, metric, tested)
    values = _values_of(tables, metric, tested)

    def restricted(chosen: Bools) -> Measured:
        there = values[chosen]
        return tested.measured(chosen, lambda weights: weighted_mean(there, weights))

    return ~np.isnan(values), restricted


def _diagnosis(tables: Tables, metric: str, tested: _Tested) -> tuple[Bools, Callable[[Bools], Measured]]:
    predictions, units = tables.predictions, tested.units
    threshold = 0.5 if tables.threshold is None else tables.threshold

    def restricted(chosen: Bools) -> Measured:
        labels, positive = units.labels[chosen], predictions.positive_index
        of = diagnosis(
            labels, units.probabilities[chosen], positive=positive, threshold=threshold, names=(metric,)
        )
        return tested.measured(
            chosen, lambda weights: of(weights)[metric, None], _kinds(metric, labels, positive)
        )

    return units.labels >= 0, restricted


def _kinds(metric: str, labels: NDArray[np.int64], positive: int | None) -> tuple[Bools, ...]:
    """Return the cases (n,) of each class that a metric of the diagnosis rests on; () where on none."""
    needs = metric_of(metric).needs
    if needs == "cases":
        return ()
    if positive is None:
        return tuple(labels == index for index in np.unique(labels))
    wanted = {"positives": (True,), "negatives": (False,), "both": (True, False)}[needs]
    return tuple((labels == positive) == is_positive for is_positive in wanted)


def _values_of(tables: Tables, metric: str, tested: _Tested) -> Floats:
    """Return the value of each case, NaN where it has none."""
    others = _foreign(metric)
    found = tested.values(others)
    if metric in found:
        return found[metric]
    if metric in tables.evidence:
        return tables.evidence[metric].reindex(tested.rows.index).to_numpy(np.float64)
    name, structure = split_name(metric)
    if name in metrics(others) and not (structure and tables.predictions.structures is not None):
        return np.full(len(tested.rows), np.nan)  # what such a run does not do
    of_diagnosis = diagnosis_metrics() if tables.predictions.classes else ()
    known = sorted({*found, *map(str, tables.evidence), *of_diagnosis})
    raise PredictionsError(f"there is no metric '{metric}'.{did_you_mean(metric, known)}")


def _foreign(metric: str) -> tuple[str, ...]:
    """Return the metric's own name where it is one of a package or MODULE:NAME; () where it is the program's.

    Raises:
        ExperimentError: it can't be imported.
    """
    name, _ = split_name(metric)
    return (name,) if name not in METRICS and is_named(name) else ()
