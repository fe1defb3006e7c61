"""Validation: what each case gives, gathered over the ranks, and the metrics of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed

from threefold.core.batch import Batch, Sample
from threefold.errors import TrainingError
from threefold.experiment import Experiment
from threefold.training.module import Learner


@dataclass(frozen=True)
class CaseRecord:
    """What a validation case gives.

    Attributes:
        losses: by task; only tasks that the case teaches.
        records: of the same tasks, what their metrics need of the case.
    """

    losses: Mapping[str, float]
    records: Mapping[str, Any] = field(default_factory=dict)


def validate_cases(
    learner: Learner, batches: Iterable[Batch | Sample], device: torch.device
) -> dict[str, CaseRecord]:
    """Return a record by case id of every case, in evaluation mode and without augmentation."""
    was_training = learner.training
    learner.eval()
    records: dict[str, CaseRecord] = {}
    for batch in batches:
        assert isinstance(batch, Batch)
        records.update(_records(learner, batch.to(device, non_blocking=True)))
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
    records: Mapping[str, CaseRecord], learner: Learner, experiment: Experiment, weights: Mapping[str, float]
) -> dict[str, float]:
    """Return loss, loss_<task>, and the tasks' metrics, named as `Experiment.monitors`; NaN: not estimable.

    `loss` is the weighted sum of the tasks' means, each over the cases that carry the target; a task of
    which no case does is left out. Where it selects, `tasks` is the mean of those that can be estimated.
    """
    cases = records.values()
    means = {task: _mean(r.losses[task] for r in cases if task in r.losses) for task in weights}
    there = [weights[task] * mean for task, mean in means.items() if not math.isnan(mean)]
    metrics = {"loss": sum(there) if there else math.nan}
    metrics.update({f"loss_{task}": mean for task, mean in means.items()})
    names = {of: name for name, of in experiment.monitors.items()}
    for task in learner.tasks:
        found = task.measure([case.records[task.name] for case in cases if task.name in case.records])
        metrics.update(
            {names.get((task.name, name), f"{task.name}.{name}"): float(found[name]) for name in task.metrics}
        )
    if experiment.training.selection.metric == "tasks":
        scores = [metrics[name] for name in experiment.scores.values()]
        metrics["tasks"] = _mean(max(score, 0.0) for score in scores if not math.isnan(score))
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
            "check`), or lower training.optimiser.learning_rate; --resume continues from the last complete "
            "epoch."
        )


def _records(learner: Learner, batch: Batch) -> dict[str, CaseRecord]:
    outputs, losses = learner.evaluate(batch)
    values, present = losses.values.tolist(), losses.present.tolist()
    with torch.no_grad():
        kept = [task.record(outputs, batch) if task.metrics else None for task in learner.tasks]
    found = {}
    for i, case_id in enumerate(batch.case_ids):
        there = [t for t, task in enumerate(learner.tasks) if present[t][i]]
        found[case_id] = CaseRecord(
            losses={learner.names[t]: values[t][i] for t in there},
            records={learner.names[t]: kept[t][i] for t in there if kept[t] is not None},  # type: ignore[index]
        )
    return found


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else math.nan
