"""Formulas of the diagnosis, each for R weightings of the same n cases at once.

A weighting is a row of `weights` (R, n): ones for the plain metric, the counts of a bootstrap replicate for
its interval. A metric is NaN in every row where it does not exist (one class only, no case), never 0.

Areas under curves rank the cases by their scores, once for all weightings. Ties count half in the AUC (the
Mann-Whitney statistic); average precision is the sum of precision times the step in recall over the distinct
scores, without interpolation. Both agree with scikit-learn's sample_weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MOST_COMPARED = 250_000
"""Pairs of a positive and a negative; of more, sums by score take less time, and far less memory."""


class Ranking:
    """Cases in the order of their scores, so that many weightings are ranked for one sort.

    Args:
        positive: (n,) the truth.
        scores: (n,) finite, with U distinct values.
    """

    def __init__(self, positive: Bools, scores: Floats) -> None:
        self._order = np.argsort(scores, kind="stable")
        ranked = scores[self._order]
        last = np.concatenate([ranked[1:] != ranked[:-1], [True]]) if len(scores) else np.zeros(0, np.bool_)
        self._ends = None if last.all() else np.flatnonzero(last)
        self._positive = positive[self._order]
        self._scores = ranked
        self._sorted = np.array_equal(self._order, np.arange(len(scores)))

    @property
    def is_quickly_compared(self) -> bool:
        """Whether comparing each positive with each negative takes less time than sums by score."""
        positives = int(np.count_nonzero(self._positive))
        return 0 < positives * (len(self._positive) - positives) <= _MOST_COMPARED

    def auc(self, weights: Floats) -> Floats:
        """Return the AUC, (R,), NaN with one class.

        Args:
            weights: (R, n).
        """
        if not self.is_quickly_compared:
            return auc_of(*self.up_to_each(weights))
        places = self._order[self._positive], self._order[~self._positive]
        positives, negatives = (np.take(weights, where, axis=1) for where in places)
        wins = np.einsum("rp,rp->r", negatives @ self._wins, positives)
        return ratio(wins, positives.sum(axis=1) * negatives.sum(axis=1))

    @cached_property
    def _wins(self) -> Floats:
        """1 where a positive's score is above a negative's, 0.5 where they are equal: (negatives, positives).

        Of a few hundred cases one product with it takes a fifth of the time of sums by score.
        """
        above, below = self._scores[self._positive], self._scores[~self._positive][:, None]
        wins: Floats = (above > below) + 0.5 * (above == below)
        return wins

    def up_to_each(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the weights of positives and of negatives up to each distinct score, ascending: two (R, U).

        Args:
            weights: (R, n).
        """
        gathered = weights.copy() if self._sorted else np.take(weights, self._order, axis=1)
        positives = gathered * self._positive
        gathered -= positives
        both = (np.cumsum(kind, axis=1, out=kind) for kind in (positives, gathered))
        found, negatives = (one if self._ends is None else np.take(one, self._ends, axis=1) for one in both)
        return found, negatives


def weighted_auc(positive: Bools, scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve: P(score of a positive > score of a negative) + P(equal) / 2.

    Args:
        positive: (n,) the truth.
        scores: (n,) finite, higher is more positive.
        weights: (R, n).

    Returns:
        (R,); NaN with one class.
    """
    return Ranking(positive, scores).auc(weights)


def auc_of(positives: Floats, negatives: Floats) -> Floats:
    """Return the AUC, (R,), from the weights of positives and negatives up to each score (R, U)."""
    if not positives.shape[1]:
        return np.full(len(positives), np.nan)
    at_each = _at_each(positives)
    twice = np.einsum("ru,ru->r", at_each, negatives)  # those below a score, and those up to it
    twice += np.einsum("ru,ru->r", at_each[:, 1:], negatives[:, :-1])
    return ratio(twice / 2, positives[:, -1] * negatives[:, -1])


def _at_each(up_to_each: Floats) -> Floats:
    """Return the weights of each score, (R, U), from those up to it."""
    at_each = np.empty_like(up_to_each)
    at_each[:, :1] = up_to_each[:, :1]
    np.subtract(up_to_each[:, 1:], up_to_each[:, :-1], out=at_each[:, 1:])
    return at_each


def weighted_average_precision(positive: Bools, scores: Floats, weights: Floats) -> Floats:
    """Average precision: sum over distinct scores of precision times the step in recall.

    Args:
        positive, scores, weights: as for `weighted_auc`.

    Returns:
        (R,); NaN without positives.
    """
    return average_precision_of(*Ranking(positive, scores).up_to_each(weights))


def average_precision_of(positives: Floats, negatives: Floats) -> Floats:
    """Return the average precision, (R,), from the weights up to each score as `auc_of` takes them."""
    if not positives.shape[1]:
        return np.full(len(positives), np.nan)
    found, false = from_the_highest(positives), from_the_highest(negatives)
    alarms = np.add(found, false, out=false)
    precision = np.divide(found, alarms, out=np.zeros_like(found), where=alarms > 0)
    total = np.einsum("ru,ru->r", precision, _at_each(positives)[:, ::-1])
    return ratio(total, positives[:, -1])


def from_the_highest(up_to_each: Floats) -> Floats:
    """Return the weights of each score and those above it, (R, U), highest first."""
    total, highest_first = up_to_each[:, -1:], np.empty_like(up_to_each)
    np.subtract(total, up_to_each[:, -2::-1], out=highest_first[:, :-1])
    highest_first[:, -1:] = total
    return highest_first


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """Return the weighted mean of (n,) values, (R,); NaN without cases or with an infinite one."""
    finite = np.isfinite(values)
    if finite.all():
        return ratio(weights @ values, weights.sum(axis=1))
    means = ratio(weights[:, finite] @ values[finite], weights.sum(axis=1))
    return np.where(weights[:, ~finite].any(axis=1), np.nan, means)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Return numerator / denominator, NaN where the latter is not above 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

CALIBRATION_BINS = 10


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


class OneClass:
    """One class against the rest, of n cases; what no weight changes is done once, and only if wanted.

    Args:
        positive: (n,) the truth.
        scores: (n,) probability of the class.
        decided: (n,) the decision.
    """

    def __init__(self, positive: Bools, scores: Floats, decided: Bools) -> None:
        self.positive, self.scores, self.decided = positive, scores, decided

    @cached_property
    def cells(self) -> Floats:
        """Each case's cell of the confusion, (n, 4)."""
        return _cells(self.positive, self.decided)

    @cached_property
    def ranking(self) -> Ranking:
        """The cases in the order of their scores."""
        return Ranking(self.positive, self.scores)

    @cached_property
    def errors(self) -> Floats:
        """The squared error of each probability, (n,)."""
        return (self.scores - self.positive) ** 2

    @cached_property
    def gaps(self) -> Floats:
        """What was observed minus its probability of each case, in the column of its bin, (n, B)."""
        return _gaps(self.positive, self.scores)


class WeightedClass:
    """One class against the rest under R weightings; what several metrics need is computed once.

    Args:
        cases: of the class.
        weights: (R, n).
    """

    def __init__(self, cases: OneClass, weights: Floats) -> None:
        self.cases, self.weights = cases, weights

    @cached_property
    def counts(self) -> Confusion:
        """The confusion of the decision."""
        return Confusion(*(self.weights @ self.cases.cells).T)

    @cached_property
    def ranked(self) -> tuple[Floats, Floats]:
        """The weights of positives and of negatives up to each distinct score, two (R, U)."""
        return self.cases.ranking.up_to_each(self.weights)

    def auc(self) -> Floats:
        """Return the area under the ROC curve, (R,)."""
        few = self.cases.ranking.is_quickly_compared
        return self.cases.ranking.auc(self.weights) if few else auc_of(*self.ranked)

    def average_precision(self) -> Floats:
        """Return the average precision, (R,)."""
        return average_precision_of(*self.ranked)

    def brier(self) -> Floats:
        """Return the mean squared error of the probability, (R,)."""
        return weighted_mean(self.cases.errors, self.weights)

    def calibration_error(self) -> Floats:
        """Return the calibration error of the probability, (R,)."""
        return _calibration_error(self.cases.gaps, self.weights)


class SeveralClasses:
    """More than two classes, of n cases, of which the most probable is decided.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K).
    """

    def __init__(self, labels: Ints, probabilities: Floats) -> None:
        decision = probabilities.argmax(axis=1)
        classes = probabilities.shape[1]
        self.each = tuple(OneClass(labels == k, probabilities[:, k], decision == k) for k in range(classes))
        self.right = decision == labels
        self.errors = ((probabilities - np.eye(classes)[labels]) ** 2).sum(axis=1)
        self.gaps = _gaps(self.right, probabilities.max(axis=1, initial=0))


class WeightedClasses:
    """More than two classes under R weightings.

    Args:
        cases: of the classes.
        weights: (R, n).
    """

    def __init__(self, cases: SeveralClasses, weights: Floats) -> None:
        self.cases, self.weights = cases, weights
        self.each = tuple(WeightedClass(one, weights) for one in cases.each)

    def mean(self, of_one: Callable[[WeightedClass], Floats]) -> Floats:
        """Return the mean over the classes of a metric of one against the rest, (R,)."""
        mean: Floats = np.mean([of_one(one) for one in self.each], axis=0)
        return mean

    def accuracy(self) -> Floats:
        """Return the share of right decisions, (R,)."""
        return weighted_mean(self.cases.right.astype(np.float64), self.weights)

    def brier(self) -> Floats:
        """Return the mean squared error of the probabilities, summed over the classes, (R,)."""
        return weighted_mean(self.cases.errors, self.weights)

    def calibration_error(self) -> Floats:
        """Return the calibration error of the decided class's probability, (R,)."""
        return _calibration_error(self.cases.gaps, self.weights)


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
