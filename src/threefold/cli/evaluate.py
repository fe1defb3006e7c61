"""`threefold evaluate`: from predictions to numbers by hospital, tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from threefold.cli.progress import progress_of
from threefold.errors import UsageError

if TYPE_CHECKING:
    from threefold.cohorts.cohort import Cohort
    from threefold.reporting.run_report import Report


def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders; or one table of predictions (CSV), anyone's.")
    ],
    cohort: Annotated[
        Path | None, typer.Option(help="Another cohort: predict it first; all its cases are test cases.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A table's results go here; default: beside the table.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to predict another cohort: cpu, cuda, ...")] = "cpu",
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Accept paths that leave the other cohort's folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
) -> None:
    """Print every metric by hospital with its n and interval; write tables and figures into the run.

    Several runs are compared in one table: variants by internal and external F1 and AUC.

    Example: `threefold evaluate my-run other-run`
    """
    tables = [path for path in runs if path.suffix == ".csv"]
    if tables and (len(runs) > 1 or cohort is not None):
        raise UsageError("a table of predictions is evaluated alone and without --cohort.")
    if out is not None and not tables:
        raise UsageError("--out is for a table of predictions; a run's results go into the run folder.")

    from threefold.cohorts.cohort import read_cohort
    from threefold.reporting.table import show
    from threefold.reporting.tables import comparison_tables, evaluation_json, evaluation_tables
    from threefold.studies.evaluations import comparison

    other = None if cohort is None else read_cohort(cohort, allow_outside=allow_outside)
    if tables:
        reports = {tables[0].stem: _table(tables[0], out)}
    else:
        reports = comparison([(run.resolve().name, _run(run, other, device)) for run in runs])
    if as_json:
        typer.echo(json.dumps({name: evaluation_json(r.evaluation) for name, r in reports.items()}, indent=2))
        return
    for name, report in reports.items():
        if len(reports) > 1:
            typer.echo(f"== {name}")
        for table in evaluation_tables(report.evaluation):
            show(table)
    if len(reports) > 1:
        for table in comparison_tables({name: report.evaluation for name, report in reports.items()}):
            show(table)
    for report in reports.values():
        typer.echo(f"Tables: {report.tables[0].parent}")
        if report.figures:
            typer.echo(f"Figures: {report.figures[0].parent}")


def _table(path: Path, out: Path | None) -> Report:
    from threefold.experiment import EvaluationSpec
    from threefold.studies.evaluations import evaluate_table

    return evaluate_table(path, path.parent if out is None else out, EvaluationSpec())


def _run(path: Path, other: Cohort | None, device: str) -> Report:
    from threefold.run import RunFolder
    from threefold.studies.evaluations import evaluate_run, evaluate_run_on

    if other is None:
        return evaluate_run(RunFolder(path))
    with progress_of("Predicting") as progress:
        return evaluate_run_on(RunFolder(path), other, device=device, progress=progress)
