"""`threefold crossvalidate`: a recipe in folds, each case predicted out of fold, an ensemble of the folds."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside, Ray, Workers
from threefold.cli.progress import count, end_with_left_out, resumable


class Grouping(StrEnum):
    """What a fold leaves out."""

    PATIENT = "patient"
    SITE = "site"


def crossvalidate(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (`threefold recipes list`) or a YAML file.")],
    cohort: Annotated[Path, typer.Option(help="Folder with cohort.yaml and cases.csv.")],
    out: Annotated[Path, typer.Option(help="Folder of the cross-validation: a new one, or one to resume.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the experiment: key.path=value ...")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Number of folds, by patient.")] = 5,
    by: Annotated[
        Grouping, typer.Option(help="patient: folds of patients. site: each fold leaves one site out.")
    ] = Grouping.PATIENT,
    workers: Workers = None,
    ray: Ray = None,
    allow_outside: AllowOutside = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
) -> None:
    """Train a recipe once per fold, predict every case out of fold, and make an ensemble of the folds.

    Patients are divided into folds, stratified by label, site and presence of masks; or, with --by site, each
    site is left out once. Each case is predicted by the network of its fold, which was not trained on its
    patient. The folder gets these predictions in one table, metrics by hospital with intervals over the
    patients of all folds, and the metrics of each fold; `predict` and `evaluate --cohort` take the folder as
    an ensemble of all folds.

    Patients of sites that the recipe holds out (data.split.hold_out; by patient, by default the site group
    `external`) train in no fold; each is predicted by one of the networks.

    The same command resumes an interrupted cross-validation. If a fold fails, the others are trained, and the
    exit status is 1.

    Example: `threefold crossvalidate hematoma/demo --cohort my-cohort --folds 5 --out my-folds`
    """
    from threefold.cohorts.cohort import read_cohort
    from threefold.experiments import load_experiment

    load_experiment(recipe, overrides or [])  # report errors in the arguments before importing anything slow
    cases = read_cohort(cohort, allow_outside=allow_outside)

    from threefold.reporting.table import show
    from threefold.reporting.tables import evaluation_json, evaluation_tables
    from threefold.studies.crossvalidation import crossvalidate as run_folds
    from threefold.studies.crossvalidation import plan_crossvalidation
    from threefold.studies.study_pools import pool_of
    from threefold.training.devices import require_one_process
    from threefold.training.progress import terminal_progress

    require_one_process("a cross-validation")
    asked = plan_crossvalidation(recipe, cases, out, folds=folds, by=by.value, overrides=overrides or ())
    make_pool = partial(pool_of, threads=asked.study.threads, workers=workers, ray=ray)
    progress = terminal_progress()
    with resumable(progress):
        ended, report = run_folds(asked, make_pool, progress)
    for outcome in (each for each in ended if each.message):
        typer.echo(f"{outcome.run}: {outcome.state}: {outcome.message}", err=True)
    if report is None:
        typer.echo(f"{out}: not every fold has finished; the same command tries again.", err=True)
        raise typer.Exit(1)
    if as_json:
        typer.echo(json.dumps(evaluation_json(report.evaluation), indent=2))
        end_with_left_out(report.evaluation.left_out, "failed.csv")
        return
    for table in (*evaluation_tables(report.evaluation), *report.tasks):
        show(table)
    typer.echo(
        f"{out}: {count(len(asked.names), 'fold')}; out-of-fold predictions in {out / 'predictions.csv'}"
    )
    typer.echo(f"Next: threefold report {out}, threefold predict {out} IMAGES --out PREDICTIONS")
    end_with_left_out(report.evaluation.left_out, "failed.csv")
