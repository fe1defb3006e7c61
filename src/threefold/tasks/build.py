"""From an experiment to its tasks and their weights."""

from __future__ import annotations

from collections.abc import Sequence

from threefold.experiment import Experiment, RampSpec, Weight
from threefold.tasks.classification import ClassificationTask, balanced_class_weights
from threefold.tasks.label_sums import SharedSums
from threefold.tasks.reconstruction import ReconstructionTask
from threefold.tasks.region import RegionTask
from threefold.tasks.segmentation import SegmentationTask
from threefold.tasks.task import Task


def build_tasks(experiment: Experiment, *, class_counts: Sequence[int]) -> tuple[Task, ...]:
    """Return the experiment's tasks, in the order of `experiment.tasks.names`.

    Args:
        experiment: what to train.
        class_counts: number of training cases of each class, for balanced class weights.
    """
    specs = experiment.tasks
    tasks: list[Task] = []
    if specs.classification is not None:
        balanced = specs.classification.class_weights == "balanced"
        weights = balanced_class_weights(class_counts) if balanced else None
        tasks.append(ClassificationTask(specs.classification, weights))
    if specs.segmentation is not None:
        # Both read the same softmax: one pass over the voxels serves the two.
        sums = SharedSums(specs.segmentation.target, region=specs.region is not None)
        tasks.append(SegmentationTask(specs.segmentation, sums))
        if specs.region is not None:
            tasks.append(RegionTask(specs.region, sums))
    if specs.reconstruction is not None:
        tasks.append(ReconstructionTask(specs.reconstruction))
    return tuple(tasks)


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
    return {
        name: task_weight(getattr(experiment.tasks, name).weight, epoch) for name in experiment.tasks.names
    }
