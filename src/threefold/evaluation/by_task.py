"""The numbers of each task that has columns of its own in a table of predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd

from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation
from threefold.evaluation.findings import mean_over_findings
from threefold.evaluation.metrics import shown_in
from threefold.evaluation.numbers import evaluate_numbers
from threefold.evaluation.predictions import Predictions, validate
from threefold.evaluation.task_tables import FINDING, Kind, findings_in, of_finding, of_task, tasks_in
from threefold.experiment import EvaluationSpec

EvaluateOne = Callable[[Predictions, tuple[str, ...], float | None], Evaluation]
"""From a table of one task, the task's name (and the finding's), and a threshold to its numbers."""


@dataclass(frozen=True)
class KnownTasks:
    """What a table of predictions does not say of its tasks; by task.

    Attributes:
        thresholds: of diagnoses of two classes; others are chosen on the table's validation part.
        positives: of diagnoses of two classes, the one that sensitivity is about; else the last.
        units: of numbers.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    positives: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskNumbers:
    """The numbers of one task.

    Attributes:
        task: its name.
        kind: what it answers.
        table: the task's own table of predictions.
        rows: by site group and site; of findings the mean over them and those of each (`class_name`).
        evaluation: all of a diagnosis, a mask or an image; None of findings and numbers.
    """

    task: str
    kind: Kind
    table: pd.DataFrame
    rows: tuple[Estimate, ...]
    evaluation: Evaluation | None = None


def numbers_by_task(
    table: pd.DataFrame, spec: EvaluationSpec, *, known: KnownTasks, leaks: bool, evaluate_one: EvaluateOne
) -> Iterator[TaskNumbers]:
    """Yield the numbers of each task of a table of predictions that has columns of its own.

    A diagnosis or a mask is evaluated as one that stands alone is; each finding as a diagnosis, and the mean
    over them; a number by its errors. All by site group and site, with intervals.

    Args:
        table: as `evaluation.task_tables` says.
        spec: replicates, confidence and rules.
        known: what the table does not say of its tasks.
        leaks: the split shares patients between training and test.
        evaluate_one: evaluates a table of one task.

    Raises:
        PredictionsError: naming the task, the column and the case.
    """
    for task, kind in tasks_in(table.columns).items():
        one = of_task(table, task)
        if kind == "number":
            yield TaskNumbers(task, kind, one, tuple(evaluate_numbers(one, spec, leaks=leaks)))
        elif kind == "findings":
            yield TaskNumbers(task, kind, one, _of_findings(one, task, spec, leaks, evaluate_one))
        else:
            checked = _checked(one, task, known.positives.get(task), leaks)
            found = evaluate_one(checked, (task,), known.thresholds.get(task))
            yield TaskNumbers(task, kind, one, found.rows, found)


def _of_findings(
    table: pd.DataFrame, task: str, spec: EvaluationSpec, leaks: bool, evaluate_one: EvaluateOne
) -> tuple[Estimate, ...]:
    """Return the mean over findings, and the numbers of each."""
    rows = [*mean_over_findings(table, spec, leaks=leaks)]
    shown = (*shown_in("findings"), *shown_in("trust"))
    for finding in findings_in(table):
        one = of_finding(table, finding)
        if not ((one["part"] == "test") & (one["label"] != "")).any():
            continue  # known of no test case: its rows are not there
        checked = _checked(one, f"{task}, {finding}", FINDING[1], leaks)
        evaluation = evaluate_one(checked, (task, finding), None)
        rows += [
            replace(row, class_name=finding)
            for row in evaluation.rows
            if row.level == "case" and row.metric in shown and not row.class_name
        ]
    return tuple(row for row in rows if row.group_kind in ("all", "site group", "site"))


def _checked(table: pd.DataFrame, task: str, positive: str | None, leaks: bool) -> Predictions:
    return validate(table, source=f"predictions of {task}", positive=positive, leaks=leaks)
