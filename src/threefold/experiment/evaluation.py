"""How predictions become numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from threefold.experiment.spec import PositiveInt, Seed, Spec


class EvaluationSpec(Spec):
    """How predictions become numbers."""

    replicates: PositiveInt = 1000
    """Resamples of the patients for the bootstrap intervals."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    threshold: Literal["youden", "f1", "0.5"] = "youden"
    """What the decision threshold maximises on the validation part: sensitivity + specificity, or F1;
    0.5 fixes it."""
    patient_rule: Literal["mean", "max"] = "mean"
    """How the probabilities of a patient's cases become the patient's."""
    seed: Seed = 0
    """Of the resamples."""
