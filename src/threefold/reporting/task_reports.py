"""What `evaluate` leaves of each task that has columns of its own: OUT/tasks/TASK with tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from threefold.csv_tables import frame_text
from threefold.errors import PredictionsError
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation
from threefold.evaluation.findings import MEAN_METRICS, mean_over_findings
from threefold.evaluation.metrics import METRICS
from threefold.evaluation.numbers import LIMIT, evaluate_numbers
from threefold.evaluation.predictions import Predictions, validate
from threefold.evaluation.task_tables import FINDING, findings_in, of_finding, of_task, tasks_in
from threefold.experiment import EvaluationSpec
from threefold.file_names import case_stem
from threefold.reporting.figures import agreement_figure, save
from threefold.reporting.results import Entry, Part, frame_of, pictures_of, write_part
from threefold.reporting.table import LEAK_NOTE, Table, cell, interval_legend, page
from threefold.run import RunFolder, or_removed, write_atomically

FOLDER = "tasks"
"""Of the reports by task, in a run."""
WriteOne = Callable[[Predictions, Path, float | None], Evaluation]


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


def write_task_reports(
    table: pd.DataFrame,
    spec: EvaluationSpec,
    out: Path,
    *,
    known: KnownTasks,
    leaks: bool,
    write_one: WriteOne,
) -> tuple[Table, ...]:
    """Evaluate each task of a table of predictions that has columns of its own, and write what was found.

    A diagnosis or a mask is evaluated as one that stands alone is; each finding as a diagnosis, and the mean
    over them; a number by its errors. All by site group and site, with intervals.

    Args:
        table: as `evaluation.task_tables` says.
        spec: replicates, confidence and rules.
        out: gets tasks/TASK.
        known: what the table does not say of its tasks.
        leaks: the split shares patients between training and test.
        write_one: evaluates a table of one task into a folder, at a threshold.

    Returns:
        A table for each task, of its main numbers.

    Raises:
        PredictionsError: naming the task, the column and the case.
    """
    shown: list[Table] = []
    for task, kind in tasks_in(table.columns).items():
        one, folder = of_task(table, task), out / FOLDER / task
        if kind == "number":
            shown.append(_number_report(one, task, known.units.get(task, ""), spec, folder, leaks))
        elif kind == "findings":
            shown += _finding_reports(one, task, spec, folder, leaks, write_one)
        else:
            checked = _checked(one, task, known.positives.get(task), leaks)
            shown.append(_main_numbers(write_one(checked, folder, known.thresholds.get(task)), task))
    return tuple(shown)


def _checked(table: pd.DataFrame, task: str, positive: str | None, leaks: bool) -> Predictions:
    return validate(table, source=f"predictions of {task}", positive=positive, leaks=leaks)


_MAIN = (
    "auc",
    "average_precision",
    "f1",
    "sensitivity",
    "specificity",
    "brier",
    "dice",
    "missed_lesions",
    "psnr",
)


def _main_numbers(evaluation: Evaluation, task: str) -> Table:
    """Return the main numbers of a diagnosis, a mask or an image, per case, a column a group."""
    rows = [
        row
        for row in evaluation.rows
        if row.level == "case" and not row.class_name and row.metric in (*_MAIN, "psnr")
    ]
    notes = (interval_legend(evaluation.spec), *((LEAK_NOTE,) if evaluation.leaks else ()))
    return _by_group(task, rows, lambda row: METRICS[row.metric].title, notes)


def _by_group(
    title: str, rows: Sequence[Estimate], name: Callable[[Estimate], str], notes: tuple[str, ...]
) -> Table:
    groups = list(dict.fromkeys(row.group for row in rows if row.group_kind in ("all", "site group", "site")))
    found = {(name(row), row.group): row for row in rows}
    lines = list(dict.fromkeys(name(row) for row in rows))
    return Table(
        title,
        ("metric", *groups),
        tuple((line, *(cell(found.get((line, group))) for group in groups)) for line in lines),
        notes,
        name="main",
    )


def _finding_reports(
    table: pd.DataFrame, task: str, spec: EvaluationSpec, folder: Path, leaks: bool, write_one: WriteOne
) -> list[Table]:
    """Evaluate each finding by itself into FOLDER/FINDING, and their mean into FOLDER/tables."""
    rows = [*mean_over_findings(table, spec, leaks=leaks)]
    for finding in findings_in(table):
        checked = _checked(of_finding(table, finding), f"{task}, {finding}", FINDING[1], leaks)
        try:
            evaluation = write_one(checked, folder / case_stem(finding), None)
        except PredictionsError:
            continue  # known of no test case: its rows are not there
        rows += [
            _named(row, finding)
            for row in evaluation.rows
            if row.level == "case" and row.metric in MEAN_METRICS and not row.class_name
        ]
    kept = [row for row in rows if row.group_kind in ("all", "site group", "site")]
    notes = (interval_legend(spec), *((LEAK_NOTE,) if leaks else ()))
    shown = _by_group(task, kept, lambda row: f"{METRICS[row.metric].title}, {row.class_name}", notes)
    _write(kept, shown, folder, {"task": task, "leaks": leaks})
    return [shown]


def _named(row: Estimate, finding: str) -> Estimate:
    return Estimate(**{**vars(row), "class_name": finding})


def _number_report(
    table: pd.DataFrame, task: str, unit: str, spec: EvaluationSpec, folder: Path, leaks: bool
) -> Table:
    rows = evaluate_numbers(table, spec, leaks=leaks)

    def name(row: Estimate) -> str:
        title = METRICS[row.metric].title
        return title if row.metric == "r2" or not unit else f"{title} ({unit})"

    notes = (
        interval_legend(spec),
        f"Bias: mean of predicted minus true. Limits of agreement: bias -+ {LIMIT} standard deviations.",
        *((LEAK_NOTE,) if leaks else ()),
    )
    shown = _by_group(task, rows, name, notes)
    drawn = {"agreement": agreement_figure(table, rows, unit)}
    figures = [save(figure, path) for path, figure in or_removed(RunFolder(folder).figures, ".png", drawn)]
    _write(rows, shown, folder, {"task": task, "unit": unit, "leaks": leaks}, pictures_of(figures))
    return shown


def _write(
    rows: Sequence[Estimate],
    shown: Table,
    folder: Path,
    facts: Mapping[str, Any],
    pictures: tuple[str, ...] = (),
) -> None:
    """Write a task's numbers and its table, and last its results.json."""
    tables = RunFolder(folder).tables
    tables.mkdir(parents=True, exist_ok=True)
    entries = tuple(map(Entry, rows))
    write_atomically(tables / "metrics.csv", frame_text(frame_of(entries)))
    write_atomically(tables / "metrics.md", page([shown]))
    write_part(folder, "evaluate", Part(facts, entries, (shown,), pictures))
