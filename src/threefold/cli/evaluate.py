"""`threefold evaluate`: metrics by hospital, tables and figures from predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from threefold.cli.options import AllowOutside, Weights
from threefold.cli.progress import end_with_left_out, progress_of
from threefold.errors import UsageError
from threefold.run import PROPAGATION, Epoch

if TYPE_CHECKING:
    from threefold.cohorts.cohort import Cohort
    from threefold.evaluation.evaluate import Evaluation
    from threefold.reporting.run_report import Report


def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run folders, cross-validations, ensembles, or one table of predictions (CSV) of any program"
        ),
    ] = None,
    cohort: Annotated[
        Path | None,
        typer.Option(help="Another cohort to predict and evaluate; all its cases are test cases."),
    ] = None,
    propagated: Annotated[
        Path | None,
        typer.Option(
            help="A cohort with propagated structures, evaluated against its references as an additional "
            "variant, on the first run's test cases (without a run: on all cases); needs --out."
        ),
    ] = None,
    structures: Annotated[
        Path | None, typer.Option(help="The table of structures (CSV) of a table of predictions.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results of a table (default: NAME-evaluation next to NAME.csv) or of a "
            "comparison."
        ),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(help="For a table with two classes: the positive one (default: the last column's)."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="For a table: decision threshold of the positive class (default: chosen on the table's "
            "validation part, else 0.5).",
            min=0,
            max=1,
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Your own metric for a table of predictions, module:NAME; can be repeated."),
    ] = None,
    weights: Weights = None,
    device: Annotated[str, typer.Option(help="Device to predict another cohort on: cpu, cuda, ...")] = "cpu",
    allow_outside: AllowOutside = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
) -> None:
    """Print every metric by hospital with its n and interval; write tables and figures into the run.

    Several runs are compared: diagnosis by site group and class, structures by structure and class.

    A case of --cohort or --propagated with unusable files is excluded and reported with the results
    (failed.csv lists all of them); the exit status is then 1.

    Example: `threefold evaluate seg-lp seg-man seg-lp-man --propagated my-propagated --out comparison`
    """
    named = runs or []
    tables = [path for path in named if path.suffix == ".csv"]
    of_table = {
        "--structures": structures,
        "--positive": positive,
        "--threshold": threshold,
        "--metric": metric,
    }
    _refuse_contradictions(named, tables, cohort, propagated, of_table, weights, out)

    from threefold.cohorts.cohort import read_cohort
    from threefold.reporting.run_report import comparison
    from threefold.reporting.table import show
    from threefold.reporting.tables import comparison_tables, evaluation_json, evaluation_tables
    from threefold.runs.evaluate import FAILED_NAME

    other = None if cohort is None else read_cohort(cohort, allow_outside=allow_outside)
    labelled = None if propagated is None else read_cohort(propagated, allow_outside=allow_outside)
    if tables:
        found = [(tables[0].stem, _table(tables[0], out, structures, positive, threshold, metric))]
    else:
        found = [(run.resolve().name, _run(run, other, weights, device)) for run in named]
        if labelled is not None and out is not None:
            first = named[0] if named and other is None else None
            found = [(PROPAGATION, _propagation(labelled, first, out)), *found]
    reports = comparison(found)
    evaluations = {name: report.evaluation for name, report in reports.items()}
    compared = () if out is None or len(reports) < 2 else _write_comparison(evaluations, out)
    left_out = {case: why for each in evaluations.values() for case, why in each.left_out.items()}
    if as_json:
        typer.echo(json.dumps({name: evaluation_json(each) for name, each in evaluations.items()}, indent=2))
        end_with_left_out(left_out, FAILED_NAME)
        return
    for name, evaluation in evaluations.items():
        if len(reports) > 1:
            typer.echo(f"== {name}")
        for table in evaluation_tables(evaluation):
            show(table)
        for table in reports[name].tasks:
            show(table)
    if len(reports) > 1:
        for table in comparison_tables(evaluations):
            show(table)
    for report in reports.values():
        typer.echo(f"Tables: {report.tables[0].parent}")
        if report.figures:
            typer.echo(f"Figures: {report.figures[0].parent}")
    for path in compared:
        typer.echo(f"Comparison: {path}")
    end_with_left_out(left_out, FAILED_NAME)


def _refuse_contradictions(
    runs: Sequence[Path],
    tables: Sequence[Path],
    cohort: Path | None,
    propagated: Path | None,
    of_table: Mapping[str, object],
    weights: Epoch | None,
    out: Path | None,
) -> None:
    if not runs and propagated is None:
        raise UsageError("name the run folders to evaluate, or one table of predictions (CSV).")
    if tables and (len(runs) > 1 or cohort is not None or propagated is not None):
        raise UsageError("a table of predictions is evaluated alone and without --cohort or --propagated.")
    if weights is not None and (tables or not runs):
        raise UsageError("--weights is for a run.")
    given = [option for option, value in of_table.items() if value is not None]
    if given and not tables:
        raise UsageError(f"{given[0]} is for a table of predictions; a run has its own.")
    if propagated is not None and out is None:
        raise UsageError("--propagated needs --out, the folder that the results go to.")
    if out is not None and not tables and propagated is None and len(runs) < 2:
        raise UsageError(
            "--out is for a table of predictions or a comparison; a run's results go into the run folder."
        )


def _table(
    path: Path,
    out: Path | None,
    structures: Path | None,
    positive: str | None,
    threshold: float | None,
    metrics: Sequence[str] | None,
) -> Report:
    from threefold.experiment import EvaluationSpec
    from threefold.runs.evaluate import evaluate_table

    folder = path.with_name(f"{path.stem}-evaluation") if out is None else out
    spec = EvaluationSpec(metrics=tuple(metrics or ()))
    return evaluate_table(path, folder, spec, structures=structures, positive=positive, threshold=threshold)


def _propagation(cohort: Cohort, first: Path | None, out: Path) -> Report:
    from threefold.experiment import EvaluationSpec
    from threefold.run import RunFolder
    from threefold.runs.evaluate import evaluate_propagated, evaluate_propagated_as

    with progress_of("Measuring propagated structures") as progress:
        if first is None:
            return evaluate_propagated(cohort, None, out, EvaluationSpec(), progress=progress)
        return evaluate_propagated_as(RunFolder(first), cohort, out, progress=progress)


def _write_comparison(evaluations: Mapping[str, Evaluation], out: Path) -> tuple[Path, ...]:
    from threefold.reporting.tables import write_comparison
    from threefold.run import RunFolder

    return write_comparison(evaluations, RunFolder(out).tables)


def _run(path: Path, other: Cohort | None, weights: Epoch | None, device: str) -> Report:
    from threefold.run import RunFolder
    from threefold.runs.crossvalidated import evaluate_own
    from threefold.runs.evaluate import evaluate_run_on

    with progress_of("Predicting") as progress:
        if other is None:
            return evaluate_own(path, weights, device=device, progress=progress)
        return evaluate_run_on(RunFolder(path), other, device=device, weights=weights, progress=progress)
