"""Comparing the AUC of two scores on the same cases without resampling.

DeLong, DeLong and Clarke-Pearson 1988, in the form of Obuchowski 1997 for clustered data: the structural
components are summed over each patient's cases before their variance is taken, so that a patient with many
slices counts as one. With one case a patient it is DeLong's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Floats = NDArray[np.float64]

# Structural components are shares: differences below this are rounding.
_NOTHING = 1e-9


@dataclass(frozen=True)
class AucDifference:
    """The difference of two AUCs.

    Attributes:
        first, second: the AUCs.
        difference: second - first.
        error: its standard error; NaN where the cases do not tell it.
        low, high: ends of the interval; NaN without an error above 0.
        p: two-sided; 1 where the two scores order the cases alike, NaN without an error otherwise.
    """

    first: float
    second: float
    difference: float
    error: float
    low: float
    high: float
    p: float


def compare_auc(
    positive: NDArray[np.bool_],
    first: Floats,
    second: Floats,
    patients: NDArray[np.str_],
    *,
    confidence: float = 0.95,
) -> AucDifference:
    """Compare two scores of the same cases.

    Args:
        positive: (n,) the truth.
        first, second: (n,) scores, higher is more positive.
        patients: (n,) patient of each case.
        confidence: of the interval.

    Returns:
        The difference; NaN throughout with one class or fewer than two patients of either class. Where the
        estimated variance is 0 or less (a few patients, all alike) the areas stay, without interval: a width
        of zero would claim certainty.
    """
    nan = math.nan
    _, clusters = np.unique(patients, return_inverse=True)
    of_positives, of_negatives = clusters[positive], clusters[~positive]
    if min(len(np.unique(of_positives)), len(np.unique(of_negatives))) < 2:
        return AucDifference(*(nan,) * 7)
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
    if not np.any(np.abs(np.concatenate([up, down])) > _NOTHING) and abs(difference) < _NOTHING:
        return AucDifference(*areas, 0.0, 0.0, nan, nan, 1.0)
    if variance < _NOTHING**2:
        return AucDifference(*areas, difference, nan, nan, nan, nan)
    error = math.sqrt(float(variance))
    reach = float(norm.ppf((1 + confidence) / 2)) * error
    p = float(2 * norm.sf(abs(difference) / error))
    return AucDifference(*areas, difference, error, difference - reach, difference + reach, p)


def _components(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Return the share of negatives below each positive, and of positives above each negative; ties half.

    By midranks (Sun and Xu 2014).
    """
    ups, downs = scores[positive], scores[~positive]
    together: Floats = rankdata(np.concatenate([ups, downs]))
    below: Floats = together[: len(ups)] - np.asarray(rankdata(ups))
    above: Floats = together[len(ups) :] - np.asarray(rankdata(downs))
    return below / len(downs), 1 - above / len(ups)
