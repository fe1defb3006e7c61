"""Curves for figures: ROC and reliability, each with a patient-clustered band."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.classification import Ranking, calibration_bins, from_the_highest
from threefold.evaluation.intervals import MAX_MISSING, exact_interval, patient_weights
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class RocCurve:
    """An ROC curve.

    Attributes:
        false_positive_rate, true_positive_rate: (U + 1,) from (0, 0) to (1, 1), a step a distinct score.
        grid: (G,) false positive rates of the band.
        low, high: (G,) interval of the true positive rate; NaN where it is not estimable.
    """

    false_positive_rate: Floats
    true_positive_rate: Floats
    grid: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class ReliabilityCurve:
    """Observed frequency against predicted probability, by bins of equally many cases.

    Attributes:
        probability: (B,) mean predicted probability.
        observed: (B,) share of positives.
        low, high: (B,) interval of the share, exact where it is 0 or 1; NaN where it is not estimable.
        cases: (B,) cases in the bin.
    """

    probability: Floats
    observed: Floats
    low: Floats
    high: Floats
    cases: Ints


def roc_curve(positive: Bools, scores: Floats, patients: Ints, spec: EvaluationSpec) -> RocCurve | None:
    """Return the ROC curve of n cases; None with one class.

    Args:
        positive, scores, patients: (n,) truth, score, and patient numbered without gaps.
        spec: replicates, confidence and seed of the band.
    """
    if not len(positive) or positive.all() or not positive.any():
        return None
    ranking = Ranking(positive, scores)
    rates = _rates(ranking, np.ones((1, len(scores))))
    replicates = [
        np.interp(_GRID, fpr, tpr) if np.isfinite(fpr).all() else np.full_like(_GRID, np.nan)
        for weights in patient_weights(patients, spec.replicates, spec.seed)
        for fpr, tpr in zip(*_rates(ranking, weights), strict=True)
    ]
    low, high = _band(np.stack(replicates), patients, spec.confidence)
    return RocCurve(rates[0][0], rates[1][0], _GRID, low, high)


def reliability_curve(
    positive: Bools, probabilities: Floats, patients: Ints, spec: EvaluationSpec
) -> ReliabilityCurve | None:
    """Return the reliability curve of n cases, on the bins of the calibration error; None without cases.

    Args:
        positive, probabilities, patients: (n,) truth, probability of positive, patient numbered without gaps.
        spec: replicates, confidence and seed of the intervals.
    """
    if not len(positive):
        return None
    bins = calibration_bins(probabilities)
    member = np.eye(bins.max() + 1)[bins]  # (n, B)
    cases, hit = member.sum(axis=0), member * positive[:, None]
    shares = []
    for weights in patient_weights(patients, spec.replicates, spec.seed):
        drawn = weights @ member
        hits = weights @ hit
        shares.append(np.divide(hits, drawn, out=np.full_like(hits, np.nan), where=drawn > 0))
    low, high = _band(np.concatenate(shares), patients, spec.confidence)
    observed = positive @ member / cases
    for index in np.flatnonzero((observed == 0) | (observed == 1)):
        # Resamples of a bin without hits, or without misses, can't see how uncertain it is.
        exact = exact_interval(observed[index], len(np.unique(patients[bins == index])), spec.confidence)
        assert exact.ends is not None
        low[index], high[index] = exact.ends
    return ReliabilityCurve(
        probability=probabilities @ member / cases,
        observed=observed,
        low=low,
        high=high,
        cases=cases.astype(np.int64),
    )


def _rates(ranking: Ranking, weights: Floats) -> tuple[Floats, Floats]:
    """Return false and true positive rates from the highest score down, two (R, U + 1)."""
    positives, negatives = ranking.up_to_each(weights)
    rates = []
    for counts in (negatives, positives):
        found, total = from_the_highest(counts), counts[:, -1:]
        share = np.divide(found, total, out=np.full_like(found, np.nan), where=total > 0)
        rates.append(np.concatenate([np.zeros((len(weights), 1)), share], axis=1))
    return rates[0], rates[1]


def _band(replicates: Floats, patients: Ints, confidence: float) -> tuple[Floats, Floats]:
    """Return the central interval of each column of (R, G).

    NaN with one patient, and where too few replicates have a value.
    """
    tail = (1 - confidence) / 2
    low, high = np.full((2, replicates.shape[1]), np.nan)
    enough = np.isnan(replicates).mean(axis=0) <= MAX_MISSING
    if enough.any() and patients.any():
        low[enough], high[enough] = np.nanquantile(replicates[:, enough], [tail, 1 - tail], axis=0)
    return low, high
