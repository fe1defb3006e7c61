"""From an experiment and a cohort to a run folder."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from threefold.cohorts.audit import audit
from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.samples import read_sample
from threefold.cohorts.splits import Split, make_split, read_split, require_targets, required_targets
from threefold.cohorts.store import SampleStore
from threefold.errors import CohortError, ExperimentError, ThreefoldError, UsageError
from threefold.experiment import CascadeSpec, Experiment, JointSwinSpec, NetworkSpec, SwinUnetSpec
from threefold.experiments import read_recipe
from threefold.networks.build import build_network
from threefold.run import RunFolder, State
from threefold.tasks.topology import require_gudhi
from threefold.training.checkpoints import load_checkpoint, remove_unfinished
from threefold.training.devices import check_devices, is_leader
from threefold.training.finish import finish
from threefold.training.folder import check_resumable, create_folder, locked, refuse_existing
from threefold.training.history import Row, standing
from threefold.training.launch import terminating_as_interrupt, train_network
from threefold.training.loop import Job
from threefold.training.progress import Silence, TrainingProgress
from threefold.training.schedule import build_optimiser
from threefold.training.start import before_folder, starting_network


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
        RunError: the folder exists, is another experiment's or cohort's, or can't be written.
        ImageError: the preprocessing does not fit the cohort's images.
        TrainingError: a loss was not finite.
        UsageError: the experiment asks for devices or extras that are not there.
        KeyboardInterrupt: stopped by a signal, after the state was written.
    """
    folder, teller = RunFolder(Path(run)), progress or Silence()
    experiment = _settled(experiment)
    check_devices(experiment.training)
    _check_augmentation(experiment)
    _check_extras(experiment)
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
    return folder


def _train_into(
    folder: RunFolder, experiment: Experiment, cohort: Cohort, split: Split, progress: TrainingProgress
) -> None:
    """Train into a folder: a new one, or one that was found to be this experiment's."""
    if _holds_something(folder):
        if folder.read_status()["state"] == "finished":
            progress.say(f"{folder.path}: this run is finished; nothing to do.")
            return
    elif is_leader():
        create_folder(folder, experiment, cohort, split)
    if not is_leader():
        _train_stages(folder, experiment, cohort, split, progress)
        return
    with locked(folder), terminating_as_interrupt(), torch.random.fork_rng():
        remove_unfinished(folder)
        _write_state(folder, experiment, "running")
        try:
            history = _train_stages(folder, experiment, cohort, split, progress)
            threshold = finish(experiment, cohort, split, folder, history, progress)
        except KeyboardInterrupt:
            _record(folder, experiment, "interrupted", "stopped by a signal")
            raise
        except BaseException as error:
            _record(folder, experiment, "failed", str(error))
            raise
        _write_state(folder, experiment, "finished", threshold=threshold)


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


def before_experiment(experiment: Experiment) -> Experiment:
    """Return the experiment that `before` names, as it is trained for this one.

    Data (so that no test case is seen) and evaluation are this experiment's; the tasks and what selects the
    best epoch are the recipe's. Before a joint-swin network the encoder (so that it fits) and the training
    are this experiment's too. Before a cascade the network is its segmenter; of the training, the optimiser
    is the recipe's, because segmenter and classifier learn at different rates.

    Raises:
        ExperimentError: if that recipe has a stage before itself, or its network is no part of this one.
    """
    assert experiment.before is not None
    recipe = read_recipe(experiment.before)
    if recipe.before is not None:
        raise ExperimentError(
            f"before: '{experiment.before}' has a stage before itself; name a recipe that has none."
        )
    if isinstance(experiment.network, CascadeSpec):
        network: NetworkSpec = experiment.network.segmenter
        kept = {"selection", "optimiser"}
    elif isinstance(experiment.network, JointSwinSpec) and isinstance(recipe.network, SwinUnetSpec):
        network = recipe.network.model_copy(update={"encoder": experiment.network.encoder})
        kept = {"selection"}
    else:
        raise ExperimentError(
            f"before: a {experiment.network.kind} network has no part that is trained first."
        )
    if recipe.network.kind != network.kind:
        raise ExperimentError(
            f"before: '{experiment.before}' trains a {recipe.network.kind} network; expected a "
            f"{network.kind}, which is what a {experiment.network.kind} network builds on."
        )
    training = {name: getattr(recipe.training, name) for name in kept}
    patience = {"patience": experiment.training.selection.patience}
    training["selection"] = recipe.training.selection.model_copy(update=patience)
    return recipe.model_copy(
        update={
            "data": experiment.data,
            "network": network,
            "training": experiment.training.model_copy(update=training),
            "evaluation": experiment.evaluation,
        }
    )


def _checked_split(experiment: Experiment, cohort: Cohort, progress: TrainingProgress) -> Split:
    """Audit the cohort and divide it; refuse what can't train any of the stages.

    Raises:
        CohortError: with every finding that refuses.
    """
    stages = [experiment] if experiment.before is None else [before_experiment(experiment), experiment]
    targets = {target: None for stage in stages for target in required_targets(stage.tasks)}
    progress.say(f"checking the {len(cohort.cases)} cases of {cohort.folder}")
    found = audit(
        cohort,
        split=experiment.data.split,
        targets=tuple(targets),
        progress=partial(progress.step, "checking"),
    )
    if found.refused:
        refused = [finding.message for finding in found.findings if finding.severity == "refuse"]
        shown = "\n  ".join(refused)
        raise CohortError(
            f"{cohort.folder}: not fit to train on:\n  {shown}\n`threefold check {cohort.folder}` shows all."
        )
    for finding in found.findings:
        if finding.severity == "warn":
            progress.say(f"warning: {finding.message}")
    split = make_split(cohort, experiment.data.split)
    for stage in stages:
        require_targets(cohort, split, required_targets(stage.tasks))
        require_estimable(stage, cohort, split)
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


def make_store(experiment: Experiment, cohort: Cohort, n_cases: int) -> SampleStore:
    """Return where the preprocessed cases come from.

    Entries on disk go to THREEFOLD_CACHE, else to the user's cache folder; runs and cohorts share them.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("THREEFOLD_CACHE") or Path(home) / "threefold" / "samples")
    data = experiment.data
    return SampleStore(cohort.spec, data.preprocessing, data.cache, folder, n_cases=n_cases)


def require_estimable(experiment: Experiment, cohort: Cohort, split: Split) -> None:
    """Refuse a selection metric that the validation part can't give.

    Raises:
        CohortError: saying what is missing.
    """
    metric = experiment.training.selection.metric
    cases = split.cases(cohort, "validation")
    missing = _missing_for(metric, experiment, cohort, cases)
    if missing is not None:
        raise CohortError(
            f"{cohort.folder}: training.selection.metric is {metric}, but of the {len(cases)} validation "
            f"cases {missing}. Choose another metric (training.selection.metric=loss), another split "
            "(data.split.seed, data.split.validation), or add such cases."
        )


def _missing_for(metric: str, experiment: Experiment, cohort: Cohort, cases: tuple[Case, ...]) -> str | None:
    if metric in ("auc", "average_precision", "balanced_accuracy"):
        there = {case.label for case in cases}
        absent = [name for k, name in enumerate(cohort.spec.classes) if k not in there]
        return f"none is labelled '{absent[0]}'" if absent else None
    targets = required_targets(experiment.tasks)
    if metric == "dice":
        assert experiment.tasks.segmentation is not None
        target = experiment.tasks.segmentation.target
        return None if any(getattr(case, target) for case in cases) else f"none has a {target}"
    if metric == "loss" and experiment.tasks.reconstruction is None:
        some = any(getattr(case, target) is not None for case in cases for target in targets)
        return None if some else f"none has a {' or a '.join(targets)}"
    return None


def _write_state(folder: RunFolder, experiment: Experiment, state: State, **fields: Any) -> None:
    """Write status.json from what is on disk."""
    history: list[Row] = []
    if folder.last_checkpoint.is_file():
        history = load_checkpoint(folder.last_checkpoint)["history"]
    folder.write_status(state=state, **standing(history, experiment), **fields)


def _record(folder: RunFolder, experiment: Experiment, state: State, message: str) -> None:
    """Write how a run ended; where even that fails, the error under way says more."""
    with suppress(ThreefoldError, OSError):
        _write_state(folder, experiment, state, message=message)


def _holds_something(folder: RunFolder) -> bool:
    return folder.path.is_dir() and any(folder.path.iterdir())


def _check_augmentation(experiment: Experiment) -> None:
    size = experiment.data.preprocessing.size
    if experiment.data.augmentation.quarter_turns and (len(size) != 2 or len(set(size)) != 1):
        raise ExperimentError(
            "data.augmentation.quarter_turns needs a square grid, but data.preprocessing.size is "
            f"{list(size)}. Make it square, or use rotation."
        )


def _check_extras(experiment: Experiment) -> None:
    """Refuse what needs a library that is not installed.

    Raises:
        UsageError: naming the extra.
    """
    if experiment.training.tensorboard and find_spec("tensorboard") is None:
        raise UsageError(
            "training.tensorboard is on, but tensorboard is not installed: "
            "pip install 'threefold[tensorboard]', or leave it off."
        )
    segmentation = experiment.tasks.segmentation
    if segmentation is not None and segmentation.homology > 0:
        require_gudhi()


def _settled(experiment: Experiment) -> Experiment:
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
