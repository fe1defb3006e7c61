"""What one thing does to a decision: the same case with it and without it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def flips(with_it: Floats, without: Floats, threshold: float) -> Floats:
    """Return 1 where the decision is another one with the thing than without it, else 0.

    Args:
        with_it, without: (n,) probability of the positive class; NaN where there is no such image.
        threshold: a case is positive where its probability reaches it.

    Returns:
        (n,); NaN where either is.
    """
    changed = (with_it >= threshold) != (without >= threshold)
    return np.where(np.isnan(with_it) | np.isnan(without), np.nan, changed.astype(np.float64))


def changes(with_it: Floats, without: Floats) -> Floats:
    """Return by how much the thing raises the probability of the positive class, (n,); NaN where unknown."""
    return with_it - without
