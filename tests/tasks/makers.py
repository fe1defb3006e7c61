"""Batches and tasks as an experiment and its cohort would make them, without either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from threefold.core.batch import Batch, Target
from threefold.core.outputs import Outputs
from threefold.core.targets import ClassTarget, LabelsTarget, MaskTarget, MultilabelTarget, NumberTarget
from threefold.experiment import (
    ClassificationSpec,
    MultilabelSpec,
    ReconstructionSpec,
    RegionSpec,
    RegressionSpec,
    SegmentationSpec,
)
from threefold.tasks.classification import ClassificationTask
from threefold.tasks.label_sums import SharedSums
from threefold.tasks.multilabel import MultilabelTask
from threefold.tasks.reconstruction import ReconstructionTask
from threefold.tasks.region import RegionTask
from threefold.tasks.regression import RegressionTask
from threefold.tasks.segmentation import SegmentationTask
from threefold.tasks.task import Task, TaskContext


def everywhere(values: Tensor) -> Target:
    """Return the target of cases that all have it."""
    return Target(values, torch.ones(len(values), dtype=torch.bool))


def batch_of(image: Tensor, **targets: Target) -> Batch:
    """Return the batch of (B, C, *S) images, whose cases are named a, b, ..."""
    return Batch(tuple("abcdefgh"[: len(image)]), image, targets)


def case_losses(task: Task, outputs: Outputs, batch: Batch) -> Tensor:
    """Return (B,) losses as a training counts them: 0 where the target is absent."""
    losses = task.losses(outputs, batch)
    assert losses.shape == (len(batch),)
    return losses.where(task.present(batch), 0.0)


def names(count: int) -> tuple[str, ...]:
    """Return names of classes or structures."""
    return tuple(f"n{i}" for i in range(count))


def classification(classes: int = 3, values: Sequence[int] = (), **options: Any) -> ClassificationTask:
    """Return the task of the target `label`; `values` are those of the training cases."""
    context = TaskContext("classification", "label", ClassTarget(classes=names(classes)), values)
    return ClassificationTask(context, ClassificationSpec(**options))


def segmentation(labels: int = 2, sums: SharedSums | None = None, **options: Any) -> SegmentationTask:
    """Return the task of the mask, or of the structures with labels 0 to labels - 1."""
    spec = SegmentationSpec(**options)
    known = (
        MaskTarget(kind="mask")
        if spec.target == "mask"
        else LabelsTarget(kind="labels", names=names(labels - 1))
    )
    return SegmentationTask(TaskContext("segmentation", spec.target, known), spec, sums)


def region(**options: Any) -> RegionTask:
    """Return the task of the mask that adds up the segmentation's structures, by sums of its own."""
    context = TaskContext("region", "mask", MaskTarget(kind="mask"))
    return RegionTask(context, RegionSpec(**options), SharedSums("segmentation", "structures", "mask"))


def reconstruction(**options: Any) -> ReconstructionTask:
    """Return the task of the image."""
    return ReconstructionTask(TaskContext("reconstruction"), ReconstructionSpec(**options))


def multilabel(
    findings: int = 3, values: Sequence[tuple[bool | None, ...]] = (), **options: Any
) -> MultilabelTask:
    """Return the task of the target `findings`; `values` are those of the training cases."""
    known = MultilabelTarget(kind="multilabel", classes=names(findings))
    return MultilabelTask(TaskContext("multilabel", "findings", known, values), MultilabelSpec(**options))


def regression(values: Sequence[float] = (), **options: Any) -> RegressionTask:
    """Return the task of the target `age`; `values` are those of the training cases."""
    context = TaskContext("regression", "age", NumberTarget(kind="number", unit="days"), values)
    return RegressionTask(context, RegressionSpec(**options))
