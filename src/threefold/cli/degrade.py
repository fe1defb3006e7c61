"""`threefold degrade`: structures that are wrong by a known amount."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside
from threefold.cli.progress import end_with_failures, progress_of


def degrade(
    cohort: Annotated[Path, typer.Argument(help="Folder with cohort.yaml and cases.csv, with references.")],
    out: Annotated[Path, typer.Option(help="The new cohort's folder; its table refers to the old files.")],
    displacement: Annotated[
        float, typer.Option(min=0, help="Root mean square distance that labels are moved, mm.")
    ],
    scale: Annotated[float, typer.Option(help="Over how many mm the movement changes.")] = 8.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the movements.")] = 0,
    allow_outside: AllowOutside = False,
) -> None:
    """Make a cohort whose structures are its references moved by smooth random fields.

    To see how errors of propagated labels carry into what learns from them.

    Example: `threefold degrade my-phantom --out my-phantom-2mm --displacement 2`
    """
    from threefold.cohorts.cohort import read_cohort
    from threefold.cohorts.degradation import DegradationSpec
    from threefold.cohorts.degradation import degrade as run
    from threefold.errors import UsageError
    from threefold.validation import parse_spec

    spec = parse_spec(
        DegradationSpec,
        {"displacement": displacement, "scale": scale, "seed": seed},
        where="degrade",
        error=UsageError,
    )
    with progress_of("Moving labels") as progress:
        made = run(read_cohort(cohort, allow_outside=allow_outside), out, spec, progress=progress)
    number = sum(case.structures is not None for case in made.cases)
    typer.echo(f"{out}: {number} of {len(made.cases)} cases have structures, moved by {displacement:g} mm")
    typer.echo(f"Next: threefold train aortic-arch/seg-lp --cohort {out} --allow-outside --out RUN")
    end_with_failures(made.folder)
