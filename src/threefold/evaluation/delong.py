"""Comparing the AUC of two scores on the same cases without resampling.

DeLong, DeLong and Clarke-Pearson 1988, in the form of Obuchowski 1997 for clustered data: the structural
components are summed over each patient's cases before their variance is taken, so that a patient with many
slices counts as one. With one case a patient it is DeLong's own.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from threefold.evaluation.estimate import Difference, Estimate

Floats = NDArray[np.float64]

# Structural components are shares: differences below this are rounding.
_NOTHING = 1e-9


def compare_auc(
    positive: NDArray[np.bool_],
    first: Floats,
    second: Floats,
    patients: NDArray[np.str_],
    *,
    confidence: float = 0.95,
) -> Difference:
    """Compare two scores of the same cases.

    Args:
        positive: (n,) the truth.
        first, second: (n,) scores, higher is more positive.
        patients: (n,) patient of each case.
        confidence: of the interval.

    Returns:
        The difference, with its standard error and p; NaN throughout with one class or fewer than two
        patients of either class. Where the estimated variance is 0 or less (a few patients, all alike) the
        areas stay, without interval: a width of zero would claim certainty. Of scores that order the cases
        alike p is 1.
    """
    auc = partial(Estimate, metric="auc", n=len(positive), patients=len(np.unique(patients)))
    _, clusters = np.unique(patients, return_inverse=True)
    of_positives, of_negatives = clusters[positive], clusters[~positive]
    if min(len(np.unique(of_positives)), len(np.unique(of_negatives))) < 2:
        none = auc(value=math.nan, why="fewer than two patients of either class")
        return Difference(none, none, none)
    components = [_components(positive, scores) for scores in (first, second)]
    areas = (float(components[0][0].mean()), float(components[1][0].mean()))
    m, n = len(of_positives), len(of_negatives)
    # Differences of the components: the covariance of the two areas is then in their variance.
    up = components[1][0] - components[0][0] - (areas[1] - areas[0])
    down = components[1][1] - components[0][1] - (areas[1] - areas[0])
    count = int(clusters.max()) + 1
    positives = np.bincount(of_positives, weights=up, minlength=count)
    negatives = np.bincount(of_negatives, weights=down, minlength=count)
    with_positive, with_negative = len(np.unique(of_positives)), len(np.unique(of_negatives))
    variance = (
        (positives @ positives) * with_positive / ((with_positive - 1) * m**2)
        + (negatives @ negatives) * with_negative / ((with_negative - 1) * n**2)
        + 2 * (positives @ negatives) * count / ((count - 1) * m * n)
    )
    difference = areas[1] - areas[0]
    both = auc(value=areas[0]), auc(value=areas[1])
    if not np.any(np.abs(np.concatenate([up, down])) > _NOTHING) and abs(difference) < _NOTHING:
        return Difference(*both, auc(value=0.0, why="the same order of the cases"), p=1.0, error=0.0)
    if variance < _NOTHING**2:
        return Difference(*both, auc(value=difference, why="too few patients that differ"))
    error = math.sqrt(float(variance))
    reach = float(norm.ppf((1 + confidence) / 2)) * error
    p = float(2 * norm.sf(abs(difference) / error))
    change = auc(value=difference, interval=(difference - reach, difference + reach))
    return Difference(*both, change, p=p, error=error)


def _components(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Return the share of negatives below each positive, and of positives above each negative; ties half.

    By midranks (Sun and Xu 2014).
    """
    ups, downs = scores[positive], scores[~positive]
    together: Floats = rankdata(np.concatenate([ups, downs]))
    below: Floats = together[: len(ups)] - np.asarray(rankdata(ups))
    above: Floats = together[len(ups) :] - np.asarray(rankdata(downs))
    return below / len(downs), 1 - above / len(ups)
