"""A table of predictions of several tasks, seen as a table of one of them.

Where a network answers several questions of a kind, or numbers and findings, the columns of each begin with
its task's name and a dot: `density.label`, `density.probability_low`, `findings.truth_subdural`,
`findings.probability_subdural`, `age.truth`, `age.predicted`, `lesion.mask_truth_voxels`. A table of one
task has the columns that every table has (see `threefold.evaluation.predictions`), and those without the
prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import pandas as pd

from threefold.evaluation.predictions import (
    CALIBRATED_PREFIX,
    PREDICTION_SET,
    PROBABILITY_PREFIX,
    probability_column,
)

Kind = Literal["class", "findings", "number", "labels", "image"]
_KINDS: Mapping[str, tuple[Kind, str]] = {
    "label": ("class", PROBABILITY_PREFIX),
    "truth": ("number", "predicted"),
    "mask_truth_voxels": ("labels", "mask_predicted_voxels"),
    "psnr": ("image", "ssim"),
}
"""By the column that tells a task: what it answers, and how another of its columns begins."""
TRUTH_PREFIX = "truth_"
"""Of a finding's column."""
FINDING = ("absent", "present")
"""The classes of one finding, seen as a diagnosis."""


def tasks_in(columns: Iterable[str]) -> dict[str, Kind]:
    """Return the tasks whose columns begin with their names, and what each answers, in the table's order.

    A column of one's own that has a dot in its name, `reader.label` say, makes no task.
    """
    own: dict[str, list[str]] = {}
    for column in columns:
        task, _, name = column.partition(".")
        own.setdefault(task, []).append(name)
    found: dict[str, Kind] = {}
    for task, names in own.items():
        for name in names:
            kind, beside = _KINDS.get(name, ("findings", PROBABILITY_PREFIX))
            tells = name in _KINDS or name.startswith(TRUTH_PREFIX)
            if tells and any(other.startswith(beside) for other in names):
                found.setdefault(task, kind)
    return found


def of_task(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return the table of one task: the columns that no task has to itself, and its own."""
    others = [f"{other}." for other in tasks_in(table.columns)]
    shared = [name for name in table.columns if not name.startswith(tuple(others))]
    own = {name: name.removeprefix(f"{task}.") for name in table.columns if name.startswith(f"{task}.")}
    kept = [name for name in shared if name not in own.values()]
    return table[[*kept, *own]].rename(columns=own)


def findings_in(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the findings of a table of one task."""
    return tuple(name.removeprefix(TRUTH_PREFIX) for name in table.columns if name.startswith(TRUTH_PREFIX))


def of_finding(table: pd.DataFrame, finding: str) -> pd.DataFrame:
    """Return a finding of a table of findings as a diagnosis of two classes, absent and present."""
    told = (TRUTH_PREFIX, PROBABILITY_PREFIX, CALIBRATED_PREFIX, PREDICTION_SET)
    own = [name for name in table.columns if name.startswith(told)]
    known = pd.to_numeric(table[f"{TRUTH_PREFIX}{finding}"], errors="coerce")
    present = pd.to_numeric(table[probability_column(finding)], errors="coerce")
    names = np.where(known.isna(), "", np.where(known == 1, FINDING[1], FINDING[0]))
    rest = table.drop(columns=[*own, *(["label"] if "label" in table else [])])
    columns = {probability_column(FINDING[0]): 1 - present, probability_column(FINDING[1]): present}
    if (calibrated := f"{CALIBRATED_PREFIX}{finding}") in table:
        scaled = pd.to_numeric(table[calibrated], errors="coerce")
        columns |= {
            f"{CALIBRATED_PREFIX}{FINDING[0]}": 1 - scaled,
            f"{CALIBRATED_PREFIX}{FINDING[1]}": scaled,
        }
    if (of_set := f"{PREDICTION_SET}_{finding}") in table:
        columns[PREDICTION_SET] = table[of_set]
    return rest.assign(label=names, **columns)
