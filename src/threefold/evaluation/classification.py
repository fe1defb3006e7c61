"""Metrics of the diagnosis, each for R weightings of the same n cases at once.

A weighting is a row of `weights` (R, n): ones for the plain metric, the counts of a bootstrap replicate for
its interval. A metric is NaN in every row where it does not exist (one class only, no case), never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threefold.evaluation.ranking import (
    Ranking,
    auc_of,
    average_precision_of,
    weighted_auc,
    weighted_average_precision,
)
from threefold.evaluation.weighting import ratio, weighted_mean

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

CALIBRATION_BINS = 10
_ONE_AGAINST_REST = ("f1", "auc", "sensitivity", "specificity", "average_precision")
ALL = (
    "f1",
    "auc",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "average_precision",
    "accuracy",
    "brier",
    "calibration_error",
)
"""The metrics of the diagnosis, as the columns of a table of two classes have them."""


@dataclass(frozen=True)
class Confusion:
    """Weighted counts of a decision, each (R,)."""

    true_positive: Floats
    false_positive: Floats
    false_negative: Floats
    true_negative: Floats


def confusion(positive: Bools, decided: Bools, weights: Floats) -> Confusion:
    """Count a decision.

    Args:
        positive: (n,) the truth.
        decided: (n,) the decision.
        weights: (R, n).
    """
    return Confusion(*(weights @ _cells(positive, decided)).T)


def _cells(positive: Bools, decided: Bools) -> Floats:
    """Return each case's cell of the confusion, (n, 4), as `Confusion` orders them."""
    cells = [positive & decided, ~positive & decided, positive & ~decided, ~positive & ~decided]
    return np.stack(cells, axis=1).astype(np.float64)


def sensitivity(counts: Confusion) -> Floats:
    """Return TP / (TP + FN), (R,); NaN without positives."""
    return ratio(counts.true_positive, counts.true_positive + counts.false_negative)


def specificity(counts: Confusion) -> Floats:
    """Return TN / (TN + FP), (R,); NaN without negatives."""
    return ratio(counts.true_negative, counts.true_negative + counts.false_positive)


def balanced_accuracy(counts: Confusion) -> Floats:
    """Return the mean of sensitivity and specificity, (R,); NaN with one class."""
    return (sensitivity(counts) + specificity(counts)) / 2


def f1(counts: Confusion) -> Floats:
    """Return 2 TP / (2 TP + FP + FN), (R,); NaN without positives, where it would say nothing but 0."""
    positives = counts.true_positive + counts.false_negative
    score = ratio(2 * counts.true_positive, positives + counts.true_positive + counts.false_positive)
    return np.where(positives > 0, score, np.nan)


def accuracy(counts: Confusion) -> Floats:
    """Return the share of right decisions, (R,); NaN without cases."""
    right = counts.true_positive + counts.true_negative
    return ratio(right, right + counts.false_positive + counts.false_negative)


def brier(targets: Floats, probabilities: Floats, weights: Floats) -> Floats:
    """Mean squared error of the probabilities.

    Args:
        targets: (n,) 0 or 1 of the positive class, or (n, K) one-hot (then summed over the classes).
        probabilities: as `targets`.
        weights: (R, n).

    Returns:
        (R,), 0..1 for (n,), 0..2 for (n, K); NaN without cases.
    """
    errors = (probabilities - targets) ** 2
    return weighted_mean(errors if errors.ndim == 1 else errors.sum(axis=1), weights)


def calibration_error(positive: Bools, probabilities: Floats, weights: Floats) -> Floats:
    """Expected calibration error: mean over cases of |observed frequency - mean probability| of their bin.

    Ten bins that hold equally many cases (`calibration_bins`), set once on the unweighted cases.

    Args:
        positive: (n,) whether the event happened.
        probabilities: (n,) of the event.
        weights: (R, n).

    Returns:
        (R,); NaN without cases.
    """
    return _calibration_error(_gaps(positive, probabilities), weights)


def _gaps(positive: Bools, probabilities: Floats) -> Floats:
    """Return what was observed minus its probability of each case, in the column of its bin, (n, B)."""
    if not len(probabilities):
        return np.zeros((0, 1))
    bins = calibration_bins(probabilities)
    gaps = np.zeros((len(bins), bins.max() + 1))
    gaps[np.arange(len(bins)), bins] = positive - probabilities
    return gaps


def _calibration_error(gaps: Floats, weights: Floats) -> Floats:
    return ratio(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))


def calibration_bins(probabilities: Floats, bins: int = CALIBRATION_BINS) -> Ints:
    """Return the bin of each case, (n,): bins hold equally many cases, and equal probabilities share one."""
    edges = np.quantile(probabilities, np.arange(1, bins) / bins)
    return np.unique(np.searchsorted(np.unique(edges), probabilities, side="right"), return_inverse=True)[1]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve of one set of cases; NaN with one class.

    Args:
        labels: (n,) 0 or 1 (or bool).
        scores: (n,) finite, higher is more positive.
    """
    positive, values = _binary(labels, scores)
    return float(weighted_auc(positive, values, np.ones((1, len(values))))[0])


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision of one set of cases; NaN without positives.

    Args:
        labels: (n,) 0 or 1 (or bool).
        scores: (n,) finite, higher is more positive.
    """
    positive, values = _binary(labels, scores)
    return float(weighted_average_precision(positive, values, np.ones((1, len(values))))[0])


def choose_threshold(
    labels: ArrayLike, probabilities: ArrayLike, rule: Literal["youden", "f1", "0.5"]
) -> float:
    """Choose the decision threshold on validation cases; a case is positive where p >= threshold.

    The candidates lie midway between neighbouring probabilities; of equally good ones the nearest to 0.5
    is taken. Where the cases are of one class only, no rule says anything and the threshold is 0.5.

    Args:
        labels: (n,) 0 or 1 (or bool).
        probabilities: (n,) of the positive class.
        rule: youden maximises sensitivity + specificity - 1, f1 the F1; 0.5 is fixed.
    """
    positive, values = _binary(labels, probabilities)
    if rule == "0.5" or not positive.any() or positive.all():
        return 0.5
    distinct, index = np.unique(values, return_inverse=True)
    hits = np.bincount(index, weights=positive, minlength=len(distinct))
    alarms = np.bincount(index, weights=~positive, minlength=len(distinct))
    # Cut u decides positive from distinct value u upwards; the cut above them all finds nothing.
    true_positive = np.cumsum(hits[::-1])[::-1]
    false_positive = np.cumsum(alarms[::-1])[::-1]
    p, n = positive.sum(), (~positive).sum()
    if rule == "youden":
        # Multiplied out, so that equally good cuts are equal to the bit.
        gain = true_positive * n - false_positive * p
    else:
        gain = 2 * true_positive / (p + true_positive + false_positive)
    below = np.concatenate([[0.0], distinct[:-1]])
    middle = (below + distinct) / 2
    cuts = np.where(middle > below, middle, distinct)
    best = np.flatnonzero(gain == gain.max())
    return float(cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]])


def classification_metrics(
    labels: Ints,
    probabilities: Floats,
    weights: Floats,
    *,
    positive: int | None,
    threshold: float,
    names: Collection[str] = ALL,
) -> Mapping[tuple[str, int | None], Floats]:
    """Compute every metric of the diagnosis.

    Args:
        labels, probabilities, positive, threshold, names: as for `diagnosis`.
        weights: (R, n).

    Returns:
        As `diagnosis`.
    """
    return diagnosis(labels, probabilities, positive=positive, threshold=threshold, names=names)(weights)


def diagnosis(
    labels: Ints,
    probabilities: Floats,
    *,
    positive: int | None,
    threshold: float,
    names: Collection[str] = ALL,
) -> Callable[[Floats], Mapping[tuple[str, int | None], Floats]]:
    """Return the metrics of the diagnosis as a function of weights; what no weight changes is done once.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K).
        positive: index of the positive class of two; None: every class against the rest, and their mean.
        threshold: two classes: positive where p >= threshold. More: the most probable class is decided.
        names: the metrics that are wanted.

    Returns:
        From weights (R, n) to (R,) values by (metric, class); class None is the metric itself: of the
        positive class with two classes, else the mean over the classes (NaN where it does not exist for one
        of them), except accuracy, Brier (summed over the classes) and the calibration error (of the decided
        class).
    """
    if positive is not None:
        scores = probabilities[:, positive]
        of_positive = _Binary(labels == positive, scores, scores >= threshold, names)
        return lambda weights: {(name, None): value for name, value in of_positive.metrics(weights).items()}
    classes = probabilities.shape[1]
    decision = probabilities.argmax(axis=1)
    needed = {*names} | ({"sensitivity"} if "balanced_accuracy" in names else set())
    one_against_rest = [name for name in _ONE_AGAINST_REST if name in needed]
    each = [
        _Binary(labels == k, probabilities[:, k], decision == k, one_against_rest) for k in range(classes)
    ]
    right = decision == labels
    errors = ((probabilities - np.eye(classes)[labels]) ** 2).sum(axis=1)
    gaps = _gaps(right, probabilities.max(axis=1, initial=0))

    def metrics(weights: Floats) -> Mapping[tuple[str, int | None], Floats]:
        per_class = [one.metrics(weights) for one in each]
        means: dict[tuple[str, int | None], Floats] = {
            (name, None): np.mean([values[name] for values in per_class], axis=0) for name in one_against_rest
        }
        of_all: dict[str, Callable[[], Floats]] = {
            "balanced_accuracy": lambda: means["sensitivity", None],  # the mean recall over the classes
            "accuracy": lambda: weighted_mean(right.astype(np.float64), weights),
            "brier": lambda: weighted_mean(errors, weights),
            "calibration_error": lambda: _calibration_error(gaps, weights),
        }
        return {
            **means,
            **{(name, None): value() for name, value in of_all.items() if name in names},
            **{(name, k): per_class[k][name] for name in one_against_rest for k in range(classes)},
        }

    return metrics


def confusion_shares(labels: Ints, decision: Ints, weights: Floats, *, classes: int) -> Floats:
    """Return which share of each true class was decided to be each class.

    Args:
        labels: (n,) class indices.
        decision: (n,) class indices.
        weights: (R, n).
        classes: K.

    Returns:
        (R, K, K): true class, decided class; NaN where no case is of the true class.
    """
    cells = np.eye(classes * classes)[labels * classes + decision]  # (n, K * K)
    counts = (weights @ cells).reshape(-1, classes, classes)  # (R, K, K)
    totals = np.broadcast_to(counts.sum(axis=2, keepdims=True), counts.shape)
    return ratio(counts, totals)


class _Binary:
    """The metrics of one class against the rest; what no weight changes is done once, and only if wanted."""

    def __init__(self, positive: Bools, scores: Floats, decided: Bools, names: Collection[str]) -> None:
        self.positive, self.scores, self.decided, self.names = positive, scores, decided, names

    def metrics(self, weights: Floats) -> dict[str, Floats]:
        """Return the wanted metrics, (R,) each, for weights (R, n)."""
        areas = {"auc", "average_precision"} & {*self.names}
        counted = {*self.names} & {"f1", "balanced_accuracy", "sensitivity", "specificity", "accuracy"}
        of: dict[str, Callable[[], Floats]] = {}
        if counted:
            counts = Confusion(*(weights @ self._cells).T)
            of |= {
                "f1": lambda: f1(counts),
                "balanced_accuracy": lambda: balanced_accuracy(counts),
                "sensitivity": lambda: sensitivity(counts),
                "specificity": lambda: specificity(counts),
                "accuracy": lambda: accuracy(counts),
            }
        if areas == {"auc"}:
            of["auc"] = lambda: self._ranking.auc(weights)
        elif areas:
            ranked = self._ranking.up_to_each(weights)  # most of the work: once for both areas
            of |= {"auc": lambda: auc_of(*ranked), "average_precision": lambda: average_precision_of(*ranked)}
        of |= {
            "brier": lambda: weighted_mean(self._errors, weights),
            "calibration_error": lambda: _calibration_error(self._gaps, weights),
        }
        return {name: of[name]() for name in ALL if name in self.names}

    @cached_property
    def _cells(self) -> Floats:
        return _cells(self.positive, self.decided)

    @cached_property
    def _ranking(self) -> Ranking:
        return Ranking(self.positive, self.scores)

    @cached_property
    def _errors(self) -> Floats:
        return (self.scores - self.positive) ** 2

    @cached_property
    def _gaps(self) -> Floats:
        return _gaps(self.positive, self.scores)


def _binary(labels: ArrayLike, scores: ArrayLike) -> tuple[Bools, Floats]:
    truth = np.asarray(labels)
    values = np.asarray(scores, np.float64)
    if truth.shape != values.shape or values.ndim != 1:
        raise ValueError(f"labels {truth.shape} and scores {values.shape} must be (n,) alike")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    return truth.astype(np.bool_), values
