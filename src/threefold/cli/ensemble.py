"""`threefold ensemble`: several runs that predict together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from threefold.cli.progress import count, resumable
from threefold.errors import RunError

if TYPE_CHECKING:
    from threefold.experiment import EnsembleSpec


def ensemble(
    runs: Annotated[
        list[Path], typer.Argument(help="Finished runs of the same targets, or ensembles of such runs.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the ensemble, a new one.")],
) -> None:
    """Make an ensemble of runs, which `predict` and `evaluate --cohort` take like a run.

    It predicts the mean of its members' probabilities, numbers and, voxel by voxel, label probabilities,
    decides by the mean of their thresholds, and reports how far they are apart. The folder names its members
    by path and checksum; members beside it by relative path. Runs that differ in targets, classes or units
    are refused.

    Example: `threefold ensemble seed-0 seed-1 seed-2 --out together`
    """
    from threefold.runs.ensembles import make_ensemble

    made = make_ensemble(runs, out)
    typer.echo(f"{made.path}: an ensemble of {count(len(made.members()), 'run')}")
    typer.echo(f"Next: threefold predict {made.path} IMAGES --out PREDICTIONS")


def train_members(
    recipe: EnsembleSpec, cohort: Path, out: Path, overrides: Sequence[str], *, resume: bool, outside: bool
) -> None:
    """Train the members of an ensemble into OUT/members, several in parallel, and make OUT the ensemble."""
    from threefold.cohorts.cohort import read_cohort
    from threefold.studies.ensemble_training import plan_ensemble, train_ensemble
    from threefold.studies.study_pools import pool_of
    from threefold.training.devices import require_one_process
    from threefold.training.progress import terminal_progress

    require_one_process("an ensemble")
    if out.exists() and any(out.iterdir()) and not resume:
        raise RunError(
            f"{out}: exists and is not empty. Resume what is there with --resume, or name another --out."
        )
    asked = plan_ensemble(recipe, read_cohort(cohort, allow_outside=outside), out, overrides)
    make_pool = partial(pool_of, threads=asked.study.threads, workers=None, ray=None)
    progress = terminal_progress()
    with resumable(progress, "interrupted. To resume: the same command with --resume."):
        ended, made = train_ensemble(asked, make_pool, progress)
    for outcome in (each for each in ended if each.message):
        typer.echo(f"{outcome.run}: {outcome.state}: {outcome.message}", err=True)
    if made is None:
        said = "not every member has finished; the same command with --resume tries again."
        typer.echo(f"{out}: {said}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{out}: an ensemble of {count(len(asked.members), 'run')}")
    typer.echo(f"Numbers by hospital: threefold evaluate {out}")
