"""The tasks that teach the representation, and how they are weighed."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from threefold.experiment.spec import Fraction, NonNegative, PositiveInt, Spec


class RampSpec(Spec):
    """A weight that changes with the epoch: start + step * (epoch // every), at most `limit`."""

    start: NonNegative
    step: float
    every: PositiveInt
    limit: NonNegative | None = None


Weight = NonNegative | RampSpec


class ClassificationSpec(Spec):
    """Softmax cross-entropy of the diagnosis."""

    weight: Weight = 1.0
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs the inverse of its frequency among the training cases."""
    label_smoothing: Fraction = 0.0


class SegmentationSpec(Spec):
    """Softmax segmentation: cross_entropy * CE + dice * soft Dice loss."""

    weight: Weight = 1.0
    target: Literal["mask", "structures"] = "mask"
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


class RegionSpec(Spec):
    """The binary mask, as the sum of the structures' probabilities: cross_entropy * CE + dice * soft Dice
    loss of [p(background), 1 - p(background)]."""

    weight: Weight = 1.0
    cross_entropy: NonNegative = 1.0
    dice: NonNegative = 1.0


class ReconstructionSpec(Spec):
    """The network's input image again."""

    weight: Weight = 1.0
    loss: Literal["mse", "l1"] = "mse"


class TasksSpec(Spec):
    """The tasks that teach the representation; a task that is left out costs nothing."""

    classification: ClassificationSpec | None = None
    segmentation: SegmentationSpec | None = None
    region: RegionSpec | None = None
    reconstruction: ReconstructionSpec | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not self.names:
            raise ValueError(f"at least one task is needed: {', '.join(type(self).model_fields)}")
        if self.region is not None and (self.segmentation is None or self.segmentation.target == "mask"):
            raise ValueError(
                "the region task adds up the structures of a segmentation task with target structures; to "
                "learn masks alone, leave it out and set segmentation.target to mask"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks that are there."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


class BalancingSpec(Spec):
    """How the tasks' losses are weighed against each other."""

    method: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    """fixed: the tasks' weights. uncertainty: learned log-variances (Kendall et al. 2018), times the fixed
    weights. gradnorm: equal gradient norms at the shared layer (Chen et al. 2018)."""
    gradnorm_alpha: NonNegative = 1.5
    """gradnorm: strength of the pull towards equal training rates."""
