"""`auto` in a recipe's place: the experiment is chosen for the cohort, and each choice printed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from threefold.errors import UsageError
from threefold.experiments import load_experiment
from threefold.run import RunFolder

if TYPE_CHECKING:
    from threefold.cohorts.cohort import Cohort
    from threefold.experiment import Experiment
    from threefold.training.auto import Choice

AUTO = "auto"
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_USUAL = "30m"


def asked_experiment(recipe: str, overrides: Sequence[str], budget: str | None) -> Experiment | None:
    """Return the experiment of a recipe; None: it is to be chosen (`chosen_experiment`).

    Raises:
        ExperimentError: as `load_experiment`.
        UsageError: a budget is given for a recipe, or is no time.
    """
    if recipe != AUTO:
        if budget is not None:
            raise UsageError(
                "--budget is for `auto`; a recipe says itself how long it trains (training.epochs)."
            )
        return load_experiment(recipe, overrides)
    seconds_of(budget)
    return None


def chosen_experiment(
    cohort: Cohort, overrides: Sequence[str], budget: str | None, *, quiet: bool, err: bool = False
) -> tuple[Experiment, tuple[Choice, ...]]:
    """Choose an experiment for a cohort, and print each choice with its reason.

    Args:
        cohort: what it is for.
        overrides: `key.path=value`, taken as they are.
        budget: as `seconds_of` takes it.
        quiet: print nothing.
        err: print on standard error.

    Raises:
        CohortError, ExperimentError, ImageError, UsageError: as `training.auto.choose`.
    """
    from threefold.training.auto import choose

    experiment, choices = choose(cohort, overrides, budget=seconds_of(budget))
    if not quiet:
        typer.echo(f"Chosen for {cohort.folder}:", err=err)
        for choice in choices:
            typer.echo(f"  {choice}", err=err)
    return experiment, choices


def begun_experiment(run: Path, overrides: Sequence[str]) -> Experiment | None:
    """Return the experiment of a run that was begun, to go on with; None: nothing was chosen yet."""
    path = RunFolder(run).experiment
    return load_experiment(str(path), overrides) if path.is_file() else None


def seconds_of(budget: str | None) -> float:
    """Return the seconds of a time such as 90s, 30m or 1.5h.

    Raises:
        UsageError: it is no time.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget or _USUAL)
    if found is None or float(found[1]) == 0:
        raise UsageError(f"--budget {budget}: expected a time such as 90s, 30m or 8h.")
    return float(found[1]) * _SECONDS[found[2]]
