"""Out-of-fold predictions: each case by the run of its fold, which was not trained on its patient.

The folder of a cross-validation has, beside the files of an ensemble (`runs.ensembles`):

  folds/             the study of the trainings (`studies.study_folder`); its runs are the ensemble's members
  predictions.csv    one row a case, out of fold; the column `fold` says of which
  structures.csv     one row a case and structure, likewise
  failed.csv         cases that could not be predicted, and why; absent without such
  masks/             the predicted masks, likewise
  results.json, tables/, figures/, as in a run
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from threefold.checksums import remove_table
from threefold.cohorts.cohort import Cohort
from threefold.cohorts.failures import Failures, read_failures, write_failures
from threefold.cohorts.splits import Split, read_split
from threefold.csv_tables import read_frame
from threefold.errors import RunError, UsageError
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation, evaluate
from threefold.evaluation.groups import natural_order
from threefold.evaluation.metrics import shown_in
from threefold.evaluation.predictions import Predictions, read_predictions, write_predictions
from threefold.experiment import EvaluationSpec
from threefold.file_names import case_stem
from threefold.reporting.results import Entry, Part, write_part
from threefold.reporting.run_report import Report, choose_examples, write_report
from threefold.reporting.table import Table, cell, interval_legend, page
from threefold.reporting.tables import title_of
from threefold.run import Epoch, RunFolder, make_folder, write_atomically
from threefold.runs.ensembles import EnsembleFolder, write_members
from threefold.runs.evaluate import (
    Progress,
    cohort_if_there,
    cohort_of_run,
    evaluate_run,
    evaluate_run_on,
    evaluate_weights,
    known_tasks,
    of_run,
    positive_of,
    read_run_predictions,
    with_structures_beside,
    without_failed,
)
from threefold.tasks.resolve import only_diagnosis

FOLD = "fold"
"""The column of predictions.csv, and the name of the table by fold."""


def folds_of(cohort: Cohort, splits: Sequence[Split]) -> dict[str, int]:
    """Return the fold that predicts each case: by number, one whose test part its patient is in.

    Of a patient in the test parts of several folds (of a site that is held out of all of them, or of two
    sites) one of these is drawn by a hash of the patient's name.

    Raises:
        RunError: a case is in no fold's test part.
    """
    tested: dict[str, list[int]] = {}
    for case in cohort.cases:
        there = [number for number, split in enumerate(splits) if split.parts.get(case.case_id) == "test"]
        if not there:
            raise RunError(
                f"{cohort.folder}: case {case.case_id} is in the test part of no fold. The cohort changed "
                "since: name another --out."
            )
        known = tested.setdefault(case.patient_id, there)
        tested[case.patient_id] = [number for number in known if number in there] or there
    drawn = {
        patient: there[int(hashlib.sha256(patient.encode()).hexdigest(), 16) % len(there)]
        for patient, there in tested.items()
    }
    return {case.case_id: drawn[case.patient_id] for case in cohort.cases}


def gather(runs: Sequence[RunFolder], names: Sequence[str], cohort: Cohort, out: Path) -> None:
    """Write the out-of-fold predictions of the runs of all folds, and the ensemble that they are.

    Args:
        runs: finished, one a fold, all on this cohort.
        names: of the folds.
        cohort: the cases.
        out: the cross-validation's folder, which is there.

    Raises:
        RunError: a run is damaged or has not finished, or the disk refuses.
        PredictionsError: a run's predictions are damaged.
    """
    folds = folds_of(cohort, [read_split(run.split) for run in runs])
    whole, failed = RunFolder(out), Failures()
    tables: dict[str, list[pd.DataFrame]] = {"predictions": [], "structures": []}
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        read_run_predictions(run)  # verified
        own = {case for case, fold in folds.items() if fold == number}
        failed |= {case: why for case, why in read_failures(run.failed).items() if case in own}
        for what, found in tables.items():
            path = getattr(run, what)
            if path.is_file():
                rows = read_frame(path)
                rows = rows[rows["case_id"].isin(own)]
                found.append(rows.assign(**{FOLD: name}) if what == "predictions" else rows)
        _copy_masks(run, whole, own)
    order = {case.case_id: number for number, case in enumerate(cohort.cases)}
    for what, found in tables.items():
        path = getattr(whole, what)
        if found:
            table = pd.concat(found, ignore_index=True)
            write_predictions(
                table.sort_values("case_id", key=lambda ids: ids.map(order), kind="stable"), path
            )
        else:
            remove_table(path)
    write_failures(whole.failed, failed)
    write_members(runs, EnsembleFolder(out))  # last: where it is, all is


def _copy_masks(run: RunFolder, whole: RunFolder, cases: Iterable[str]) -> None:
    """Copy the predicted masks of some cases."""
    stems = {case_stem(case) for case in cases}
    for path in sorted(run.masks.rglob("*")):
        if path.is_file() and path.name.split(".nii")[0].removesuffix(".png") in stems:
            target = whole.masks / path.relative_to(run.masks)
            make_folder(target.parent)
            write_atomically(target, path.read_bytes())


def evaluate_own(
    folder: Path, weights: Epoch | None = None, *, device: str = "cpu", progress: Progress | None = None
) -> Report:
    """Evaluate a run, a cross-validation or an ensemble on the cases that it was not trained on.

    Those of a run are its test part, those of a cross-validation all cases, each out of fold. An ensemble of
    runs with one test part predicts it, and the report goes to ENSEMBLE/evaluations, as `evaluate_run_on`.

    Args:
        folder: of any of them.
        weights: of the best or last epoch; None: as each experiment says.
        device: where cases are predicted.
        progress: told after each of them.

    Raises:
        UsageError: weights are named of a cross-validation.
        RunError: an ensemble's members have not one test part in common.
        RunError, PredictionsError, CohortError, ImageError: as `evaluate_run`, `evaluate_weights`,
            `evaluate_run_on` and `evaluate_crossvalidated`.
    """
    run = RunFolder(folder)
    if EnsembleFolder(folder).exists:
        if not run.predictions.is_file():
            tested = _tested_by_all(folder)
            return evaluate_run_on(run, tested, device=device, weights=weights, progress=progress)
        if weights is not None:
            raise UsageError(
                f"{folder}: --weights is for one run, or for another cohort (--cohort): a cross-validation's "
                "predictions were made by each of its runs with its own."
            )
        return evaluate_crossvalidated(folder)
    if weights is None:
        return evaluate_run(run)
    return evaluate_weights(run, weights, device=device, progress=progress)


def _tested_by_all(folder: Path) -> Cohort:
    """Return the cohort of an ensemble's members, of its cases the test part, which is the same for all.

    Raises:
        RunError: it is not.
        CohortError: the cohort is not where it was, or changed since.
    """
    members = EnsembleFolder(folder).members()
    first, *others = members
    split = read_split(first.split)
    known = first.read_cohort()["fingerprint"]
    if any(one.read_cohort()["fingerprint"] != known or read_split(one.split) != split for one in others):
        raise RunError(
            f"{folder}: is an ensemble without a test part of its own: its members were trained on different "
            "cases. Name a cohort that none of them has seen (--cohort)."
        )
    cohort = cohort_of_run(first)
    return replace(cohort, cases=split.cases(cohort, "test"))


def evaluate_crossvalidated(out: Path) -> Report:
    """Evaluate the out-of-fold predictions of a cross-validation; tables and figures go into its folder.

    The threshold is the mean of the folds', each chosen on the validation part of its run, which is also that
    of the ensemble. Intervals resample the patients of all folds together; the table by fold tells how much
    the folds differ.

    Raises:
        RunError: a member is gone or changed.
        PredictionsError: the table was damaged, or there is none.
    """
    ensemble, folder = EnsembleFolder(out), RunFolder(out)
    members = ensemble.members()
    experiment, trained, home = of_run(members[0])
    asked = only_diagnosis(experiment, trained)
    predictions = read_predictions(
        folder.predictions,
        classes=None if asked is None else asked.classes,
        positive=positive_of(asked),
        leaks=any(read_split(run.split).leaks for run in members),
    )
    failed = read_failures(folder.failed)
    predictions = without_failed(predictions, failed, len(predictions.table) + len(failed))
    names = natural_order(set(predictions.table[FOLD].astype(str)))
    predictions = replace(
        with_structures_beside(predictions, folder),
        notes=(
            f"Out of fold: each case is predicted by one of {len(members)} networks, that of its fold, which "
            "was not trained on its patient.",
            *predictions.notes,
        ),
    )
    status = [run.read_status() for run in members]
    threshold, thresholds = _mean_thresholds(status)
    cohort = cohort_if_there(home)
    known = known_tasks(experiment, trained, thresholds)
    preprocessing = experiment.data.preprocessing
    examples = (
        None if cohort is None else choose_examples(predictions, cohort, trained, preprocessing, folder.masks)
    )
    report = write_report(
        predictions, experiment.evaluation, out, threshold=threshold, examples=examples, known=known
    )
    by_fold = _evaluated_by_fold(predictions, names, experiment.evaluation, threshold)
    table = _table_by_fold(by_fold, report.evaluation, experiment.evaluation)
    numbers = [
        Entry(row, {FOLD: name}) for name, each in by_fold.items() for row in each.rows if row.group == "all"
    ]
    write_part(out, "crossvalidate", Part({"folds": names}, tuple(numbers), (table,), ()))
    path = folder.tables / "folds.md"
    write_atomically(path, page((table,)))
    return replace(report, tables=(*report.tables, path), tasks=(table, *report.tasks))


def _mean_thresholds(status: Sequence[Mapping[str, Any]]) -> tuple[float | None, dict[str, float]]:
    """Return the mean of the members' thresholds: of the only diagnosis, and by task."""
    known = [one["threshold"] for one in status if one.get("threshold") is not None]
    by_task = [one.get("thresholds", {}) for one in status]
    return (
        fmean(known) if known else None,
        {name: fmean(one[name] for one in by_task) for name in by_task[0]},
    )


def _evaluated_by_fold(
    predictions: Predictions, names: Sequence[str], spec: EvaluationSpec, threshold: float | None
) -> dict[str, Evaluation]:
    found = {}
    for name in names:
        rows = predictions.table[predictions.table[FOLD].astype(str) == name]
        structures = predictions.structures
        if structures is not None:
            structures = structures[structures["case_id"].isin(rows["case_id"])]
        rows = rows.assign(site="", site_group="").reset_index(drop=True)  # of all sites together, only
        one = replace(predictions, table=rows, structures=structures)
        found[name] = evaluate(one, spec, threshold=threshold)
    return found


def _table_by_fold(by_fold: Mapping[str, Evaluation], whole: Evaluation, spec: EvaluationSpec) -> Table:
    """Return the headline metrics of each fold and of all together."""

    def of(evaluation: Evaluation) -> dict[str, Estimate]:
        return {
            row.metric: row
            for row in evaluation.rows
            if row.level == "case" and row.group == "all" and not row.class_name
        }

    columns = {**{f"fold {name}": of(each) for name, each in by_fold.items()}, "all": of(whole)}
    metrics = [name for name in shown_in("headline", columns["all"]) if name in columns["all"]]
    return Table(
        title="Out of fold, by fold",
        columns=("metric", *columns),
        rows=tuple(
            (title_of(metric, ""), *(cell(found.get(metric)) for found in columns.values()))
            for metric in metrics
        ),
        notes=(interval_legend(spec),),
        name="folds",
    )
