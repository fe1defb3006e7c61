"""Validation: what each case gives, gathered over the ranks, and the metrics of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray

from threefold.cohorts.cohort import CohortSpec
from threefold.errors import TrainingError
from threefold.evaluation import classification, overlap
from threefold.evaluation.reconstruction import psnr
from threefold.experiment import TasksSpec
from threefold.images.batch import Batch, Sample
from threefold.networks.outputs import Outputs
from threefold.tasks.task import CaseLosses
from threefold.training.module import Learner


@dataclass(frozen=True)
class CaseRecord:
    """What a validation case gives.

    Attributes:
        losses: by task; only tasks whose target the case carries.
        label: class index, or None.
        probabilities: (K,) softmax; empty without classification.
        dice: mean Dice over the labels that the case has; NaN where it has none or no target.
        psnr: of the reconstruction, dB; NaN without one.
    """

    losses: Mapping[str, float]
    label: int | None = None
    probabilities: tuple[float, ...] = ()
    dice: float = math.nan
    psnr: float = math.nan


def validate_cases(
    learner: Learner, tasks: TasksSpec, batches: Iterable[Batch | Sample], device: torch.device
) -> dict[str, CaseRecord]:
    """Return a record by case id of every case, in evaluation mode and without augmentation."""
    was_training = learner.training
    learner.eval()
    records: dict[str, CaseRecord] = {}
    for batch in batches:
        assert isinstance(batch, Batch)
        on_device = batch.to(device, non_blocking=True)
        outputs, losses = learner.evaluate(on_device)
        records.update(_records(tasks, on_device, outputs, losses))
    learner.train(was_training)
    return records


def gather_records(records: Mapping[str, CaseRecord], world: int) -> dict[str, CaseRecord]:
    """Join the records of all ranks: by case id, so that none counts twice, in the order of the ids."""
    shares: list[Mapping[str, CaseRecord]] = [records]
    if world > 1:
        received: list[Mapping[str, CaseRecord] | None] = [None] * world
        torch.distributed.all_gather_object(received, dict(records))
        shares = [share for share in received if share is not None]
    joined = {case_id: record for share in shares for case_id, record in share.items()}
    return dict(sorted(joined.items()))


def validation_metrics(
    records: Mapping[str, CaseRecord], cohort: CohortSpec, weights: Mapping[str, float]
) -> dict[str, float]:
    """Return loss, loss_<task>, auc, average_precision, balanced_accuracy, dice, psnr; NaN: not estimable.

    `loss` is the weighted sum of the tasks' means, each over the cases that carry the target; a task of
    which no case does is left out.
    """
    cases = records.values()
    means = {task: _mean(r.losses[task] for r in cases if task in r.losses) for task in weights}
    there = [weights[task] * mean for task, mean in means.items() if not math.isnan(mean)]
    metrics = {"loss": sum(there) if there else math.nan}
    metrics.update({f"loss_{task}": mean for task, mean in means.items()})
    if "classification" in weights:
        metrics.update(_classification(records, cohort))
    if "segmentation" in weights:
        metrics["dice"] = _mean(r.dice for r in cases if not math.isnan(r.dice))
    if "reconstruction" in weights:
        metrics["psnr"] = _mean(r.psnr for r in cases)
    return metrics


def refuse_non_finite(records: Mapping[str, CaseRecord], weights: Mapping[str, float]) -> None:
    """Raise where a validation loss is not finite.

    Raises:
        TrainingError: naming the tasks and cases.
    """
    bad = {
        task: [name for name, r in records.items() if not math.isfinite(r.losses.get(task, 0.0))]
        for task in weights
    }
    found = [f"{task}: {', '.join(names)}" for task, names in bad.items() if names]
    if found:
        raise TrainingError(
            f"the validation loss is not finite ({'; '.join(found)}). Look at these cases (`threefold "
            "check`), or lower training.optimiser.learning_rate; --resume goes on from the last whole epoch."
        )


def _classification(records: Mapping[str, CaseRecord], cohort: CohortSpec) -> dict[str, float]:
    labelled = [r for r in records.values() if r.label is not None]
    labels = np.array([r.label for r in labelled], np.int64)
    probabilities = np.array([r.probabilities for r in labelled], np.float64)
    positive = cohort.positive_class
    # Two classes: the positive one; more: each against the rest, and their mean.
    asked = range(len(cohort.classes)) if positive is None else (positive,)
    metrics = {}
    for name, metric in (
        ("auc", classification.auc),
        ("average_precision", classification.average_precision),
    ):
        values = [metric(labels == k, probabilities[:, k]) for k in asked] if labelled else [math.nan]
        metrics[name] = float(np.mean(values))
    metrics["balanced_accuracy"] = _balanced_accuracy(labels, probabilities, len(cohort.classes))
    return metrics


def _balanced_accuracy(labels: NDArray[np.int64], probabilities: NDArray[np.float64], classes: int) -> float:
    """Return the mean recall of the most probable class; NaN where a class has no case."""
    if len({*labels.tolist()}) < classes:
        return math.nan
    right = probabilities.argmax(axis=1) == labels
    return float(np.mean([right[labels == k].mean() for k in range(classes)]))


def _records(
    tasks: TasksSpec, batch: Batch, outputs: Outputs, losses: Mapping[str, CaseLosses]
) -> dict[str, CaseRecord]:
    count = len(batch)
    values = {name: loss.values.tolist() for name, loss in losses.items()}
    present = {name: loss.present.tolist() for name, loss in losses.items()}
    probabilities = [()] * count
    if outputs.classes is not None:
        probabilities = [tuple(row) for row in outputs.classes.double().softmax(dim=1).tolist()]
    dices = [math.nan] * count
    if tasks.segmentation is not None and outputs.segmentation is not None:
        target = batch.label_maps(tasks.segmentation.target)[0]
        dices = _dices(outputs.segmentation, target, present["segmentation"])
    ratios = [math.nan] * count
    if outputs.reconstruction is not None:
        restored, truth = outputs.reconstruction.cpu().numpy(), batch.image.cpu().numpy()
        ratios = [psnr(a, b) for a, b in zip(truth, restored, strict=True)]
    has_label = batch.has_label.tolist()
    labels = batch.label.tolist()
    return {
        case_id: CaseRecord(
            losses={name: values[name][i] for name in losses if present[name][i]},
            label=labels[i] if has_label[i] else None,
            probabilities=probabilities[i],
            dice=dices[i],
            psnr=ratios[i],
        )
        for i, case_id in enumerate(batch.case_ids)
    }


def _dices(logits: torch.Tensor, target: torch.Tensor, present: list[bool]) -> list[float]:
    """Return the mean Dice of each case over the foreground labels that it has."""
    predicted = logits.argmax(dim=1).flatten(1)  # (B, N)
    truth = target.flatten(1).long()  # (B, N)
    columns = []
    for label in range(1, logits.shape[1]):
        is_true, is_predicted = truth == label, predicted == label
        counts = (is_true.sum(1), is_predicted.sum(1), (is_true & is_predicted).sum(1))
        columns.append(overlap.dice(*(count.cpu().numpy() for count in counts)))
    per_label = np.stack(columns, axis=1)  # (B, L - 1), NaN where the case lacks the label
    return [
        _mean(value for value in row if not math.isnan(value)) if is_present else math.nan
        for row, is_present in zip(per_label.tolist(), present, strict=True)
    ]


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else math.nan
