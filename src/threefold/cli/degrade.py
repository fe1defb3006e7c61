"""`threefold degrade`: structures with a known error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside
from threefold.cli.progress import end_with_failures, progress_of


def degrade(
    cohort: Annotated[Path, typer.Argument(help="Folder with cohort.yaml and cases.csv, with references.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the new cohort; its table refers to the original files.")
    ],
    displacement: Annotated[
        float, typer.Option(min=0, help="Root mean square displacement of the labels, in mm.")
    ],
    scale: Annotated[float, typer.Option(help="Smoothness of the displacement field, in mm.")] = 8.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the fields.")] = 0,
    allow_outside: AllowOutside = False,
) -> None:
    """Create a cohort whose structures are its references, displaced by smooth random fields.

    Use it to study how errors of propagated labels affect training.

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
    with progress_of("Displacing labels") as progress:
        made = run(read_cohort(cohort, allow_outside=allow_outside), out, spec, progress=progress)
    number = sum(case.structures is not None for case in made.cases)
    typer.echo(
        f"{out}: {number} of {len(made.cases)} cases have structures, displaced by {displacement:g} mm"
    )
    typer.echo(f"Next: threefold train aortic-arch/seg-lp --cohort {out} --allow-outside --out RUN")
    end_with_failures(made.folder)
