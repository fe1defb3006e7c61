"""`threefold study`: train several experiments on the same cases and compare them."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside, Ray, Workers
from threefold.cli.progress import count, resumable

study = typer.Typer(
    help="Compare experiments with statistics. Example: `threefold study run hematoma-claims --out study`",
    no_args_is_help=True,
)


@study.callback()
def _group() -> None:
    """Compare experiments with statistics.

    Example: `threefold study run hematoma-claims --out study`
    """


@study.command("list")
def list_studies() -> None:
    """List the shipped studies.

    Example: `threefold study list`
    """
    from threefold.studies.study_spec import load_study, plan_runs, study_names

    for name in study_names():
        spec = load_study(name)
        runs, claims = count(len(plan_runs(spec)), "run"), count(len(spec.claims), "claim")
        typer.echo(f"{name}: {runs}, {claims}. {' '.join(spec.description.split())}")


@study.command()
def run(
    name: Annotated[str, typer.Argument(help="A study's name (`threefold study list`) or a YAML file.")],
    out: Annotated[Path, typer.Option(help="The study's folder: cohorts, runs, tables.")],
    cohort: Annotated[
        Path | None, typer.Option(help="Your own cohort, to train all variants on instead of the study's.")
    ] = None,
    allow_outside: AllowOutside = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only runs whose COHORT/VARIANT/split-K-seed-S matches (`*`, `?`); repeatable."),
    ] = None,
    workers: Workers = None,
    ray: Ray = None,
) -> None:
    """Train all unfinished runs of a study, several in parallel.

    The same command resumes an interrupted study. A failed run is reported and does not stop the others; the
    exit status is then 1.

    Example: `threefold study run hematoma-claims --out study --only 's0.0/*/split-0-seed-0'`
    """
    from threefold.studies.study_spec import load_study

    spec = load_study(name)

    from threefold.studies.study import run_study
    from threefold.studies.study_cohorts import pointed_at, require_inside
    from threefold.studies.study_folder import StudyFolder
    from threefold.studies.study_pools import pool_of
    from threefold.training.devices import require_one_process
    from threefold.training.progress import terminal_progress

    require_one_process("a study")
    if cohort is not None:
        pointed = pointed_at(spec, cohort)
        spec = pointed.study
        for claim, group in dict.fromkeys((claim.claim, claim.group) for claim in pointed.left_out):
            typer.echo(
                f"dropped, because {cohort} is a single cohort or has no such group: {claim} ({group})",
                err=True,
            )
    if not allow_outside:
        require_inside(spec)
    pool = pool_of(out, spec.threads, workers, ray)
    progress = terminal_progress()
    with closing(pool), resumable(progress):
        ended = run_study(spec, StudyFolder(out), pool, progress, only or ())
    failed = [outcome for outcome in ended if outcome.state != "finished"]
    for outcome in (each for each in ended if each.message):
        typer.echo(f"{outcome.run}: {outcome.state}: {outcome.message}", err=True)
    now = f"{count(len(ended) - len(failed), 'run')} finished now, {len(failed)} did not"
    typer.echo(f"{out}: {now if ended else 'all requested runs had finished before'}.")
    typer.echo(f"Next: threefold study compare {out}")
    if any(outcome.message for outcome in ended):
        raise typer.Exit(1)


@study.command()
def status(
    out: Annotated[Path, typer.Argument(help="The study's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print each run as JSON.")] = False,
) -> None:
    """Show the progress of each run of a study.

    Example: `threefold study status study`
    """
    from threefold.reporting.table import show
    from threefold.studies.study_folder import StudyFolder
    from threefold.studies.study_status import standing_of, status_table

    runs = list(standing_of(StudyFolder(out)))
    if as_json:
        typer.echo(json.dumps([{"id": each.plan.id, **asdict(each)} for each in runs], indent=2))
        return
    show(status_table(runs))


@study.command()
def compare(
    out: Annotated[Path, typer.Argument(help="The study's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows of the tables as JSON.")] = False,
) -> None:
    """Compare the finished runs of a study: effect, interval, p and verdict of each claim.

    Uses the tables of the runs; no network is run.

    Example: `threefold study compare study`
    """
    from threefold.evaluation.comparison import record_of
    from threefold.reporting.results import plain_value
    from threefold.reporting.study_tables import numbered
    from threefold.reporting.table import show
    from threefold.studies.comparison import compare_study, write_comparison
    from threefold.studies.study_folder import StudyFolder

    folder = StudyFolder(out)
    comparison = compare_study(folder)
    tables = write_comparison(comparison, folder)
    if as_json:
        content = {
            "claims": [record_of(row) for row in comparison.claims],
            "variants": [record_of(row) for row in comparison.means],
            "reliance": [record_of(row) for row in comparison.reliance],
            "pairs": [record_of(row) for row in comparison.pairs],
            "missing": comparison.missing,
            "withdrawn": comparison.withdrawn,
        }
        typer.echo(json.dumps(plain_value(content), indent=2))
        return
    for table in tables[:2]:
        show(table)
    if comparison.withdrawn and not comparison.claims:
        typer.echo(f"All claims were withdrawn: {numbered(comparison.withdrawn)}.")
    if comparison.missing:
        typer.echo(
            f"{count(len(comparison.missing), 'run')} not finished, for example {comparison.missing[0]}: "
            "the results above are from the others."
        )
    further = f" (also: {', '.join(table.title for table in tables[2:])})" if tables[2:] else ""
    typer.echo(f"Tables: {folder.tables}{further}")
    if comparison.claims:
        typer.echo(f"Figure: {folder.figures / 'claims.png'}")
    typer.echo(f"Report: threefold report {out}")


@study.command()
def pack(
    folder: Annotated[Path, typer.Argument(metavar="STUDY", help="The study's folder.")],
    out: Annotated[Path, typer.Option(help="The new file, .tar.xz.")],
) -> None:
    """Write the data of a study's comparison to one file for sharing.

    The file contains the tables of the finished runs, including case and patient ids, but no images, masks or
    weights. Unpacked (`tar xf`), it is a study folder: `compare` gives the same results, and `run` trains the
    unfinished runs.

    Example: `threefold study pack study --out study.tar.xz`
    """
    from threefold.studies.archive import pack_study
    from threefold.studies.study_folder import StudyFolder

    packed = pack_study(StudyFolder(folder), out)
    total = len(packed.runs) + len(packed.missing)
    typer.echo(f"{out}: {len(packed.runs)} of {count(total, 'run')}, {packed.bytes / 2**20:.1f} MiB")
    typer.echo("It contains case and patient ids, but no images, masks or weights.")
