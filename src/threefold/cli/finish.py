"""`threefold finish`: turn the best epoch so far of an interrupted training into a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.progress import count, end_with_left_out, resumable
from threefold.cohorts.cohort import read_cohort
from threefold.cohorts.failures import read_failures
from threefold.run import RunFolder


def finish(
    run: Annotated[Path, typer.Argument(help="The run folder of an interrupted training.")],
    cohort: Annotated[
        Path | None, typer.Option(help="Folder of the training cohort, if it was moved.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the run's status as JSON on standard output at the end.")
    ] = False,
) -> None:
    """Finish an interrupted training: take the weights of its best epoch so far, predict and evaluate.

    Use it for a training that was interrupted, killed or failed and will not be resumed. status.json and
    every report state the number of completed epochs. In a finished run, only missing or damaged weights or
    predictions are recreated. A case that has become unreadable is skipped and reported (failed.csv lists all
    of them); the exit status is then 1, and the same command predicts it once it is repaired.

    Example: `threefold finish my-run`
    """
    folder = RunFolder(run)
    folder.read_status()

    from threefold.runs.evaluate import cohort_of_run, evaluate_run
    from threefold.training.progress import terminal_progress
    from threefold.training.run import finish_early

    given = None if cohort is None else read_cohort(cohort, allow_outside=True)
    cases = cohort_of_run(folder, given)
    progress = terminal_progress()
    with resumable(progress):
        finish_early(run, cases, progress=progress)
        evaluate_run(folder)
    status = folder.read_status()
    failed = read_failures(folder.failed)
    if as_json:
        typer.echo(json.dumps({"run": str(run), **status}, indent=2))
        end_with_left_out(failed, folder.failed.name)
        return
    typer.echo(
        f"{run}: finished after {count(status['epoch'], 'epoch')} of {status['epochs']}; best is "
        f"{status['best_epoch']} (validation {status['metric']} {status['best_value']:.4f}). "
        f"Numbers by hospital: threefold evaluate {run}"
    )
    end_with_left_out(failed, folder.failed.name)
