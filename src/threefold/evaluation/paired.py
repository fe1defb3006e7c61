"""What one step gains over another, measured on the same cases: paired differences with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.evaluation.estimate import Difference, Estimate
from threefold.evaluation.intervals import Interval, bootstrap
from threefold.evaluation.predictions import Predictions
from threefold.evaluation.structures import MEAN, structure_values, tells_structures
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]

_PROPAGATION = (
    ("Dice with the reference, mean over structures", "unregistered", "dice_unregistered", "dice"),
    ("Dice with the reference, mean over structures", "affine", "dice_affine", "dice"),
    ("Dice with the mask, union", "affine", "mask_dice_affine", "mask_dice"),
)
MEASURES = tuple(dict.fromkeys(column for _, _, *columns in _PROPAGATION for column in columns))
"""Columns of a propagation's quality.csv that registration is judged by."""


@dataclass(frozen=True, kw_only=True)
class Gain(Difference):
    """What a step gains over another: a difference of means over the cases that have both.

    Attributes:
        measure: what was measured, in words.
        before, after: names of the two.
    """

    measure: str
    before: str
    after: str

    def record(self) -> dict[str, Any]:
        """Return it as a row of a table."""
        return {
            "measure": self.measure,
            "before": self.before,
            "after": self.after,
            "mean_before": self.first.value,
            "mean_after": self.second.value,
            "difference": self.change.value,
            "low": self.change.low,
            "high": self.change.high,
            "n": self.change.n,
            "patients": self.change.patients,
            "note": self.change.why,
            "leaks": self.change.leaks,
        }


def gain(
    measure: str,
    before: tuple[str, Floats],
    after: tuple[str, Floats],
    patients: Sequence[str],
    spec: EvaluationSpec,
    *,
    leaks: bool = False,
) -> Gain:
    """Return what `after` gains over `before`, whose interval takes a patient's cases together.

    Args:
        measure: what the values are.
        before, after: a name and (n,) values of the same cases in one order; NaN where a case has none.
        patients: (n,) patient of each case.
        spec: replicates, confidence and seed.
        leaks: the split shares patients between training and test.
    """
    both = ~np.isnan(before[1]) & ~np.isnan(after[1])
    first, second = before[1][both], after[1][both]
    names, numbers = np.unique(np.asarray(patients, dtype=str)[both], return_inverse=True)
    interval = Interval(None, 0, "no case has both")
    if len(first):
        change = second - first
        interval = bootstrap(
            lambda weights: {"gain": weights @ change / weights.sum(axis=1)},
            numbers.astype(np.int64),
            replicates=spec.replicates,
            confidence=spec.confidence,
            seed=spec.seed,
        )["gain"]
    means = [float(values.mean()) if len(values) else np.nan for values in (first, second)]
    mean = partial(Estimate, metric=measure, n=len(first), patients=len(names), leaks=leaks)
    return Gain(
        measure=measure,
        before=before[0],
        after=after[0],
        first=mean(value=means[0]),
        second=mean(value=means[1]),
        change=mean(value=means[1] - means[0], interval=interval.ends, why=interval.reason),
    )


def registration_gains(
    quality: pd.DataFrame, patients: Mapping[str, str], spec: EvaluationSpec
) -> Iterator[Gain]:
    """Yield what registration gains over the affine alignment and over none, failed registrations included.

    Args:
        quality: the table that a propagation leaves (quality.csv), a row a registered case.
        patients: patient of each case.
        spec: replicates, confidence and seed.
    """
    whose = [patients[case_id] for case_id in quality["case_id"].astype(str)]
    for measure, name, before, after in _PROPAGATION:
        if before in quality and quality[before].notna().any():
            values = (quality[column].to_numpy(np.float64) for column in (before, after))
            yield gain(measure, (name, next(values)), ("registered", next(values)), whose, spec)


def variant_gains(variants: Mapping[str, Predictions], baseline: str, spec: EvaluationSpec) -> Iterator[Gain]:
    """Yield what each variant gains over one of them in mean Dice, on the test cases of both.

    A variant that tells no structures apart is left out.

    Args:
        variants: tables of predictions by name, `baseline` among them.
        baseline: the name of the one to be held against.
        spec: replicates, confidence and seed.
    """
    base = variants[baseline]
    tested = {*base.part("test")["case_id"]}
    for name, predictions in variants.items():
        if name == baseline or not tells_structures(predictions):
            continue
        test = predictions.part("test")
        shared = test[test["case_id"].isin(tested)]
        cases = shared["case_id"].tolist()
        yield gain(
            "Dice, mean over structures",
            (baseline, _mean_dice(base, cases)),
            (name, _mean_dice(predictions, cases)),
            shared["patient_id"].tolist(),
            spec,
            leaks=predictions.leaks or base.leaks,
        )


def _mean_dice(predictions: Predictions, cases: Sequence[str]) -> Floats:
    """Return the mean Dice over structures of cases, in their order, (n,)."""
    assert predictions.structures is not None
    return structure_values(predictions.structures, cases)["structure_dice", MEAN]
