"""What a finished run relies on and knows: a shortcut's values, probes of its features, its calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from threefold.audits.confounders import read_measurements
from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.failures import Failures, left_out_notes
from threefold.csv_tables import frame_text
from threefold.errors import NoFeaturesError, PredictionsError, RunError
from threefold.evaluation.by_value import by_value, require_column
from threefold.evaluation.calibration import calibration_changes, temperature_of
from threefold.evaluation.predictions import Predictions, validate
from threefold.evaluation.probes import probe_column
from threefold.evaluation.task_tables import of_task
from threefold.experiment import ClassificationSpec
from threefold.experiments import read_experiment
from threefold.reporting.probe_tables import (
    probe_entries,
    probe_table,
    temperature_entries,
    temperature_table,
    value_entries,
    value_table,
)
from threefold.reporting.results import Entry, Part, frame_of, write_part
from threefold.reporting.table import Table, page
from threefold.run import RunFolder, make_folder, write_atomically
from threefold.runs.evaluate import cohort_of_run, known_tasks, of_run, read_run_predictions
from threefold.tasks.resolve import targets_of
from threefold.validation import did_you_mean

Progress = Callable[[int, int], None]
SHORTCUT = "shortcut"
"""The column of a phantom's planted shortcut."""
_OF_COLUMN = {"shortcut": "shortcut-{column}", "probes": "probes-{column}"}
"""What the tables about another column are named."""


@dataclass(frozen=True)
class Probed:
    """What probing a run gave.

    Attributes:
        tables: for people.
        files: that were written.
        notes: what could not be asked of this run, and why, in sentences.
        left_out: why test cases could not be used, by id; the probes are without them.
    """

    tables: tuple[Table, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    left_out: Mapping[str, str]


def probe_run(
    run: RunFolder,
    *,
    column: str | None = None,
    task: str | None = None,
    cohort: Cohort | None = None,
    device: str = "cpu",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Probed:
    """Ask a finished run what it relies on and knows; tables and results go into the run folder.

    - shortcut.md, .csv: the diagnosis by the values of a column, the worst group, aligned and conflicting
      cases (of another column than `shortcut`: shortcut-COLUMN, and probes-COLUMN below);
    - calibration_temperature.md, .csv: calibration by site before and after a temperature fitted on
      validation;
    - probes.md, .csv: what a linear probe of the features tells of label, column and site; not of a network
      that gives none.

    The first two come from the run's predictions alone; for the last the network sees the test cases once
    more, and a case that can't be read is left out of it.

    Args:
        run: with predictions and weights.
        column: of the cohort's table, or a measurement of the acquisition, as `threefold check` names them
            (grid.rows); numbers are divided at the validation part's median. None: `shortcut`, where there
            is one.
        task: of several classification tasks the one that is asked about, by its name or its target's; its
            tables have its name before theirs.
        cohort: the cohort trained on; None: where it was.
        device: for the network.
        batch_size: images a pass of the network.
        progress: told of the test cases that were seen.

    Raises:
        RunError: not a finished run, or it has no such task.
        CohortError: its cohort is not where it was, or has changed.
        PredictionsError: no such column, or it holds no categories; or the predictions were damaged.
        ImageError: no test case can be read.
    """
    predictions, task = _of_task(run, task)
    spec = read_experiment(run.experiment).evaluation
    known = cohort_of_run(run, cohort)
    if column is not None and column not in predictions.table and "." in column:
        predictions = _with_measurement(predictions, known, column)
    if column is not None:
        require_column(predictions, column)
    asked = column or (SHORTCUT if SHORTCUT in predictions.table else None)
    named: dict[str, tuple[Table, list[Entry]]] = {}
    notes = []
    if asked is None:
        notes.append(f"The cohort has no column {SHORTCUT}: name another with --shortcut COLUMN.")
    if not predictions.classes:
        several = _diagnoses(run)
        notes.append(
            f"The run has several diagnoses ({', '.join(several)}): name one with --task; only its features "
            "are probed."
            if several
            else "The run has no diagnosis: only its features are probed."
        )
    elif asked is not None:
        found = by_value(predictions, asked, spec)
        table = value_table(found, spec, binary=predictions.positive is not None)
        named["shortcut"] = (table, value_entries(found))
    if predictions.classes:
        temperature = temperature_of(predictions, spec)
        changes = list(calibration_changes(predictions, temperature.value, spec))
        named["calibration_temperature"] = (
            temperature_table(temperature, changes, spec),
            temperature_entries(temperature, changes),
        )
    failed: Failures = {}
    try:
        features = _features(run, known, predictions, device, batch_size, failed, progress)
    except NoFeaturesError as none:
        notes.append(str(none))
    else:
        notes += left_out_notes(failed, len(failed) + len(features))
        table_of = predictions.table
        seen = replace(predictions, table=table_of[~table_of["case_id"].isin(list(failed))])
        # Once each: the column asked about may be one of the others.
        columns = dict.fromkeys(name for name in ("label", asked, "site") if name is not None)
        probes = [each for name in columns for each in probe_column(seen, features, name, spec)]
        named["probes"] = (probe_table(probes, spec), probe_entries(probes))
    part = "probe"
    if asked not in (None, SHORTCUT):  # a phantom's own shortcut keeps its tables
        named = {_OF_COLUMN.get(name, name).format(column=asked): each for name, each in named.items()}
        part = f"probe {asked}"
    if task is not None:
        named = {f"{task}-{name}": each for name, each in named.items()}
        part = f"{part} of {task}"
    named = {name: (replace(table, name=name), entries) for name, (table, entries) in named.items()}
    files = _write(named, run.tables)
    tables = tuple(table for table, _ in named.values())
    numbers = tuple(entry for _, entries in named.values() for entry in entries)
    facts = {"column": asked, "notes": notes, "left_out": dict(failed)}
    write_part(run.path, part, Part(facts, numbers, tables, ()))
    return Probed(tables, files, tuple(notes), failed)


def _of_task(run: RunFolder, task: str | None) -> tuple[Predictions, str | None]:
    """Return a run's predictions, as those of the diagnosis that is asked about, and its task's name; None:
    its columns have no name before theirs.

    Raises:
        RunError: there is no such task.
        PredictionsError: the predictions were damaged.
    """
    predictions = read_run_predictions(run)
    if task is None:
        return predictions, None
    experiment, trained, _ = of_run(run)
    diagnoses = _diagnoses(run)
    found = next((name for name, target in diagnoses.items() if task in (name, target)), None)
    if found is None:
        raise RunError(
            f"{run.path}: has no classification task '{task}'.{did_you_mean(task, tuple(diagnoses))}"
        )
    if predictions.classes:
        return predictions, None
    positive = known_tasks(experiment, trained, {}).positives.get(found)
    table = of_task(predictions.table, found)
    where = f"predictions of {found}"
    return validate(table, source=where, positive=positive, leaks=predictions.leaks), found


def _diagnoses(run: RunFolder) -> dict[str, str]:
    """Return the target of each classification task of a run."""
    experiment, trained, _ = of_run(run)
    targets = targets_of(experiment, trained)
    return {name: targets[name] for name in experiment.tasks_of(ClassificationSpec)}


def _with_measurement(predictions: Predictions, cohort: Cohort, name: str) -> Predictions:
    """Return predictions with a column for one measurement of their images.

    Raises:
        PredictionsError: there is no such measurement.
    """
    cases = cases_named(cohort, predictions.table["case_id"].tolist())
    values = read_measurements(cohort, cases)
    if name not in values:
        raise PredictionsError(f"'{name}' is no measurement of these cases.{did_you_mean(name, [*values])}")
    found = [values[name].get(case.case_id) for case in cases]
    numbers = [value for value in values[name].values() if isinstance(value, float)]
    if len(numbers) == len(values[name]):
        known = zip(found, predictions.table["part"], strict=True)
        chosen: list[float] = [v for v, part in known if part == "validation" and isinstance(v, float)]
        middle = float(np.median(chosen or numbers))
        found = [
            None if value is None else f"{'above' if float(value) > middle else 'up to'} {middle:g}"
            for value in found
        ]
    column = ["" if value is None else str(value) for value in found]
    return replace(predictions, table=predictions.table.assign(**{name: column}))


def _features(
    run: RunFolder,
    cohort: Cohort,
    predictions: Predictions,
    device: str,
    batch_size: int,
    failed: Failures,
    progress: Progress | None,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the features of the test cases in the table's order, (n, F), but of those that fail."""
    from threefold.inference.features import stage_features
    from threefold.inference.predictor import Predictor

    cases = cases_named(cohort, predictions.part("test")["case_id"].tolist())
    predictor = Predictor.from_run(run.path, device=device)
    return stage_features(
        predictor,
        cases,
        cohort.spec,
        batch_size=batch_size,
        failed=failed,
        progress=progress,
        by_stage=False,
    ).pooled


def cases_named(cohort: Cohort, names: Sequence[str]) -> list[Case]:
    """Return cases of a cohort by their ids.

    Raises:
        RunError: it has no such case.
    """
    known = {case.case_id: case for case in cohort.cases}
    missing = [name for name in names if name not in known]
    if missing:
        raise RunError(
            f"case {missing[0]}: not in cohort {cohort.folder}. Name the cohort that the run is of."
        )
    return [known[name] for name in names]


def _write(named: Mapping[str, tuple[Table, list[Entry]]], folder: Path) -> tuple[Path, ...]:
    make_folder(folder)
    paths = []
    for name, (table, entries) in named.items():
        contents = {"md": page([table]), "csv": frame_text(frame_of(entries))}
        for suffix, content in contents.items():
            paths.append(folder / f"{name}.{suffix}")
            write_atomically(paths[-1], content)
    return tuple(paths)
