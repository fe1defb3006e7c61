"""`threefold train`: from an experiment and a cohort to a run folder."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside
from threefold.cli.progress import count, end_with_left_out, resumable
from threefold.cohorts.cohort import read_cohort
from threefold.cohorts.failures import read_failures
from threefold.experiments import load_experiment


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (`threefold recipes list`) or a YAML file.")],
    cohort: Annotated[Path, typer.Option(help="Folder with cohort.yaml and cases.csv.")],
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes of the experiment: key.path=value ...")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; start it where there is none.")
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="A run whose weights to start from, where they fit; no stage is trained before then. As "
            "before=null initial_weights.path=RUN."
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="Processes to train with: GPUs, else CPU processes. As training.devices=N.", min=1),
    ] = None,
    allow_outside: AllowOutside = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the run's status as JSON on standard output at the end.")
    ] = False,
) -> None:
    """Train a recipe on a cohort; the run folder holds everything that it leaves.

    The exit status is 0 where the run is finished, 1 where data or training failed, 2 where the command or
    the experiment is wrong, and 130, 143 or 129 where Ctrl-C, SIGTERM or SIGHUP stopped it: what was trained
    is kept, and `threefold finish RUN` makes a run of it. A test case that can't be read any more at the end
    is left out and named (failed.csv has all of them), with exit status 1; `threefold finish RUN` predicts it
    once it is mended.

    Example: `threefold train hematoma/mtl-cls-seg-rec --cohort my-cohort --out my-run training.epochs=50`
    """
    changes = list(overrides or [])
    if devices is not None:
        changes.append(f"training.devices={devices}")
    if init_from is not None:
        changes += ["before=null", f"initial_weights.path={init_from.resolve()}"]
    # Mistakes in the texts come back before anything heavy is imported.
    experiment = load_experiment(recipe, changes)
    cases = read_cohort(cohort, allow_outside=allow_outside)

    from threefold.training.progress import terminal_progress
    from threefold.training.run import train as train_run

    progress = terminal_progress()
    with resumable(progress, partial(_interrupted, out)):
        run = train_run(experiment, cases, out, resume=resume, progress=progress)
    status = run.read_status()
    failed = read_failures(run.failed)
    if as_json:
        typer.echo(json.dumps({"run": str(run.path), **status}, indent=2))
        end_with_left_out(failed, run.failed.name)
        return
    typer.echo(
        f"{run.path}: {count(status['epoch'], 'epoch')}, best is {status['best_epoch']} "
        f"(validation {status['metric']} {status['best_value']:.4f}). "
        f"Numbers by hospital: threefold evaluate {run.path}"
    )
    end_with_left_out(failed, run.failed.name)


def _interrupted(out: Path) -> str:
    """Say how to go on with a training that was stopped, and from where."""
    from threefold.run import RunFolder
    from threefold.training.plan import pretraining_folder

    run = RunFolder(out)
    again = f"the same command with --resume (run: {out})."
    if any(each.last_checkpoint.is_file() for each in (run, pretraining_folder(run))):
        return f"interrupted. Go on from the last whole epoch: {again}"
    return f"interrupted before the first epoch was whole; nothing is trained yet. Start again: {again}"
