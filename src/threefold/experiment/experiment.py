"""The whole experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import model_validator

from threefold.experiment.data import DataSpec
from threefold.experiment.evaluation import EvaluationSpec
from threefold.experiment.networks import (
    CascadeSpec,
    InitialWeightsSpec,
    JointSwinSpec,
    NetworkSpec,
    SwinUnetSpec,
)
from threefold.experiment.spec import Spec
from threefold.experiment.tasks import BalancingSpec, TasksSpec
from threefold.experiment.training import TrainingSpec

_SERVES: Mapping[str, tuple[str, ...]] = {
    "swin-unet": ("classification", "segmentation", "region", "reconstruction"),
    "joint-swin": ("classification",),
    "attention-unet": ("classification", "segmentation", "region"),
    "densenet": ("classification",),
    "cascade": ("classification", "segmentation", "region"),
}


class Experiment(Spec):
    """An experiment: data, network, tasks, training, evaluation."""

    name: str
    description: str = ""
    paper: str = ""
    """The line of the paper that this is, and how what it leaves open was read."""
    before: str | None = None
    """A recipe that is trained first, into RUN/before: its encoder is what a joint-swin network builds on,
    its network is what a cascade's segmenter starts from. It is trained on this experiment's data and as
    long as it, a cascade's segmenter with the recipe's own optimiser. A cascade with initial_weights has
    none."""
    data: DataSpec = DataSpec()
    network: NetworkSpec = SwinUnetSpec()
    initial_weights: InitialWeightsSpec | None = None
    tasks: TasksSpec
    balancing: BalancingSpec = BalancingSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    @model_validator(mode="after")
    def _network_serves_tasks(self) -> Self:
        kind = self.network.kind
        unserved = [name for name in self.tasks.names if name not in _SERVES[kind]]
        if unserved:
            raise ValueError(
                f"a {kind} network has no head for {', '.join(unserved)}; "
                f"it serves {', '.join(_SERVES[kind])}"
            )
        if isinstance(self.network, JointSwinSpec) and self.before is None:
            raise ValueError("a joint-swin network needs `before`, the recipe of its first encoder")
        if isinstance(self.network, CascadeSpec):
            if self.tasks.classification is None:
                raise ValueError("a cascade network is for classification; train its segmenter alone instead")
            frozen = self.network.freeze_segmenter
            if frozen and self.tasks.names != ("classification",):
                raise ValueError("with network.freeze_segmenter only the classification task can be trained")
            if frozen and self.before is None and self.initial_weights is None:
                raise ValueError(
                    "network.freeze_segmenter needs a trained segmenter: `before` (a recipe that is trained "
                    "first), or initial_weights (a run; --init-from RUN)"
                )
        return self

    @model_validator(mode="after")
    def _gradnorm_has_a_shared_layer(self) -> Self:
        if self.balancing.method == "gradnorm" and self.network.kind != "swin-unet":
            raise ValueError(
                "balancing.method gradnorm compares gradients at the layer that all tasks share, which a "
                f"swin-unet network names and a {self.network.kind} network does not; use uncertainty"
            )
        return self

    @model_validator(mode="after")
    def _metric_is_given(self) -> Self:
        metric, tasks = self.training.selection.metric, self.tasks
        needs = {
            "auc": tasks.classification,
            "average_precision": tasks.classification,
            "balanced_accuracy": tasks.classification,
            "dice": tasks.segmentation,
            "psnr": tasks.reconstruction,
        }
        if metric in needs and needs[metric] is None:
            raise ValueError(f"training.selection.metric is {metric}, but no task gives it")
        return self
