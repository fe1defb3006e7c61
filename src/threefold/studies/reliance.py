"""What a study's networks rely on, by variant: worst groups, probes and calibration that `explain` left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from threefold.errors import PredictionsError
from threefold.evaluation.comparison import RelianceRow
from threefold.run import RunFolder
from threefold.runs.probe import SHORTCUT
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import RunPlan
from threefold.validation import read_table

_COLUMNS: dict[str, tuple[str, dict[str, str]]] = {
    "worst group": ("shortcut", {"column": SHORTCUT, "worst": "True", "metric": "accuracy"}),
    "label probe": ("probes", {"target": "label", "of": "probe", "metric": "auc"}),
    "shortcut probe": ("probes", {"target": SHORTCUT, "of": "probe", "metric": "auc"}),
    "site probe": ("probes", {"target": "site", "of": "probe", "metric": "auc"}),
    "calibration error": ("calibration_temperature", {"when": "before", "metric": "calibration_error"}),
    "change by temperature": ("calibration_temperature", {"when": "change", "metric": "calibration_error"}),
}
"""By what is said: which table of a run says it, in which rows."""
TABLES = tuple(dict.fromkeys(name for name, _ in _COLUMNS.values()))
"""Names of those tables, which only a run's network can make."""


def reliance_of(
    folder: StudyFolder,
    plans: Sequence[RunPlan],
    finished: set[str],
    leaks: Callable[[Sequence[str]], bool],
) -> Iterator[RelianceRow]:
    """Yield each number of each variant, mean and range over its runs; none where `explain` left no tables.

    Args:
        folder: the study's.
        plans: its runs.
        finished: ids of those that have finished.
        leaks: whether the split of one of some runs, by their ids, shares patients between training and test.

    Raises:
        PredictionsError: a table is damaged.
    """
    variants: dict[tuple[str, str], list[str]] = {}
    for plan in plans:
        if plan.id in finished:
            variants.setdefault((plan.cohort, plan.variant), []).append(plan.id)
    for (cohort, variant), names in variants.items():
        runs = [dict(_of_run(folder.run(name))) for name in names]
        shared = leaks(names)
        for group, what in dict.fromkeys(key for run in runs for key in run):
            values = [run[group, what] for run in runs if (group, what) in run]
            yield RelianceRow(
                cohort,
                variant,
                group,
                what,
                float(np.mean(values)),
                min(values),
                max(values),
                len(values),
                shared,
            )


def _of_run(run: RunFolder) -> Iterator[tuple[tuple[str, str], float]]:
    """Yield what one run's tables say, by group and name."""
    for what, (name, wanted) in _COLUMNS.items():
        path = run.tables / f"{name}.csv"
        if not path.is_file():
            continue
        try:
            rows = _rows(read_table(path, PredictionsError, ""), what, wanted)
            for group, value in zip(rows["group"], rows["value"], strict=True):
                if value:
                    yield (group, what), float(value)
        except (OSError, ValueError, KeyError) as error:
            raise PredictionsError(
                f"{path}: can't be read ({error}). Run `threefold explain {run.path}` again."
            ) from error


def _rows(table: pd.DataFrame, what: str, wanted: Mapping[str, str]) -> pd.DataFrame:
    """Return the wanted rows, one for all cases and one for each site group."""
    for column, value in wanted.items():
        table = table[table[column] == value]
    if what == "worst group":
        return table.assign(group=table["within"])
    # Of a column with several values the mean comes first, then each value against the rest.
    return table[table["group_kind"].isin(["all", "site group"])].drop_duplicates("group")
