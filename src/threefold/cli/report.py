"""`threefold report`: a run or a study as one HTML file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.progress import progress_of


class Guideline(StrEnum):
    """A guideline for reports on studies of AI."""

    CLAIM = "claim"
    TRIPOD_AI = "tripod-ai"


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a run or of a study.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. [default: report.html in the folder]")
    ] = None,
    checklist: Annotated[
        list[Guideline] | None,
        typer.Option(help="A reporting guideline, filled from a run as far as it knows; repeatable."),
    ] = None,
) -> None:
    """Write everything in a run or a study to one HTML file.

    The file opens offline on any device and can be printed. It shows the numbers and pictures of evaluate,
    explain and study compare, and for missing ones the command that creates them.

    With --checklist, the items of CLAIM or TRIPOD+AI are listed with what the run knows of each, and those
    that are left to the authors.

    Example: `threefold report my-run --out my-run.html`
    """
    from threefold.studies.reports import report as write

    with progress_of("Auditing the cohort") as progress:
        path = write(folder, out, checklists=[one.value for one in checklist or ()], progress=progress)
    typer.echo(f"Report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
