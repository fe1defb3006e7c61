"""Areas under curves over every threshold: cases ranked by their scores, for R weightings at once.

Ties count half in the AUC (the Mann-Whitney statistic); average precision is the sum of precision times the
step in recall over the distinct scores, without interpolation. Both agree with scikit-learn's sample_weight.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.weighting import ratio

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

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
    at_each = np.diff(positives, axis=1, prepend=0)
    twice = negatives.copy()  # those below a score, and those up to it
    twice[:, 1:] += negatives[:, :-1]
    wins = np.einsum("ru,ru->r", at_each, twice) / 2
    return ratio(wins, positives[:, -1] * negatives[:, -1])


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
    total = np.einsum("ru,ru->r", precision, np.diff(positives, axis=1, prepend=0)[:, ::-1])
    return ratio(total, positives[:, -1])


def from_the_highest(up_to_each: Floats) -> Floats:
    """Return the weights of each score and those above it, (R, U), highest first."""
    below = np.zeros_like(up_to_each)
    below[:, 1:] = up_to_each[:, :-1]
    return np.ascontiguousarray((up_to_each[:, -1:] - below)[:, ::-1])
