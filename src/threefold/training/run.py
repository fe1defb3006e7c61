"""From an experiment and a cohort to a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from threefold.cohorts.audit import audit
from threefold.cohorts.cohort import Cohort
from threefold.cohorts.samples import read_sample
from threefold.cohorts.splits import Split, read_split
from threefold.cohorts.store import SampleStore
from threefold.errors import CohortError, ThreefoldError, some
from threefold.experiment import CascadeSpec, Experiment
from threefold.experiments import read_experiment
from threefold.interruption import terminating_as_interrupt, undisturbed
from threefold.run import RunFolder, State
from threefold.runs.finished import finish_status, verify_inputs, verify_settings
from threefold.tasks.build import build_network
from threefold.tasks.resolve import targets_of
from threefold.threads import computing_with, share_cores
from threefold.training.before import before_experiment, before_folder, trainings_of
from threefold.training.checkpoints import load_checkpoint
from threefold.training.devices import is_leader
from threefold.training.finish import finish, has_whole_outputs, history_of_best
from threefold.training.folder import check_resumable, create_folder, locked, refuse_existing, threads_of
from threefold.training.history import Row, out_of_patience, standing, write_history
from threefold.training.launch import train_network
from threefold.training.lineage import require_unseen
from threefold.training.loop import Job
from threefold.training.module import shared_parameter
from threefold.training.progress import Silence, TrainingProgress
from threefold.training.requirements import require_settings, require_split
from threefold.training.schedule import build_optimiser
from threefold.training.start import starting_network

_SHOWN = 20
"""Findings of the audit that are printed or told."""


def train(
    experiment: Experiment,
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
        experiment: what to train. Where it names a recipe in `before`, that one is trained first, into
            RUN/before, with the data, encoder and training (but not the selection) of this experiment.
        cohort: what to train on; audited first.
        run: where the run folder goes.
        resume: go on with the run that is there; start it where there is none.
        progress: told what happens; None: silence.

    Returns:
        The finished run's folder.

    Raises:
        CohortError: the audit refuses, or the split can't serve the tasks.
        RunError: the folder exists, is another experiment's or cohort's, or can't be written; the weights
            to start from were trained on test cases.
        ImageError: the preprocessing does not fit the cohort's images.
        TrainingError: a loss was not finite.
        UsageError: the experiment asks for devices or extras that are not there.
        KeyboardInterrupt: stopped by a signal, after the state was written.
    """
    share_cores()
    folder, teller = RunFolder(Path(run)), progress or Silence()
    experiment = settled(experiment)
    require_settings(experiment)
    with terminating_as_interrupt():
        _check_and_train(folder, experiment, cohort, teller, resume=resume)
    return folder


def _check_and_train(
    folder: RunFolder, experiment: Experiment, cohort: Cohort, teller: TrainingProgress, *, resume: bool
) -> None:
    if resume and _holds_something(folder):
        check_resumable(folder, experiment, cohort)
        split = read_split(folder.split)
    else:
        if is_leader():  # which may have made the folder before another process comes to look
            refuse_existing(folder)
        split = _checked_split(experiment, cohort, teller)
        _check_network(experiment, cohort, folder)
        _check_preprocessing(experiment, cohort, split)
    _train_into(folder, experiment, cohort, split, teller)


def _train_into(
    folder: RunFolder, experiment: Experiment, cohort: Cohort, split: Split, progress: TrainingProgress
) -> None:
    """Train into a folder: a new one, or one that was found to be this experiment's."""
    if _holds_something(folder):
        if folder.read_status()["state"] == "finished":
            verify_settings(folder)
            progress.say(f"{folder.path}: this run is finished; nothing to do.")
            return
    elif is_leader():
        create_folder(folder, experiment, cohort, split)
    if not is_leader():
        with computing_with(threads_of(folder, Silence())):
            _train_stages(folder, experiment, cohort, split, progress)
        return
    with (
        locked(folder),
        _recording(folder, experiment),
        torch.random.fork_rng(),
        computing_with(threads_of(folder, progress)),
    ):
        _write_state(folder, experiment, "running")
        history = _train_stages(folder, experiment, cohort, split, progress)
        thresholds = finish(experiment, cohort, split, folder, history, progress)
        finish_status(folder, **standing(_write_history(folder), experiment), **thresholds)


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
    folder, teller = RunFolder(Path(run)), progress or Silence()
    status = folder.read_status()
    experiment = read_experiment(folder.experiment)
    check_resumable(folder, experiment, cohort)
    verify_inputs(folder)
    split = read_split(folder.split)
    if status["state"] == "finished" and has_whole_outputs(folder):
        teller.say(f"{folder.path}: this run is finished; nothing to do.")
        return folder
    with (
        locked(folder),
        terminating_as_interrupt(),
        torch.random.fork_rng(),
        computing_with(threads_of(folder, teller)),
    ):
        history = history_of_best(folder)
        teller.say(f"{folder.path}: finishing after {len(history)} of {experiment.training.epochs} epochs")
        thresholds = finish(experiment, cohort, split, folder, history, teller)
        early = status.get("stopped_early")
        if not _is_over(experiment, history):
            state = early["state"] if early else _stopped_as(status)
            early = {"epochs": len(history), "of": experiment.training.epochs, "state": state}
        fields = {**thresholds, **({"stopped_early": early} if early else {})}
        write_history(folder.metrics, history)
        finish_status(folder, **standing(history, experiment), **fields)
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


def _train_stages(
    folder: RunFolder, experiment: Experiment, cohort: Cohort, split: Split, progress: TrainingProgress
) -> list[Row]:
    """Train the run before, where there is one, and then the network; return the network's history."""
    if experiment.before is not None:
        before, first = before_folder(folder), before_experiment(experiment)
        progress.say(f"first: {first.name}, into {before.path}")
        if _holds_something(before):
            check_resumable(before, first, cohort)
        _train_into(before, first, cohort, split, progress)
        progress.say(f"then: {experiment.name}")
    parts = split.cases(cohort, "train"), split.cases(cohort, "validation")
    job = Job(
        experiment=experiment,
        cohort=cohort.spec,
        train=parts[0],
        validation=parts[1],
        store=make_store(experiment, cohort, sum(map(len, parts)) * experiment.training.devices),
        run=folder,
        progress=progress,
    )
    return train_network(job)


def _checked_split(experiment: Experiment, cohort: Cohort, progress: TrainingProgress) -> Split:
    """Audit the cohort and divide it; refuse what can't train any of the stages.

    Raises:
        CohortError: with the first findings that refuse, and how many more there are.
    """
    needed = [targets_of(training, cohort.spec).values() for training in trainings_of(experiment)]
    targets = dict.fromkeys(chain.from_iterable(needed))
    progress.say(f"checking the {len(cohort.cases)} cases of {cohort.folder}")
    found = audit(
        cohort,
        split=experiment.data.split,
        targets=tuple(targets),
        progress=partial(progress.step, "checking"),
    )
    if found.refused:
        refused = [finding.message for finding in found.findings if finding.severity == "refuse"]
        shown = some(refused, _SHOWN, between="\n  ")
        raise CohortError(
            f"{cohort.folder}: not fit to train on:\n  {shown}\n`threefold check {cohort.folder}` shows all."
        )
    warned = [finding.message for finding in found.findings if finding.severity == "warn"]
    for message in warned[:_SHOWN]:
        progress.say(f"warning: {message}")
    if len(warned) > _SHOWN:
        progress.say(f"warning: and {len(warned) - _SHOWN} more; `threefold check {cohort.folder}` shows all")
    split = require_split(experiment, cohort)
    for warning in require_unseen(experiment, cohort, split):
        progress.say(f"warning: {warning}")
    return split


def _check_preprocessing(experiment: Experiment, cohort: Cohort, split: Split) -> None:
    """Prepare one case, so that a size or window that does not fit the cohort is refused before the folder.

    Raises:
        ImageError: saying what does not fit.
    """
    read_sample(split.cases(cohort, "train")[0], cohort.spec, experiment.data.preprocessing)


def _check_network(experiment: Experiment, cohort: Cohort, folder: RunFolder) -> None:
    """Build network and optimiser once, so that what can't be built or filled is refused before there is a
    folder."""
    with torch.random.fork_rng():
        if experiment.before is None:
            network, _ = starting_network(experiment, cohort.spec, folder)
        else:
            network = build_network(experiment, cohort.spec)
            first = before_experiment(experiment)
            build_optimiser(starting_network(first, cohort.spec, folder)[0], first.training.optimiser)
        build_optimiser(network, experiment.training.optimiser)
        if experiment.balancing.method == "gradnorm":
            shared_parameter(network)


def make_store(experiment: Experiment, cohort: Cohort, n_cases: int) -> SampleStore:
    """Return where the preprocessed cases come from.

    Entries on disk go to THREEFOLD_CACHE, else to the user's cache folder; runs and cohorts share them.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("THREEFOLD_CACHE") or Path(home) / "threefold" / "samples")
    data = experiment.data
    return SampleStore(cohort.spec, data.preprocessing, data.cache, folder, n_cases=n_cases)


def _write_state(folder: RunFolder, experiment: Experiment, state: State, **fields: Any) -> None:
    """Write metrics.csv and status.json from last.ckpt, which a kill may have left ahead of both."""
    folder.write_status(state=state, **standing(_write_history(folder), experiment), **fields)


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


def settled(experiment: Experiment) -> Experiment:
    """Return the experiment as it is written down: weights by their full path, so that a resume from another
    folder finds them; and where a cascade has initial weights, no stage before it."""
    weights = experiment.initial_weights
    if weights is None:
        return experiment
    path = str(Path(weights.path).expanduser().resolve())
    changes: dict[str, Any] = {"initial_weights": weights.model_copy(update={"path": path})}
    if isinstance(experiment.network, CascadeSpec):
        changes["before"] = None
    return experiment.model_copy(update=changes)
