"""`threefold export`: write a cohort in another program's format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside

exporting = typer.Typer(
    help="Write a cohort for another program. "
    "Example: `threefold export decathlon my-cohort --out my-cohort/data.json`",
    no_args_is_help=True,
)


class ListsBy(StrEnum):
    """What decides which list a case is in."""

    COLUMN = "column"
    PATIENT = "patient"
    SITE = "site"


@exporting.callback()
def _root() -> None:
    """Keep `decathlon` a command of its own although it is the only one."""


@exporting.command("decathlon")
def decathlon(
    cohort: Annotated[Path, typer.Argument(help="The cohort's folder, with cohort.yaml and cases.csv.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write; its paths are relative to its folder.")],
    split: Annotated[
        ListsBy,
        typer.Option(
            help="column: the table's own split; cases without one go to the list inference. patient, site: "
            "a new split."
        ),
    ] = ListsBy.COLUMN,
    hold_out: Annotated[
        list[str] | None, typer.Option(help="A site or site group for testing; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of a new split.")] = 0,
    allow_outside: AllowOutside = False,
) -> None:
    """Write a dataset file (Decathlon-style lists) for the published aortic-arch implementation.

    The cohort's files are not copied. `threefold import decathlon` restores the same cohort.

    Example: `threefold export decathlon my-cohort --split patient --out my-cohort/data.json`
    """
    from threefold.cohorts.cohort import read_cohort
    from threefold.cohorts.decathlon_export import export_decathlon, summary
    from threefold.cohorts.splits import make_split
    from threefold.errors import UsageError
    from threefold.experiment import SplitSpec

    if split is ListsBy.COLUMN and (hold_out or seed):
        raise UsageError("--hold-out and --seed are for a new split: add --split patient or --split site.")
    loaded = read_cohort(cohort, allow_outside=allow_outside)
    spec = SplitSpec(kind=split.value, hold_out=tuple(hold_out or ()) or None, seed=seed)
    parts = None if split is ListsBy.COLUMN else make_split(loaded, spec).parts
    lacking = export_decathlon(loaded, out, parts=parts)
    lists = ", ".join(f"{count} {name}" for name, count in summary(loaded, parts).items())
    typer.echo(f"{out}: {len(loaded.cases)} cases ({lists})")
    for key, cases in lacking.items():
        typer.echo(
            f"note: {len(cases)} cases of training and validation have no {key}, for example {cases[0]}; "
            "the published training needs it"
        )
