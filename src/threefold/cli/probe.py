"""`threefold probe`: what a run relies on, what its features tell, and how honest its probabilities are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside, BatchSize, Device
from threefold.cli.progress import end_with_left_out, progress_of


def probe(
    run: Annotated[Path, typer.Argument(help="The run's folder, as `threefold train` left it.")],
    shortcut: Annotated[
        str | None,
        typer.Option(
            help="A column of the cohort's table that the network might decide by (default: shortcut, where "
            "there is one)."
        ),
    ] = None,
    cohort: Annotated[
        Path | None, typer.Option(help="The cohort that the run was trained on, where it was moved.")
    ] = None,
    device: Device = "cpu",
    batch_size: BatchSize = 16,
    allow_outside: AllowOutside = False,
) -> None:
    """Ask whether a run uses a shortcut, what its features tell, and what a temperature would change.

    RUN/tables gets shortcut (the diagnosis by the column's values, the worst group, cases in which the column
    agrees with the label and cases in which it does not), probes (what a linear classifier on the frozen
    features tells of label, column and site), and calibration_temperature (calibration by site before and
    after a temperature fitted on the validation part), each as Markdown and CSV. Those about another column
    than `shortcut` are shortcut-COLUMN and probes-COLUMN.

    Example: `threefold probe my-run --shortcut scanner`
    """
    from threefold.cohorts.cohort import read_cohort
    from threefold.reporting.table import show
    from threefold.run import RunFolder
    from threefold.runs.probe import probe_run

    moved = None if cohort is None else read_cohort(cohort, allow_outside=allow_outside)
    with progress_of("Reading features") as progress:
        found = probe_run(
            RunFolder(run),
            column=shortcut,
            cohort=moved,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    for table in found.tables:
        show(table)
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"Tables: {found.files[0].parent}")
    end_with_left_out(found.left_out)
