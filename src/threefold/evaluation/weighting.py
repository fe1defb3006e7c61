"""Shares and means of the same n cases by R weightings at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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
