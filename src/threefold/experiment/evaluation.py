"""Settings of the evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from threefold.experiment.spec import PositiveInt, Seed, Spec


class EvaluationSpec(Spec):
    """Settings of the evaluation."""

    replicates: PositiveInt = 1000
    """Bootstrap replicates of the patients for the intervals."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    threshold: Literal["youden", "f1", "0.5"] = "youden"
    """Choice of the decision threshold on the validation part: youden maximises sensitivity + specificity, f1
    the F1; 0.5 fixes it."""
    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Nominal coverage of prediction sets and intervals: the share that contains the truth, for new patients
    like those of the validation part."""
    patient_rule: Literal["mean", "max"] = "mean"
    """Aggregation of the probabilities of a patient's cases."""
    seed: Seed = 0
    """Random seed of the bootstrap."""
    metrics: tuple[str, ...] = ()
    """Your own metrics, computed beside the built-in ones: module:NAME of a Metric, or a name from an
    installed package."""
