"""`threefold train`: train an experiment on a cohort."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.auto import AUTO, asked_experiment, begun_experiment, chosen_experiment
from threefold.cli.ensemble import train_members
from threefold.cli.options import AllowOutside, Budget
from threefold.cli.progress import count, end_with_left_out, resumable
from threefold.cohorts.cohort import read_cohort
from threefold.cohorts.failures import read_failures
from threefold.errors import UsageError
from threefold.experiments import load_ensemble
from threefold.models.store import is_model, run_path


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe's name (`threefold recipes list`), a YAML file, or auto: chosen for you."
        ),
    ],
    cohort: Annotated[Path, typer.Option(help="Folder with cohort.yaml and cases.csv.")],
    out: Annotated[Path, typer.Option(help="The run folder to create.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the experiment: key.path=value ...")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out, or start it if there is none.")
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="A run, or a model of the package (`threefold models list`), whose weights to start from, "
            "where they fit; there is no pretraining then. As pretrain=null initial_weights.path=RUN."
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="Number of GPUs, or CPU processes. Same as training.devices=N.", min=1),
    ] = None,
    budget: Budget = None,
    allow_outside: AllowOutside = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the run's status as JSON on standard output at the end.")
    ] = False,
) -> None:
    """Train a recipe on a cohort and write all outputs to the run folder.

    Exit status: 0 finished; 1 data or training failed; 2 the command or the experiment is wrong; 130, 143 or
    129 stopped by Ctrl-C, SIGTERM or SIGHUP. After a stop, use --resume, or `threefold finish RUN` to use the
    best epoch so far. A test case that has become unreadable is skipped and reported (failed.csv lists all of
    them), with exit status 1; `threefold finish RUN` predicts it once it is repaired.

    The recipe of an ensemble (aortic-arch/deployed) trains its members in parallel, into OUT/members; OUT is
    then an ensemble, which `predict` and `evaluate` take like a run.

    With auto, network, grid, tasks, augmentation, losses, epochs and selection are chosen for the cohort and
    the training time by documented rules, and printed with reasons; key=value overrides a choice. The run's
    experiment.yaml is the result.

    Example: `threefold train auto --cohort my-cohort --out my-run --budget 30m`

    Example: `threefold train hematoma/mtl-cls-seg-rec --cohort my-cohort --out my-run training.epochs=50`
    """
    changes = list(overrides or [])
    together = None if recipe == AUTO else load_ensemble(recipe)
    if together is not None:
        if devices is not None or init_from is not None or budget is not None or as_json:
            raise UsageError(
                f"{recipe}: trains several networks; --devices, --init-from, --budget and --json are for one."
            )
        train_members(together, cohort, out, changes, resume=resume, outside=allow_outside)
        return
    if devices is not None:
        changes.append(f"training.devices={devices}")
    if init_from is not None:
        start = init_from.as_posix() if is_model(init_from) else run_path(init_from).resolve()
        changes += ["pretrain=null", f"initial_weights.path={start}"]
    # Report errors in the arguments before importing anything slow.
    experiment = asked_experiment(recipe, changes, budget)
    cases = read_cohort(cohort, allow_outside=allow_outside)
    if experiment is None and resume:
        experiment = begun_experiment(out, changes)
    if experiment is None:
        experiment, _ = chosen_experiment(cases, changes, budget, quiet=False, err=True)

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
        f"(validation {status['metric']} {status['best_value']:.4f}); it predicts with the "
        f"{experiment.training.selection.weights}. "
        f"Numbers by hospital: threefold evaluate {run.path}"
    )
    end_with_left_out(failed, run.failed.name)


def _interrupted(out: Path) -> str:
    """Return how to resume an interrupted training, and from where."""
    from threefold.run import RunFolder
    from threefold.training.plan import pretraining_folder

    run = RunFolder(out)
    again = f"the same command with --resume (run: {out})."
    if any(each.last_checkpoint.is_file() for each in (run, pretraining_folder(run))):
        return f"interrupted. To resume from the last complete epoch: {again}"
    return f"interrupted before the first epoch was complete. To start again: {again}"
