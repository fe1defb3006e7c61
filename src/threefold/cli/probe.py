"""`threefold probe`: shortcut use, linear probes of the features, and calibration of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside, BatchSize, Device
from threefold.cli.progress import end_with_left_out, progress_of


def probe(
    run: Annotated[Path, typer.Argument(help="The run folder of `threefold train`.")],
    shortcut: Annotated[
        str | None,
        typer.Option(
            help="A column of the table, or a measurement listed by `threefold check` (grid.rows), that the "
            "network might use. [default: shortcut, if it exists]"
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The classification task or its target, if there are several.")
    ] = None,
    cohort: Annotated[
        Path | None, typer.Option(help="Folder of the training cohort, if it was moved.")
    ] = None,
    device: Device = "cpu",
    batch_size: BatchSize = 16,
    allow_outside: AllowOutside = False,
) -> None:
    """Test a run for shortcut use, probe its features, and measure its calibration.

    Writes to RUN/tables, as Markdown and CSV: shortcut (performance by value of the column, the worst group,
    cases in which the column agrees with the label and cases in which it does not), probes (linear
    classification of label, column and site from the frozen features), and calibration_temperature
    (calibration by site before and after temperature scaling on the validation part). For a column other than
    `shortcut`, the tables are named shortcut-COLUMN and probes-COLUMN; with --task they start with TASK-.

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
            task=task,
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
