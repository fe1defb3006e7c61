"""The tasks that teach the representation, and how they are weighed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Tag

from threefold.experiment.spec import Fraction, NonNegative, PositiveInt, Spec
from threefold.validation import did_you_mean


class RampSpec(Spec):
    """A weight that changes with the epoch: start + step * (epoch // every), at most `limit`."""

    start: NonNegative
    step: float
    every: PositiveInt
    limit: NonNegative | None = None


Weight = NonNegative | RampSpec
HeadKind = Literal["pooled", "dense", "restored"]
"""What a task needs of a network: a vector for the image, one for each voxel, or an image like the input."""


class TaskSpec(Spec):
    """One task: what is learned, from which target, and how much it weighs."""

    head: ClassVar[HeadKind | None] = None
    """What it needs of the network; None: another task's head."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """What it gives on the validation part, for `training.selection.metric`."""

    kind: str
    weight: Weight = 1.0


class ClassificationSpec(TaskSpec):
    """Softmax cross-entropy of a target of kind class."""

    head = "pooled"
    metrics = ("auc", "average_precision", "balanced_accuracy")

    kind: Literal["classification"] = "classification"
    target: str | None = None
    """None: `label`, or else the cohort's only target of kind class."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs the inverse of its frequency among the training cases."""
    label_smoothing: Fraction = 0.0


class MultilabelSpec(TaskSpec):
    """Binary cross-entropy of each finding of a target of kind multilabel, mean over those that are known."""

    head = "pooled"
    metrics = ("auc", "average_precision")

    kind: Literal["multilabel"] = "multilabel"
    target: str | None = None
    """None: the cohort's only target of kind multilabel."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: of each finding, cases that have it weigh as much together as those that don't."""


class RegressionSpec(TaskSpec):
    """A target of kind number, in standard deviations of the training cases."""

    head = "pooled"
    metrics = ("mae", "rmse", "r2")

    kind: Literal["regression"] = "regression"
    target: str | None = None
    """None: the cohort's only target of kind number."""
    loss: Literal["l1", "l2", "huber"] = "huber"
    """huber: squared below one standard deviation of the training cases, absolute above."""


class SegmentationSpec(TaskSpec):
    """Softmax segmentation: cross_entropy * CE + dice * soft Dice loss."""

    head = "dense"
    metrics = ("dice",)

    kind: Literal["segmentation"] = "segmentation"
    target: str = "mask"
    """A target of kind mask or labels; mask also stands for the cohort's only one."""
    cross_entropy: NonNegative = 1.0
    dice: NonNegative = 1.0
    cl_dice: NonNegative = 0.0
    """Weight of the soft centreline Dice loss (Shit et al. 2021), mean over the foreground labels, each in
    the box where it is or is found: for thin structures that must not break. Half a second a 96^3 case of
    vessels, more while everything is found everywhere."""
    homology: NonNegative = 0.0
    """Weight of the persistent-homology loss (Hu et al. 2019), a sum over the features of each label that
    are missing or too many: 0.01 is much. Needs the extra `topology`, and seconds a case: 0.1 s for each
    label's box of 30^3 voxels, 2 s for 60^3. Use it at last, with --init-from RUN."""


class RegionSpec(TaskSpec):
    """The binary mask, as the sum of the structures' probabilities: cross_entropy * CE + dice * soft Dice
    loss of [p(background), 1 - p(background)]."""

    kind: Literal["region"] = "region"
    target: str = "mask"
    """A target of kind mask."""
    of: str | None = None
    """The segmentation task whose structures are added up; None: the only one that has structures."""
    cross_entropy: NonNegative = 1.0
    dice: NonNegative = 1.0


class ReconstructionSpec(TaskSpec):
    """The network's input image again."""

    head = "restored"
    metrics = ("psnr",)

    kind: Literal["reconstruction"] = "reconstruction"
    loss: Literal["mse", "l1"] = "mse"


class ForeignTaskSpec(TaskSpec):
    """A task of one's own: `kind` is module:Class, or a name that an installed package registers. What else
    is said goes to the class."""

    model_config = ConfigDict(extra="allow")

    target: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the class."""
        return dict(self.model_extra or {})


_BUILT_IN: tuple[type[TaskSpec], ...] = (
    ClassificationSpec,
    MultilabelSpec,
    RegressionSpec,
    SegmentationSpec,
    RegionSpec,
    ReconstructionSpec,
)
KINDS: Mapping[str, type[TaskSpec]] = {str(one.model_fields["kind"].default): one for one in _BUILT_IN}
"""The built-in tasks, in the order in which an experiment's tasks are taken."""
_FOREIGN = "a task of one's own"


def _kind_of(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return str(kind) if kind in KINDS else _FOREIGN


AnyTaskSpec = Annotated[
    Annotated[ClassificationSpec, Tag("classification")]
    | Annotated[MultilabelSpec, Tag("multilabel")]
    | Annotated[RegressionSpec, Tag("regression")]
    | Annotated[SegmentationSpec, Tag("segmentation")]
    | Annotated[RegionSpec, Tag("region")]
    | Annotated[ReconstructionSpec, Tag("reconstruction")]
    | Annotated[ForeignTaskSpec, Tag(_FOREIGN)],
    Discriminator(_kind_of),
]
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_TAKEN = ("loss", "all", *dir(dict), "type", "training", "forward", "register_buffer")


def named_kinds(tasks: Any) -> Any:
    """Return the tasks with the kind that a name stands for filled in, in the order of their kinds.

    A task that is null is left out.

    Raises:
        ValueError: a name stands for no kind, or can't name a column.
    """
    if not isinstance(tasks, Mapping):
        return tasks
    found: dict[str, Any] = {}
    for name, value in tasks.items():
        if value is None:
            continue
        if not _NAME.fullmatch(str(name)) or name in _TAKEN:
            raise ValueError(
                f"'{name}' can't name a task: expected letters, digits, - and _, and no such word"
            )
        if isinstance(value, Mapping) and "kind" not in value:
            if name not in KINDS:
                hint = did_you_mean(str(name), tuple(KINDS))
                raise ValueError(f"'{name}' is no kind of task; say which one it is (kind: ...).{hint}")
            value = {"kind": name, **value}
        found[str(name)] = value
    order = [*KINDS, _FOREIGN]
    return dict(sorted(found.items(), key=lambda one: order.index(_kind_of(one[1]))))


class BalancingSpec(Spec):
    """How the tasks' losses are weighed against each other."""

    method: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    """fixed: the tasks' weights. uncertainty: learned log-variances (Kendall et al. 2018), times the fixed
    weights. gradnorm: equal gradient norms at the shared layer (Chen et al. 2018)."""
    gradnorm_alpha: NonNegative = 1.5
    """gradnorm: strength of the pull towards equal training rates."""
