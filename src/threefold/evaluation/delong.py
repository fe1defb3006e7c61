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
from scipy.stats import norm

from threefold.evaluation.association import structural_components, variance_of_components
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
    components = [structural_components(positive, scores) for scores in (first, second)]
    areas = (float(components[0][0].mean()), float(components[1][0].mean()))
    # Differences of the components: the covariance of the two areas is then in their variance.
    up = components[1][0] - components[0][0] - (areas[1] - areas[0])
    down = components[1][1] - components[0][1] - (areas[1] - areas[0])
    variance = variance_of_components(up, down, positive, clusters)
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
