"""`threefold report`: one file that shows a run or a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.progress import progress_of


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a run or of a study.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. [default: report.html in the folder]")
    ] = None,
) -> None:
    """Write one HTML file with everything that a run or a study left.

    It opens without a network, on a phone too, and prints. Numbers and pictures are those that evaluate,
    explain and study compare made; what is missing is said with the command that makes it.

    Example: `threefold report my-run --out my-run.html`
    """
    from threefold.studies.reports import report as write

    with progress_of("Auditing the cohort") as progress:
        path = write(folder, out, progress=progress)
    typer.echo(f"Report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
