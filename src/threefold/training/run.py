"""From an experiment and a cohort to a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from threefold.cohorts.cohort import Cohort, fingerprint
from threefold.cohorts.sample_cache import SampleCache
from threefold.cohorts.splits import read_split
from threefold.errors import ThreefoldError, UsageError
from threefold.experiment import Experiment
from threefold.experiments import read_experiment
from threefold.interruption import terminating_as_interrupt, undisturbed
from threefold.run import RunFolder, State
from threefold.runs.finished import finish_status, verify_inputs, verify_settings
from threefold.threads import computing_with, share_cores
from threefold.training.checkpoints import load_checkpoint
from threefold.training.devices import is_leader
from threefold.training.finish import finish, has_whole_outputs, history_of_best
from threefold.training.folder import check_resumable, create_folder, locked, refuse_existing, threads_of
from threefold.training.history import Row, out_of_patience, progress_summary, write_history
from threefold.training.launch import train_network
from threefold.training.loop import TrainingContext
from threefold.training.plan import (
    Plan,
    plan,
    plan_of_run,
    pretraining_folder,
    require_settings,
    resolve_paths,
)
from threefold.training.progress import Silence, TrainingProgress


def train(
    experiment: Experiment | Plan,
    cohort: Cohort,
    run: Path,
    *,
    resume: bool = False,
    progress: TrainingProgress | None = None,
) -> RunFolder:
    """Train an experiment on a cohort.

    Everything that can be refused is refused before the folder is made. A process that is killed at any
    moment leaves a folder that `resume` goes on with, and the weights are then those of an unbroken run,
    to the bit on a CPU.

    Args:
        experiment: what to train, or the plan of it. A recipe that it names in `pretrain` is trained first,
            into RUN/pretrain, with the data, encoder and training (but not the selection) of this
            experiment.
        cohort: what to train on; audited first, where there is no plan yet.
        run: where the run folder goes.
        resume: go on with the run that is there; start it where there is none.
        progress: told what happens; None: silence.

    Returns:
        The finished run's folder.

    Raises:
        CohortError, ExperimentError, ImageError, UsageError, WeightsError: as `training.plan.plan`.
        RunError: the folder exists, is another experiment's or cohort's, or can't be written; the weights
            to start from were trained on test cases.
        TrainingError: a loss was not finite.
        KeyboardInterrupt: stopped by a signal, after the state was written.
    """
    share_cores()
    folder, progress = RunFolder(Path(run)), progress or Silence()
    with terminating_as_interrupt():
        made = _planned(folder, experiment, cohort, progress, resume=resume)
        _train_into(folder, made, len(made.stages) - 1, progress)
    return folder


def _planned(
    folder: RunFolder,
    experiment: Experiment | Plan,
    cohort: Cohort,
    progress: TrainingProgress,
    *,
    resume: bool,
) -> Plan:
    """Return what is trained into a folder; refuse another's folder and another cohort's plan."""
    if isinstance(experiment, Plan) and fingerprint(experiment.cohort) != fingerprint(cohort):
        raise UsageError(
            f"{cohort.folder}: the plan is of another cohort, {experiment.cohort.folder}, or its table "
            "changed. Give the cohort that was planned, or make the plan again."
        )
    if resume and _holds_something(folder):
        asked = experiment.experiment if isinstance(experiment, Plan) else resolve_paths(experiment)
        require_settings(asked)
        check_resumable(folder, asked, cohort)
        return plan_of_run(folder, asked, cohort)
    if is_leader():  # which may have made the folder before another process comes to look
        if not isinstance(experiment, Plan):
            require_settings(resolve_paths(experiment))
        refuse_existing(folder)
    return experiment if isinstance(experiment, Plan) else plan(experiment, cohort, progress=progress)


def _train_into(folder: RunFolder, made: Plan, number: int, progress: TrainingProgress) -> None:
    """Train a stage of a plan into a folder: a new one, or one that was found to be this stage's."""
    experiment = made.stages[number].experiment
    if _holds_something(folder):
        if folder.read_status()["state"] == "finished":
            verify_settings(folder)
            progress.say(f"{folder.path}: this run is finished; nothing to do.")
            return
    elif is_leader():
        create_folder(folder, experiment, made.cohort, made.split)
    if not is_leader():
        with computing_with(threads_of(folder, Silence())):
            _train_stages(folder, made, number, progress)
        return
    with (
        locked(folder),
        _recording(folder, experiment),
        torch.random.fork_rng(),
        computing_with(threads_of(folder, progress)),
    ):
        _write_state(folder, experiment, "running")
        history = _train_stages(folder, made, number, progress)
        thresholds = finish(experiment, made.cohort, made.split, folder, history, progress)
        finish_status(folder, **progress_summary(_write_history(folder), experiment), **thresholds)


def finish_early(run: Path, cohort: Cohort, *, progress: TrainingProgress | None = None) -> RunFolder:
    """Make a finished run of a training that was stopped: its best weights so far, predictions, threshold.

    status.json then says after how many epochs. Of a finished run nothing changes, but what is missing or
    damaged of its predictions is made anew.

    Args:
        run: the folder of a training that was interrupted, killed or failed.
        cohort: that it was started on.
        progress: told what happens; None: silence.

    Raises:
        RunError: not a run, no epoch is whole, another cohort, a process is training it now, or the disk
            refuses.
        ImageError: naming the case that can't be read.
        KeyboardInterrupt: stopped by a signal; the same call goes on.
    """
    share_cores()
    folder, progress = RunFolder(Path(run)), progress or Silence()
    status = folder.read_status()
    experiment = read_experiment(folder.experiment)
    check_resumable(folder, experiment, cohort)
    verify_inputs(folder)
    split = read_split(folder.split)
    if status["state"] == "finished" and has_whole_outputs(folder):
        progress.say(f"{folder.path}: this run is finished; nothing to do.")
        return folder
    with (
        locked(folder),
        terminating_as_interrupt(),
        torch.random.fork_rng(),
        computing_with(threads_of(folder, progress)),
    ):
        history = history_of_best(folder)
        progress.say(f"{folder.path}: finishing after {len(history)} of {experiment.training.epochs} epochs")
        thresholds = finish(experiment, cohort, split, folder, history, progress)
        early = status.get("stopped_early")
        if not _is_over(experiment, history):
            state = early["state"] if early else _stopped_as(status)
            early = {"epochs": len(history), "of": experiment.training.epochs, "state": state}
        fields = {**thresholds, **({"stopped_early": early} if early else {})}
        write_history(folder.metrics, history)
        finish_status(folder, **progress_summary(history, experiment), **fields)
    return folder


def _is_over(experiment: Experiment, history: Sequence[Row]) -> bool:
    """Whether there was no epoch left to train."""
    training = experiment.training
    return len(history) >= training.epochs or out_of_patience(history, training.selection)


def _stopped_as(status: Mapping[str, Any]) -> str:
    """Return how a training ended; a process that was killed could not say so."""
    return "killed" if status["state"] == "running" else str(status["state"])


@contextmanager
def _recording(folder: RunFolder, experiment: Experiment) -> Iterator[None]:
    """Write how a training ended where it did not end well."""
    try:
        yield
    except KeyboardInterrupt:
        _record(folder, experiment, "interrupted", "stopped by a signal")
        raise
    except BaseException as error:
        _record(folder, experiment, "failed", str(error) or type(error).__name__)
        raise


def _train_stages(folder: RunFolder, made: Plan, number: int, progress: TrainingProgress) -> list[Row]:
    """Train the pretraining, where there is one, and then the stage itself; return its history."""
    stage = made.stages[number]
    experiment = stage.experiment
    if number > 0:
        place, first = pretraining_folder(folder), made.stages[number - 1].experiment
        progress.say(f"first: {first.name}, into {place.path}")
        if _holds_something(place):
            check_resumable(place, first, made.cohort)
        _train_into(place, made, number - 1, progress)
        progress.say(f"then: {experiment.name}")
    parts = made.cases("train"), made.cases("validation")
    return train_network(
        TrainingContext(
            stage=stage,
            cohort=made.cohort.spec,
            train=parts[0],
            validation=parts[1],
            cache=sample_cache(experiment, made.cohort, sum(map(len, parts)) * experiment.training.devices),
            run=folder,
            progress=progress,
        )
    )


def sample_cache(experiment: Experiment, cohort: Cohort, n_cases: int) -> SampleCache:
    """Return where the preprocessed cases come from.

    Entries on disk go to THREEFOLD_CACHE, else to the user's cache folder; runs and cohorts share them.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("THREEFOLD_CACHE") or Path(home) / "threefold" / "samples")
    data = experiment.data
    return SampleCache(cohort.spec, data.preprocessing, data.cache, folder, n_cases=n_cases)


def _write_state(folder: RunFolder, experiment: Experiment, state: State, **fields: Any) -> None:
    """Write metrics.csv and status.json from last.ckpt, which a kill may have left ahead of both."""
    folder.write_status(state=state, **progress_summary(_write_history(folder), experiment), **fields)


def _write_history(folder: RunFolder) -> list[Row]:
    """Write metrics.csv from last.ckpt, where there is one; return the history in it."""
    history: list[Row] = []
    if folder.last_checkpoint.is_file():
        history = load_checkpoint(folder.last_checkpoint)["history"]
        write_history(folder.metrics, history)
    return history


def _record(folder: RunFolder, experiment: Experiment, state: State, message: str) -> None:
    """Write how a run ended; where even that fails, the error under way says more."""
    with undisturbed(), suppress(ThreefoldError, OSError):
        _write_state(folder, experiment, state, message=message)


def _holds_something(folder: RunFolder) -> bool:
    return folder.path.is_dir() and any(folder.path.iterdir())
