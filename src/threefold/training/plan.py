"""Resolving an experiment and a cohort into a plan, with all checks before the first step.

A `Plan` holds the stages (pretraining before the training itself), each with its tasks, and the split.
Training receives it and resolves nothing again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from threefold.audits.audit import audit
from threefold.cohorts.cohort import Case, Cohort, CohortSpec, fingerprint
from threefold.cohorts.samples import read_sample
from threefold.cohorts.splits import Split, make_split, read_split, require_targets
from threefold.core.batch import Batch, collate
from threefold.core.targets import ClassTarget
from threefold.errors import CohortError, ExperimentError, RunError, UsageError, some
from threefold.evaluation.metrics import metrics
from threefold.experiment import (
    CascadeSpec,
    Experiment,
    ForeignNetworkSpec,
    ForeignTaskSpec,
    JointSwinSpec,
    NetworkSpec,
    SegmentationSpec,
    SwinUnetSpec,
)
from threefold.experiments import read_experiment, read_recipe
from threefold.inference.memory import TensorMemory
from threefold.models.store import is_model, run_path
from threefold.networks import foreign
from threefold.networks.cpu import cpu_kernels
from threefold.networks.joint import JointSwin
from threefold.networks.pretrained import LoadReport, load_pretrained
from threefold.run import RunFolder
from threefold.runs.finished import verify_settings
from threefold.tasks.balancing import build_balancer
from threefold.tasks.build import build_network, build_tasks, class_of, task_weights
from threefold.tasks.resolve import targets_of
from threefold.tasks.task import Task
from threefold.tasks.topology import require_gudhi
from threefold.training.checkpoints import load_checkpoint
from threefold.training.devices import check_devices
from threefold.training.module import Learner, StepLosses, shared_parameter, step_total
from threefold.training.progress import Silence, TrainingProgress
from threefold.training.schedule import build_optimiser
from threefold.validation import did_you_mean

_SHOWN = 20
"""Findings of the audit that are printed or told."""


@dataclass(frozen=True)
class Stage:
    """One training of a plan.

    Attributes:
        experiment: the resolved experiment.
        tasks: its tasks, with statistics of the training cases.
        targets: the target of each task, by task.
    """

    experiment: Experiment
    tasks: tuple[Task, ...]
    targets: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """A resolved, immutable experiment and cohort.

    Attributes:
        cohort: the cases.
        split: the part of every case.
        stages: the trainings in order: pretraining, if any, then the experiment itself.
        warnings: of the audit, and about initial weights that may have been trained on test cases.
    """

    cohort: Cohort
    split: Split
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...] = ()

    @property
    def experiment(self) -> Experiment:
        """The experiment with resolved paths."""
        return self.stages[-1].experiment

    def cases(self, part: Any) -> tuple[Case, ...]:
        """Return the cases of a part (train, validation or test), in the table's order."""
        return self.split.cases(self.cohort, part)


def plan(experiment: Experiment, cohort: Cohort, *, progress: TrainingProgress | None = None) -> Plan:
    """Resolve an experiment and a cohort, and make all checks that are possible before training.

    Args:
        experiment: the experiment to train.
        cohort: the training cohort, which is audited first.
        progress: receives the progress; None: silent.

    Raises:
        CohortError: the audit refuses the cohort, or the split does not have the cases that the tasks need.
        ExperimentError: settings contradict each other or the cohort; a network or task can't be created.
        RunError: the initial weights were trained on test cases.
        ImageError: the preprocessing does not fit the cohort's images.
        UsageError: a device or an extra is not available.
        WeightsError: the initial weights do not fit.
    """
    progress = progress or Silence()
    experiment = resolve_paths(experiment)
    require_settings(experiment)
    warnings = _audited(experiment, cohort, progress)
    split = require_split(experiment, cohort)
    warnings += require_unseen(experiment, cohort, split)
    made = unchecked_plan(experiment, cohort, split, tuple(warnings))
    _require_measured(made)
    for warning in made.warnings:
        progress.say(f"warning: {warning}")
    _check_networks(made)
    read_sample(made.cases("train")[0], cohort.spec, experiment.data.preprocessing)
    return made


def plan_of_run(run: RunFolder, experiment: Experiment, cohort: Cohort) -> Plan:
    """Return the plan of an existing run, with its own split; the checks made then remain valid."""
    return unchecked_plan(resolve_paths(experiment), cohort, read_split(run.split))


def unchecked_plan(
    experiment: Experiment, cohort: Cohort, split: Split, warnings: tuple[str, ...] = ()
) -> Plan:
    """Return the plan of an experiment on a split, without any checks."""
    train = split.cases(cohort, "train")
    stages = tuple(
        Stage(one, build_tasks(one, cohort.spec, train), targets_of(one, cohort.spec))
        for one in trainings_of(experiment)
    )
    return Plan(cohort, split, stages, warnings)


def resolve_paths(experiment: Experiment) -> Experiment:
    """Return the experiment as it is saved: with the full path of initial weights, so that it can be resumed
    from another folder; and without pretraining if a cascade has initial weights."""
    weights = experiment.initial_weights
    if weights is None:
        return experiment
    # A model's name stays, which means the same on another machine.
    run_path(weights.path)
    path = weights.path if is_model(weights.path) else str(Path(weights.path).expanduser().resolve())
    changes: dict[str, Any] = {"initial_weights": weights.model_copy(update={"path": path})}
    if isinstance(experiment.network, CascadeSpec):
        changes["pretrain"] = None
    return experiment.model_copy(update=changes)


def require_settings(experiment: Experiment) -> None:
    """Refuse settings that contradict each other or this machine.

    Raises:
        UsageError: the experiment asks for devices or extras that are not there.
        ExperimentError: an augmentation does not fit the grid; a network, task or metric can't be imported,
            or has no such argument.
    """
    check_devices(experiment.training)
    metrics(experiment.evaluation.metrics)
    if isinstance(experiment.network, ForeignNetworkSpec):
        foreign.class_of(experiment.network)
    for name, task in experiment.tasks_of(ForeignTaskSpec).items():
        class_of(name, task)
    _require_augmentation(experiment)
    _require_extras(experiment)


def require_split(experiment: Experiment, cohort: Cohort) -> Split:
    """Split a cohort; refuse parts that lack the cases for training or selection.

    Raises:
        CohortError: with what is missing.
    """
    split = make_split(cohort, experiment.data.split)
    for training in trainings_of(experiment):
        require_targets(cohort, split, [*dict.fromkeys(targets_of(training, cohort.spec).values())])
        _require_estimable(training, cohort, split)
    return split


def _require_estimable(experiment: Experiment, cohort: Cohort, split: Split) -> None:
    """Refuse a selection metric that the validation part can't give.

    Raises:
        CohortError: saying what is missing.
    """
    metric = experiment.training.selection.metric
    cases = split.cases(cohort, "validation")
    asked = [*experiment.scores.values()] if metric == "tasks" else [metric]
    lacking = [_missing_for(one, experiment, cohort, cases) for one in asked]
    if None not in lacking:
        missing = ", ".join(str(one) for one in dict.fromkeys(lacking))
        raise CohortError(
            f"{cohort.folder}: training.selection.metric is {metric}, but of the {len(cases)} validation "
            f"cases {missing}. Choose another metric (training.selection.metric=loss), another split "
            "(data.split.seed, data.split.validation), or add such cases."
        )


def _require_measured(made: Plan) -> None:
    """Refuse a selection metric that a task of one's own does not give.

    Raises:
        ExperimentError: naming those that it gives.
    """
    for stage in made.stages:
        metric = stage.experiment.training.selection.metric
        task, _, name = metric.partition(".")
        own = next((one for one in stage.tasks if one.name == task), None)
        if own is None or metric in stage.experiment.monitors or name in own.metrics:
            continue
        given = [f"{task}.{one}" for one in own.metrics]
        raise ExperimentError(
            f"{stage.experiment.name}: training.selection.metric is {metric}, but the task {task} gives "
            f"{', '.join(given) or 'no metric'}.{did_you_mean(metric, given)}"
        )


def _missing_for(metric: str, experiment: Experiment, cohort: Cohort, cases: tuple[Case, ...]) -> str | None:
    targets = targets_of(experiment, cohort.spec)
    if metric == "loss":
        if len(targets) < len(experiment.tasks):  # one that every case teaches
            return None
        some = any(target in case.targets for case in cases for target in targets.values())
        return None if some else f"none has a {' or a '.join(dict.fromkeys(targets.values()))}"
    task = experiment.monitors[metric][0] if metric in experiment.monitors else metric.partition(".")[0]
    if task not in targets:
        return None
    target = targets[task]
    there = [case.targets[target] for case in cases if target in case.targets]
    known = cohort.spec.all_targets[target]
    if isinstance(known, ClassTarget):
        absent = [name for k, name in enumerate(known.classes) if k not in there]
        return f"none is labelled '{absent[0]}'" if absent else None
    return None if there else f"none has a {target}"


def _require_augmentation(experiment: Experiment) -> None:
    size, flip = experiment.data.preprocessing.size, experiment.data.augmentation.flip
    if isinstance(flip, tuple) and len(flip) != len(size):
        raise ExperimentError(
            f"data.augmentation.flip has {len(flip)} probabilities, but data.preprocessing.size has "
            f"{len(size)} sides. Give one for each, or one number for all."
        )
    if experiment.data.augmentation.quarter_turns and (len(size) != 2 or len(set(size)) != 1):
        raise ExperimentError(
            "data.augmentation.quarter_turns needs a square grid, but data.preprocessing.size is "
            f"{list(size)}. Make it square, or use rotation."
        )


def _require_extras(experiment: Experiment) -> None:
    """Refuse what needs a library that is not installed.

    Raises:
        UsageError: naming the extra.
    """
    if experiment.training.tensorboard and find_spec("tensorboard") is None:
        raise UsageError(
            "training.tensorboard is on, but tensorboard is not installed: "
            "pip install 'threefold[tensorboard]', or leave it off."
        )
    if any(task.homology > 0 for task in experiment.tasks_of(SegmentationSpec).values()):
        require_gudhi()


def trainings_of(experiment: Experiment) -> tuple[Experiment, ...]:
    """Return the trainings of an experiment in order: pretraining, if any, and itself."""
    if experiment.pretrain is None:
        return (experiment,)
    return (pretraining_experiment(experiment), experiment)


def pretraining_experiment(experiment: Experiment) -> Experiment:
    """Return the experiment that `pretrain` names, as it is trained for this one.

    Data (so that no test case is seen) and evaluation are this experiment's; the tasks and what selects the
    best epoch are the recipe's. Before a joint-swin network the encoder (so that it fits) and the training
    are this experiment's too. Before a cascade the network is its segmenter; of the training, the optimiser
    is the recipe's, because segmenter and classifier learn at different rates.

    Raises:
        ExperimentError: if that recipe has a pretraining of its own, or its network is no part of this one.
    """
    assert experiment.pretrain is not None
    recipe = read_recipe(experiment.pretrain)
    if recipe.pretrain is not None:
        raise ExperimentError(
            f"pretrain: '{experiment.pretrain}' has a pretraining of its own; name a recipe that has none."
        )
    if isinstance(experiment.network, CascadeSpec):
        network: NetworkSpec = experiment.network.segmenter
        kept = {"selection", "optimiser"}
    elif isinstance(experiment.network, JointSwinSpec) and isinstance(recipe.network, SwinUnetSpec):
        network = recipe.network.model_copy(update={"encoder": experiment.network.encoder})
        kept = {"selection"}
    else:
        raise ExperimentError(
            f"pretrain: a {experiment.network.kind} network has no part that is trained first."
        )
    if recipe.network.kind != network.kind:
        raise ExperimentError(
            f"pretrain: '{experiment.pretrain}' trains a {recipe.network.kind} network; expected a "
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


def _audited(experiment: Experiment, cohort: Cohort, progress: TrainingProgress) -> list[str]:
    """Audit a cohort; refuse what can't train any of the stages; return the first warnings.

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
    more = f"and {len(warned) - _SHOWN} more; `threefold check {cohort.folder}` shows all"
    return warned[:_SHOWN] + ([more] if len(warned) > _SHOWN else [])


def _check_networks(made: Plan) -> None:
    """Build each network and its optimiser once, so that what can't be built or filled is refused."""
    nowhere = RunFolder(Path())
    with torch.random.fork_rng():
        for stage in made.stages:
            if stage.experiment.pretrain is None:
                network, _ = starting_network(stage.experiment, made.cohort.spec, nowhere, stage.tasks)
            else:  # what it starts from is trained first
                network = build_network(stage.experiment, made.cohort.spec, stage.tasks)
            build_optimiser(network, stage.experiment.training.optimiser)
            if stage.experiment.balancing.method == "gradnorm":
                shared_parameter(network)


@dataclass(frozen=True)
class Cost:
    """The cost of a stage, measured on one step of a few cases.

    Attributes:
        parameters, trained: of the network: all of them, and those with a gradient.
        memory_bytes: of the tensors of a step, the network and its gradients with them.
        steps: an epoch.
        seconds_per_epoch: of its steps; validation takes more.
    """

    parameters: int
    trained: int
    memory_bytes: int
    steps: int
    seconds_per_epoch: float


_MEASURED = 4
"""Cases of a step that is measured."""
_TIMED = 3
"""How often it is timed."""


def measure_cost(made: Plan, stage: Stage, *, clock: Callable[[], float] = time.perf_counter) -> Cost:
    """Take a step of a stage on a few of its training cases, a few times; time the quickest.

    The memory is that of a step on the CPU; the time is a GPU's where there is one.

    Args:
        made: the plan.
        stage: of it.
        clock: what the time is read from, in seconds.

    Raises:
        ImageError: naming the case that can't be read.
    """
    experiment, cases = stage.experiment, made.cases("train")
    spec, batch_size = experiment.training, experiment.training.batch_size
    taken = cases[: min(_MEASURED, batch_size)]
    samples = [read_sample(case, made.cohort.spec, experiment.data.preprocessing) for case in taken]
    batch = collate(samples, made.cohort.spec.all_targets)
    with torch.random.fork_rng():
        network = build_network(experiment, made.cohort.spec, stage.tasks)
    learner = Learner(
        network, stage.tasks, build_balancer(experiment.balancing, tuple(experiment.tasks)), bf16=False
    )
    weights = task_weights(experiment, 0)
    with TensorMemory() as memory:
        _step(learner, batch, weights)
    seconds = _quickest(learner, batch, weights, clock) * len(cases) / len(taken)
    own = sum(parameter.nbytes for parameter in network.parameters())
    return Cost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        trained=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        memory_bytes=int(memory.peak * batch_size / len(taken)) + own,
        steps=-(-len(cases) // (batch_size * spec.accumulate * spec.devices)),
        seconds_per_epoch=seconds,
    )


def _quickest(
    learner: Learner, batch: Batch, weights: Mapping[str, float], clock: Callable[[], float]
) -> float:
    """Return the seconds of a step where training would take it: others may be using the machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner.to(device)
    batch, found = batch.to(device), []
    with cpu_kernels(learner.network):
        for _ in range(_TIMED):
            started = clock()
            _step(learner, batch, weights)
            if device.type == "cuda":
                torch.cuda.synchronize()
            found.append(clock() - started)
    return min(found)


def _step(learner: Learner, batch: Batch, weights: Mapping[str, float]) -> None:
    learner.zero_grad()
    losses = StepLosses(**learner(**batch.as_plain()))
    counts = losses.present.sum(dim=1).float()
    step_total(learner, losses, counts, weights=weights, batches=1, world=1).backward()  # type: ignore[no-untyped-call]


def pretraining_folder(run: RunFolder) -> RunFolder:
    """Return the folder of the pretraining run."""
    former = run.path / "before"  # of 0.1
    return RunFolder(former if former.is_dir() else run.path / "pretrain")


def starting_network(
    experiment: Experiment, cohort: CohortSpec, run: RunFolder, tasks: Sequence[Task] | None = None
) -> tuple[nn.Module, LoadReport | None]:
    """Build the network (random weights from torch's global generator) and give it what it starts from.

    Returns:
        The network, and what became of the weights that it was given.

    Raises:
        WeightsError: if `initial_weights`, or the pretrained encoder, does not fit.
        RunError: if the pretraining has no weights.
    """
    network = build_network(experiment, cohort, tasks)
    report = None
    if experiment.initial_weights is not None:
        spec = experiment.initial_weights
        report = load_pretrained(
            network,
            Path(spec.path),
            decoders_from_encoder=spec.decoders_from_encoder,
        )
    if experiment.pretrain is not None:
        pretrained = _best_of(pretraining_folder(run))
        if isinstance(network, JointSwin):
            network.adopt(_encoder_of(pretrained))
        else:
            report = load_pretrained(network, pretrained, decoders_from_encoder=False)
    return network, report


def _best_of(run: RunFolder) -> Path:
    if not run.best_checkpoint.is_file():
        raise RunError(f"{run.path}: the pretraining has no best checkpoint; train it with --resume.")
    return run.best_checkpoint


def _encoder_of(checkpoint: Path) -> dict[str, Tensor]:
    state = load_checkpoint(checkpoint)["network"]
    return {n.removeprefix("encoder."): v for n, v in state.items() if n.startswith("encoder.")}


def require_unseen(experiment: Experiment, cohort: Cohort, split: Split) -> tuple[str, ...]:
    """Refuse to test on cases that the initial weights, or those they started from, were trained on.

    Weights that are no run of this program tell nothing of what they saw.

    Returns:
        A warning for each run on another cohort that trained on cases of the same names.

    Raises:
        RunError: naming the run and the cases; or the file of a run that is not what it was finished with.
    """
    tested = {case.case_id for case in split.cases(cohort, "test")}
    warnings = []
    for run in _ancestors(experiment):
        seen = seen_of(read_split(run.split), tested)
        if not seen:
            continue
        some = f"{len(seen)} of the {len(tested)} test cases (for example {seen[0]})"
        if run.read_cohort()["fingerprint"] == fingerprint(cohort):
            raise RunError(
                f"{run.path}: trained or selected the weights to start from on {some}. The test would know "
                "its cases from training: use that run's split (data.split), or other weights."
            )
        warnings.append(
            f"{run.path}: the weights to start from were trained or selected on cases of another cohort with "
            f"the names of {some}. If they are the same cases, the test knows them from training: use that "
            "run's split."
        )
    return tuple(warnings)


def seen_of(split: Split, cases: Collection[str]) -> list[str]:
    """Return which of the cases (ids) train or validate in a split, sorted."""
    return sorted(name for name in cases if split.parts.get(name, "test") != "test")


def _ancestors(experiment: Experiment) -> Iterator[RunFolder]:
    """Yield the runs whose weights an experiment starts from, the nearest first."""
    known: set[Path] = set()
    while experiment.initial_weights is not None:
        path = run_path(experiment.initial_weights.path).expanduser().resolve()
        run = RunFolder(path if path.is_dir() else path.parent)
        if run.path in known or not (run.split.is_file() and run.experiment.is_file()):
            return
        known.add(run.path)
        verify_settings(run)
        yield run
        experiment = read_experiment(run.experiment)
