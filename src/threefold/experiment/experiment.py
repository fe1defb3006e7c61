"""The whole experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Self, TypeVar

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from threefold.experiment.data import DataSpec
from threefold.experiment.evaluation import EvaluationSpec
from threefold.experiment.networks import (
    AttentionUnetSpec,
    CascadeSpec,
    InitialWeightsSpec,
    JointSwinSpec,
    NetworkSpec,
    SwinUnetSpec,
)
from threefold.experiment.spec import Spec
from threefold.experiment.tasks import (
    KINDS,
    AnyTaskSpec,
    BalancingSpec,
    ForeignTaskSpec,
    RegionSpec,
    SegmentationSpec,
    TaskSpec,
    named_kinds,
)
from threefold.experiment.training import TrainingSpec
from threefold.validation import did_you_mean

T = TypeVar("T", bound=TaskSpec)


class Experiment(Spec):
    """An experiment: data, network, tasks, training, evaluation."""

    name: str
    description: str = ""
    paper: str = ""
    """The line of the paper that this reproduces, and how ambiguities were resolved."""
    # The second name is that of 0.1.
    pretrain: str | None = Field(default=None, validation_alias=AliasChoices("pretrain", "before"))
    """A recipe that is trained first, into RUN/pretrain: its encoder is what a joint-swin network builds on,
    its network is what a cascade's segmenter starts from. It is trained on this experiment's data and as
    long as it, a cascade's segmenter with the recipe's own optimiser. A cascade with initial_weights has
    none."""
    data: DataSpec = DataSpec()
    network: NetworkSpec = SwinUnetSpec()
    initial_weights: InitialWeightsSpec | None = None
    tasks: Annotated[Mapping[str, AnyTaskSpec], BeforeValidator(named_kinds)]
    """The tasks by name, which you choose; kind may be omitted if the name is a kind (classification,
    multilabel, regression, segmentation, region, reconstruction)."""
    balancing: BalancingSpec = BalancingSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    @model_validator(mode="after")
    def _tasks_fit(self) -> Self:
        if not self.tasks:
            raise ValueError(f"at least one task is needed: {', '.join(KINDS)}")
        for name, task in self.tasks.items():
            if isinstance(task, RegionSpec):
                self._refuse_region(name, task)
        return self

    def _refuse_region(self, name: str, task: RegionSpec) -> None:
        segmentations = self.tasks_of(SegmentationSpec)
        if task.of is not None and task.of not in segmentations:
            hint = did_you_mean(task.of, tuple(segmentations))
            raise ValueError(f"tasks.{name}.of is '{task.of}', which is no segmentation task.{hint}")
        if task.of is None and not any(one.target != "mask" for one in segmentations.values()):
            raise ValueError(
                "the region task adds up the structures of a segmentation task with target structures; to "
                "learn masks alone, leave it out and set segmentation.target to mask"
            )

    @model_validator(mode="after")
    def _network_serves_tasks(self) -> Self:
        kind, serves = self.network.kind, self.network.serves
        unserved = [name for name, task in self.tasks.items() if task.head and task.head not in serves]
        if unserved:
            known = [one for one, spec in KINDS.items() if spec.head in serves]
            raise ValueError(
                f"a {kind} network has no head for {', '.join(unserved)}; it serves {', '.join(known)}"
            )
        if isinstance(self.network, JointSwinSpec) and self.pretrain is None:
            raise ValueError("a joint-swin network needs `pretrain`, the recipe of its first encoder")
        pooling = self.network.pooling if isinstance(self.network, AttentionUnetSpec) else "image"
        if pooling != "image" and not any(task.head == "dense" for task in self.tasks.values()):
            raise ValueError(
                f"network.pooling is {pooling}, but no task segments the region; add one (segmentation), or "
                "set network.pooling to image"
            )
        if isinstance(self.network, CascadeSpec):
            pooled = [name for name, task in self.tasks.items() if task.head == "pooled"]
            if not pooled and not self.tasks_of(ForeignTaskSpec):
                raise ValueError("a cascade network is for classification; train its segmenter alone instead")
            frozen = self.network.freeze_segmenter
            if frozen and [name for name in self.tasks if name not in pooled]:
                raise ValueError("with network.freeze_segmenter only the classification task can be trained")
            if frozen and self.pretrain is None and self.initial_weights is None:
                raise ValueError(
                    "network.freeze_segmenter needs a trained segmenter: `pretrain` (a recipe that is "
                    "trained first), or initial_weights (a run; --init-from RUN)"
                )
        return self

    @model_validator(mode="after")
    def _metric_is_given(self) -> Self:
        metric = self.training.selection.metric
        task, dot, _ = metric.partition(".")
        if metric == "loss" or metric in self.monitors or (dot and task in self.tasks_of(ForeignTaskSpec)):
            return self
        if metric == "tasks":
            if not self.scores:
                raise ValueError(
                    "training.selection.metric is tasks, the mean of auc, dice and r2, but no task gives one "
                    "of them; choose loss"
                )
            return self
        several = [name for name, of in self.monitors.items() if of[1] == metric]
        if several:
            raise ValueError(
                f"training.selection.metric is {metric}, which several tasks give; say which one: "
                f"{', '.join(several)}"
            )
        given = ["loss", "tasks", *self.monitors]
        raise ValueError(
            f"training.selection.metric is {metric}, but no task gives it.{did_you_mean(metric, given)}"
        )

    @property
    def monitors(self) -> Mapping[str, tuple[str, str]]:
        """The metrics of the validation part by name: the task and the metric of each.

        A metric of only one task has its short name (auc), otherwise it is prefixed by the task
        (hypodensity.auc).
        """
        given = [(name, metric) for name, task in self.tasks.items() for metric in task.metrics]
        counts = Counter(metric for _, metric in given)
        return {
            metric if counts[metric] == 1 else f"{name}.{metric}": (name, metric) for name, metric in given
        }

    @property
    def scores(self) -> Mapping[str, str]:
        """What selection.metric tasks is the mean of: by task, the name in `monitors`."""
        names = {of: name for name, of in self.monitors.items()}
        return {name: names[name, task.score] for name, task in self.tasks.items() if task.score is not None}

    def tasks_of(self, kind: type[T]) -> dict[str, T]:
        """Return the tasks of a kind, by name."""
        return {name: task for name, task in self.tasks.items() if isinstance(task, kind)}
