"""Settings of the tasks and of their balancing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict

from threefold.experiment.spec import ByKind, Fraction, NonNegative, PositiveInt, Spec, kinds_in
from threefold.validation import did_you_mean


class RampSpec(Spec):
    """A weight that depends on the epoch: start + step * (epoch // every), at most `limit`."""

    start: NonNegative
    step: float
    every: PositiveInt
    limit: NonNegative | None = None


Weight = NonNegative | RampSpec
HeadKind = Literal["pooled", "dense", "restored"]
"""What a task needs of a network: a vector for the image, one for each voxel, or an image like the input."""


class TaskSpec(Spec):
    """Common settings of a task."""

    head: ClassVar[HeadKind | None] = None
    """The head it needs; None: another task's head."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Its metrics on the validation part, for `training.selection.metric`."""
    code: ClassVar[str] = ""
    """module:class of a built-in task."""
    learns: ClassVar[tuple[str, ...]] = ()
    """Kinds of targets it can learn; (): no target, or one of any kind."""
    usual: ClassVar[str | None] = None
    """The default target, from the short form of cohort.yaml; None: the only one of its kinds."""
    score: ClassVar[str | None] = None
    """The metric, at most 1, that represents the task in `training.selection.metric: tasks`."""

    kind: str
    weight: Weight = 1.0


class ClassificationSpec(TaskSpec):
    """Classification of a target of kind class, with softmax cross-entropy."""

    head = "pooled"
    metrics = ("auc", "average_precision", "balanced_accuracy")
    code = "threefold.tasks.classification:ClassificationTask"
    learns = ("class",)
    usual = "label"
    score = "auc"

    kind: Literal["classification"] = "classification"
    target: str | None = None
    """null: `label`, or else the cohort's only target of kind class."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight each class by the inverse of its frequency in the training cases."""
    label_smoothing: Fraction = 0.0


class MultilabelSpec(TaskSpec):
    """Findings of a target of kind multilabel, with binary cross-entropy averaged over the known findings."""

    head = "pooled"
    metrics = ("auc", "average_precision")
    code = "threefold.tasks.multilabel:MultilabelTask"
    learns = ("multilabel",)
    score = "auc"

    kind: Literal["multilabel"] = "multilabel"
    target: str | None = None
    """null: the cohort's only target of kind multilabel."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: for each finding, positive and negative cases have the same total weight."""


class RegressionSpec(TaskSpec):
    """Regression of a target of kind number, standardised by the training cases."""

    head = "pooled"
    metrics = ("mae", "rmse", "r2")
    code = "threefold.tasks.regression:RegressionTask"
    learns = ("number",)
    score = "r2"

    kind: Literal["regression"] = "regression"
    target: str | None = None
    """null: the cohort's only target of kind number."""
    loss: Literal["l1", "l2", "huber"] = "huber"
    """huber: quadratic below one standard deviation of the training cases, linear above."""


class SegmentationSpec(TaskSpec):
    """Segmentation with softmax; loss: cross_entropy * CE + dice * soft Dice loss."""

    head = "dense"
    metrics = ("dice",)
    code = "threefold.tasks.segmentation:SegmentationTask"
    learns = ("mask", "labels")
    usual = "mask"
    score = "dice"

    kind: Literal["segmentation"] = "segmentation"
    target: str = "mask"
    """A target of kind mask or labels; `mask` also means the cohort's only such target."""
    cross_entropy: NonNegative = 1.0
    dice: NonNegative = 1.0
    dice_over: Literal["case", "foreground", "batch"] = "case"
    """What the Dice loss is computed over. case: all labels of each case, so that the smallest false positive
    in an empty case costs about half. foreground: the foreground labels that a case has, 0 without any.
    batch: all cases of a batch on a device pooled, over the foreground labels that they have."""
    cl_dice: NonNegative = 0.0
    """Weight of the soft centreline Dice loss (Shit et al. 2021), averaged over the foreground labels, each
    in the bounding box of truth and prediction: for thin structures that must stay connected. Takes half a
    second per 96^3 case of vessels, more early in training when predictions fill the image."""
    homology: NonNegative = 0.0
    """Weight of the persistent-homology loss (Hu et al. 2019), a sum over the missing and additional
    topological features of each label: 0.01 is a high value. Needs the extra `topology`, and seconds per
    case: 0.1 s for a label's bounding box of 30^3 voxels, 2 s for 60^3. Use it for fine-tuning, with
    --init-from RUN."""


class RegionSpec(TaskSpec):
    """Training of the union of all structures on a binary mask; loss: cross_entropy * CE + dice * soft Dice
    loss of [p(background), 1 - p(background)]."""

    code = "threefold.tasks.region:RegionTask"
    learns = ("mask",)
    usual = "mask"

    kind: Literal["region"] = "region"
    target: str = "mask"
    """A target of kind mask."""
    of: str | None = None
    """The segmentation task whose structures are united; null: the only one with structures."""
    cross_entropy: NonNegative = 1.0
    dice: NonNegative = 1.0


class ReconstructionSpec(TaskSpec):
    """Reconstruction of the network's input image."""

    head = "restored"
    metrics = ("psnr",)
    code = "threefold.tasks.reconstruction:ReconstructionTask"

    kind: Literal["reconstruction"] = "reconstruction"
    loss: Literal["mse", "l1"] = "mse"


class ForeignTaskSpec(TaskSpec):
    """Your own task: `kind` is module:Class, or a name registered by an installed package. All other keys are
    passed to the class."""

    model_config = ConfigDict(extra="allow")

    target: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the class."""
        return dict(self.model_extra or {})


BuiltInTask = (
    ClassificationSpec | MultilabelSpec | RegressionSpec | SegmentationSpec | RegionSpec | ReconstructionSpec
)
"""The program's own tasks, in the order in which an experiment's tasks are taken."""
KINDS: Mapping[str, type[BuiltInTask]] = kinds_in(BuiltInTask)
_BY_KIND = ByKind(own="your own task")
AnyTaskSpec = Annotated[BuiltInTask | ForeignTaskSpec, _BY_KIND]
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_TAKEN = ("loss", "all", *dir(dict), "type", "training", "forward", "register_buffer")


def named_kinds(tasks: Any) -> Any:
    """Return the tasks with omitted kinds filled in from their names, in the order of their kinds.

    Tasks that are null are omitted.

    Raises:
        ValueError: a name is not a kind, or not a valid column name.
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
    order = [*KINDS, _BY_KIND.own]
    return dict(sorted(found.items(), key=lambda one: order.index(_BY_KIND.tag(one[1], KINDS))))


class BalancingSpec(Spec):
    """Weighting of the tasks' losses."""

    method: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    """fixed: the tasks' weights. uncertainty: learned log-variances (Kendall et al. 2018), times the fixed
    weights. gradnorm: equal gradient norms at the shared layer (Chen et al. 2018)."""
    gradnorm_alpha: NonNegative = 1.5
    """gradnorm: strength of the force towards equal training rates."""
