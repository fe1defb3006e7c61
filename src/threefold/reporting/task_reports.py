"""What `evaluate` leaves of each task that has columns of its own: OUT/tasks/TASK with tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from threefold.csv_tables import frame_text
from threefold.evaluation.by_task import KnownTasks, TaskNumbers, numbers_by_task
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation
from threefold.evaluation.metrics import metric_of, shown_in
from threefold.evaluation.numbers import LIMIT
from threefold.evaluation.predictions import Predictions
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
class TaskReport:
    """A task's numbers.

    Attributes:
        task: its name.
        rows: every number.
        shown: the main ones.
    """

    task: str
    rows: tuple[Estimate, ...]
    shown: Table


def write_task_reports(
    table: pd.DataFrame,
    spec: EvaluationSpec,
    out: Path,
    *,
    known: KnownTasks,
    leaks: bool,
    write_one: WriteOne,
) -> tuple[TaskReport, ...]:
    """Evaluate each task of a table of predictions that has columns of its own, and write what was found.

    Args:
        table, spec, known, leaks: as for `numbers_by_task`.
        out: gets tasks/TASK, of findings tasks/TASK/FINDING, too.
        write_one: evaluates a table of one task into a folder, at a threshold.

    Raises:
        PredictionsError: naming the task, the column and the case.
    """

    def write(one: Predictions, names: tuple[str, ...], threshold: float | None) -> Evaluation:
        task, *finding = names
        return write_one(one, out.joinpath(FOLDER, task, *map(case_stem, finding)), threshold)

    found = numbers_by_task(table, spec, known=known, leaks=leaks, evaluate_one=write)
    return tuple(
        TaskReport(one.task, one.rows, _shown(one, spec, out / FOLDER / one.task, known, leaks))
        for one in found
    )


def _shown(one: TaskNumbers, spec: EvaluationSpec, folder: Path, known: KnownTasks, leaks: bool) -> Table:
    """Return a task's main numbers; write them where the task was not evaluated as a table alone."""
    if one.evaluation is not None:
        return _main_numbers(one.evaluation, one.task)
    if one.kind == "number":
        return _number_report(one, known.units.get(one.task, ""), spec, folder, leaks)
    return _finding_report(one, spec, folder, leaks)


def _main_numbers(evaluation: Evaluation, task: str) -> Table:
    """Return the main numbers of a diagnosis, a mask or an image, per case, a column a group."""
    shown = shown_in("task", evaluation.spec.metrics)
    rows = [
        row for row in evaluation.rows if row.level == "case" and not row.class_name and row.metric in shown
    ]
    notes = (interval_legend(evaluation.spec), *((LEAK_NOTE,) if evaluation.leaks else ()))
    return _by_group(task, rows, lambda row: metric_of(row.metric).title, notes)


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


def _finding_report(one: TaskNumbers, spec: EvaluationSpec, folder: Path, leaks: bool) -> Table:
    notes = (interval_legend(spec), *((LEAK_NOTE,) if leaks else ()))
    shown = _by_group(
        one.task, one.rows, lambda row: f"{metric_of(row.metric).title}, {row.class_name}", notes
    )
    _write(one.rows, shown, folder, {"task": one.task, "leaks": leaks})
    return shown


def _number_report(one: TaskNumbers, unit: str, spec: EvaluationSpec, folder: Path, leaks: bool) -> Table:
    def name(row: Estimate) -> str:
        title = metric_of(row.metric).title
        return title if row.metric == "r2" or not unit else f"{title} ({unit})"

    notes = (
        interval_legend(spec),
        f"Bias: mean of predicted minus true. Limits of agreement: bias -+ {LIMIT} standard deviations.",
        *((LEAK_NOTE,) if leaks else ()),
    )
    shown = _by_group(one.task, one.rows, name, notes)
    drawn = {"agreement": agreement_figure(one.table, one.rows, unit)}
    figures = [save(figure, path) for path, figure in or_removed(RunFolder(folder).figures, ".png", drawn)]
    facts = {"task": one.task, "unit": unit, "leaks": leaks}
    _write(one.rows, shown, folder, facts, pictures_of(figures))
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
