"""`threefold explain`: where a run's network attends, and what changes its decisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside, BatchSize, Device
from threefold.cli.progress import end_with_left_out, progress_of


def explain(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs with a classifier.")],
    cohort: Annotated[
        Path | None, typer.Option(help="Folder of the training cohort, if it was moved.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The classification task or its target, if there are several. [default: the first]"
        ),
    ] = None,
    device: Device = "cpu",
    batch_size: BatchSize = 16,
    allow_outside: AllowOutside = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print attention and counterfactuals as JSON.")
    ] = False,
) -> None:
    """Compare a network's attention with the lesion; on phantoms, switch the shortcut and the marker.

    Analyses the run's test cases and writes tables, a figure and evidence.csv into the run. Includes the
    tables of `threefold probe`.

    A case with unusable files is skipped and reported (evidence_failed.csv lists all of them); the exit
    status is then 1.

    Example: `threefold explain my-run`
    """
    from threefold.cohorts.cohort import read_cohort
    from threefold.reporting.results import plain_value
    from threefold.reporting.table import show
    from threefold.run import RunFolder
    from threefold.runs.explain import FAILED_NAME, explain_run

    moved = None if cohort is None else read_cohort(cohort, allow_outside=allow_outside)
    found = {}
    for run in runs:
        with progress_of("Explaining") as progress:
            found[run] = explain_run(
                RunFolder(run), moved, task=task, device=device, batch_size=batch_size, progress=progress
            )
    left_out = {case: why for each in found.values() for case, why in each.left_out.items()}
    if as_json:
        content = {
            str(run): {
                **{table.name: [row.record() for row in table.rows] for table in each.tables},
                "left_out": each.left_out,
            }
            for run, each in found.items()
        }
        typer.echo(json.dumps(plain_value(content), indent=2))
        end_with_left_out(left_out, FAILED_NAME)
        return
    for run, each in found.items():
        if len(found) > 1:
            typer.echo(f"== {run}")
        for table in each.tables:
            show(table.table)
        for asked in each.probed.tables:
            show(asked)
        for note in (*each.notes, *each.probed.notes):
            typer.echo(f"note: {note}")
        for path in each.files:
            typer.echo(str(path))
    end_with_left_out(left_out, FAILED_NAME)
