"""The history of a training: one row per epoch, the best epoch, early stopping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from threefold.csv_tables import table_text
from threefold.evaluation.metrics import METRICS
from threefold.experiment import Experiment, SelectionSpec
from threefold.run import write_atomically

Row = dict[str, float]


def is_better_lower(metric: str) -> bool:
    """Whether a lower value of what selects an epoch is better: of the loss, and of metrics that say so; of
    one that is no metric of `evaluate`, as a task of one's own may have, a higher one is."""
    name = metric.rpartition(".")[2]
    return name == "loss" or (name in METRICS and METRICS[name].higher_is_better is False)


def monitored(history: Sequence[Row], selection: SelectionSpec) -> float:
    """Return the value by which the last epoch of a history is judged, smoothed; NaN where neither it nor
    those that it is smoothed with could be estimated."""
    rows = history[-selection.smoothing :]
    found = [row.get(f"validation_{selection.metric}", math.nan) for row in rows]
    there = [value for value in found if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan


def best_row(history: Sequence[Row], selection: SelectionSpec) -> int | None:
    """Return the index of the best epoch's row; of equals the earliest, for the metric `tasks` the latest;
    None where no epoch has a value."""
    sign = -1 if is_better_lower(selection.metric) else 1
    best, highest = None, -math.inf
    for index in range(len(history)):
        value = sign * monitored(history[: index + 1], selection)
        if value > highest or (selection.metric == "tasks" and value == highest):
            best, highest = index, value
    return best


def out_of_patience(history: Sequence[Row], selection: SelectionSpec) -> bool:
    """Whether `patience` epochs passed without a better one."""
    best = best_row(history, selection)
    if selection.patience is None or best is None:
        return False
    return len(history) - 1 - best >= selection.patience


def progress_summary(history: Sequence[Row], experiment: Experiment) -> dict[str, Any]:
    """Return the progress and the best epoch, for status.json."""
    selection = experiment.training.selection
    best = best_row(history, selection)
    return {
        "epoch": len(history),
        "epochs": experiment.training.epochs,
        "metric": selection.metric,
        "best_epoch": None if best is None else best + 1,
        "best_value": None if best is None else monitored(history[: best + 1], selection),
    }


def write_history(path: Path, history: Sequence[Row]) -> None:
    """Write metrics.csv: a row an epoch, empty cells for what could not be estimated.

    The whole table each time, in one step: after a resume no epoch is there twice.
    """
    columns = list(dict.fromkeys(name for row in history for name in row))
    rows = ([_cell(row.get(column, math.nan)) for column in columns] for row in history)
    write_atomically(path, table_text([columns, *rows]))


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e9 else f"{value:.8g}"
