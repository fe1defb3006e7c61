"""From an experiment and the cohort that it meets to its tasks, their weights, and the network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from threefold.cohorts.cohort import Case, CohortSpec
from threefold.core.arguments import require_arguments
from threefold.core.outputs import Head
from threefold.core.registry import find, load
from threefold.core.targets import LabelsTarget
from threefold.errors import ExperimentError, bounded
from threefold.experiment import (
    CascadeSpec,
    Experiment,
    ForeignTaskSpec,
    RampSpec,
    RegionSpec,
    SegmentationSpec,
    Weight,
)
from threefold.networks.build import make_network
from threefold.tasks.label_sums import SharedSums
from threefold.tasks.resolve import region_head, target_of
from threefold.tasks.task import Task, TaskContext


def build_tasks(experiment: Experiment, cohort: CohortSpec, cases: Sequence[Case] = ()) -> tuple[Task, ...]:
    """Return the experiment's tasks, in their order.

    Args:
        experiment: what to train.
        cohort: declares the targets.
        cases: of the training part, for balanced class weights and the unit of numbers; none where a trained
            network is read.

    Raises:
        ExperimentError: a task's target is not in the cohort, or of another kind.
    """
    channels = channels_of(experiment, cohort)
    contexts: dict[str, TaskContext] = {}
    for name, spec in experiment.tasks.items():
        target = target_of(name, spec, experiment, cohort)
        known = None if target is None else cohort.all_targets[target]
        values = [case.targets[target] for case in cases if target is not None and target in case.targets]
        contexts[name] = TaskContext(name, target, known, values, channels)
    heads = {name: region_head(name, experiment, cohort) for name in experiment.tasks_of(RegionSpec)}
    # A segmentation and its region read the same softmax: one pass over the voxels serves the two. Further
    # regions of the same structures have a pass of their own.
    first = {head: name for name, head in reversed(heads.items())}
    sums = {
        name: SharedSums(
            name, str(contexts[name].target), contexts[first[name]].target if name in first else None
        )
        for name in experiment.tasks_of(SegmentationSpec)
    }
    tasks: list[Task] = []
    for name, spec in experiment.tasks.items():
        context = contexts[name]
        if isinstance(spec, ForeignTaskSpec):
            tasks.append(_foreign_task(context, spec))
            continue
        shared: tuple[SharedSums, ...] = ()
        if isinstance(spec, SegmentationSpec):
            shared = (sums[name],)
        elif isinstance(spec, RegionSpec):
            head = heads[name]
            alone = first[head] != name
            shared = (SharedSums(head, str(contexts[head].target), context.target) if alone else sums[head],)
        tasks.append(load(spec.code)(context, spec, *shared))
    return tuple(tasks)


def class_of(name: str, spec: ForeignTaskSpec) -> type[Task]:
    """Return the class that a task's settings name.

    Args:
        name: of the task.
        spec: its settings.

    Raises:
        ExperimentError: there is no such class, it is no task, or it has no such arguments.
    """
    made, _ = find("tasks", spec.kind)
    if not (isinstance(made, type) and issubclass(made, Task)):
        raise ExperimentError(f"tasks.{name}: {spec.kind} is no class that derives from threefold.Task.")
    keys = ForeignTaskSpec.model_fields
    require_arguments(made, spec.options, f"tasks.{name}: {spec.kind}", keys=keys, given=("context",))
    return made


def _foreign_task(context: TaskContext, spec: ForeignTaskSpec) -> Task:
    """Make a task of a user's own class.

    Raises:
        ExperimentError: as `class_of`, or it can't be made.
    """
    made = class_of(context.name, spec)
    try:
        return made(context, **spec.options)
    except Exception as error:  # whatever a user's class raises
        raise ExperimentError(
            f"tasks.{context.name}: {spec.kind} can't be made with {bounded(str(spec.options))} "
            f"({type(error).__name__}: {bounded(str(error))})."
        ) from error


def build_network(
    experiment: Experiment, cohort: CohortSpec, tasks: Sequence[Task] | None = None
) -> nn.Module:
    """Build the experiment's network, with random weights (from torch's global generator).

    Args:
        experiment: names the network and its tasks.
        cohort: declares the targets, and so the number of outputs.
        tasks: of the experiment, with what the training cases tell; None: of a trained network.

    Raises:
        ExperimentError: if the experiment asks for something that the cohort does not define, or for images
            of other axes than the network takes.
    """
    tasks = build_tasks(experiment, cohort) if tasks is None else tasks
    heads = {task.name: task.head for task in tasks if task.head is not None}
    return make_network(
        experiment.network,
        in_channels=channels_of(experiment, cohort),
        heads=_with_segmenter(heads, experiment, cohort),
        size=_size_of(experiment),
    )


def channels_of(experiment: Experiment, cohort: CohortSpec) -> int:
    """Return the channels of the network's input: each window of each channel of a case."""
    return len(experiment.data.preprocessing.windows or (None,)) * len(cohort.image_columns)


def _with_segmenter(heads: dict[str, Head], experiment: Experiment, cohort: CohortSpec) -> dict[str, Head]:
    """Return the heads, of a cascade whose segmenter was trained before with that of its structures."""
    spec = experiment.network
    if not isinstance(spec, CascadeSpec) or any(head.kind == "dense" for head in heads.values()):
        return heads
    structures = [one for one in cohort.all_targets.values() if isinstance(one, LabelsTarget)]
    if not structures:
        raise ExperimentError(
            f"{experiment.name} segments structures, but cohort '{cohort.name}' names none. Name them in "
            "cohort.yaml (structures), or set tasks.segmentation.target to mask."
        )
    return {**heads, "segmentation": Head("dense", len(structures[0].names) + 1)}


def _size_of(experiment: Experiment) -> tuple[int, ...]:
    """Return the size of the network's grid, if the network takes images of so many axes."""
    size, kind, axes = experiment.data.preprocessing.size, experiment.network.kind, experiment.network.axes
    if len(size) not in axes:
        advice = "two sides, such as [224, 224]"
        if 3 in axes:
            advice = "two or three sides, such as [64, 64, 64]"
        raise ExperimentError(
            f"{experiment.name}: the {kind} network takes images of {' or '.join(map(str, axes))} axes, but "
            f"data.preprocessing.size has {len(size)}. Give it {advice}."
        )
    return size


def task_weight(weight: Weight, epoch: int) -> float:
    """Return a task's weight in an epoch (0-based).

    A ramp is start + step * (epoch // every), held between 0 and its limit.
    """
    if not isinstance(weight, RampSpec):
        return weight
    value = max(0.0, weight.start + weight.step * (epoch // weight.every))
    return value if weight.limit is None else min(value, weight.limit)


def task_weights(experiment: Experiment, epoch: int) -> dict[str, float]:
    """Return the weight of each of the experiment's tasks in an epoch (0-based)."""
    return {name: task_weight(spec.weight, epoch) for name, spec in experiment.tasks.items()}
