"""Flips and changes."""

from __future__ import annotations

import numpy as np

from threefold.evaluation.evidence import changes, flips


def test_flips_are_changes_of_the_decision_at_the_threshold() -> None:
    with_it = np.array([0.9, 0.3, 0.31, 0.1, np.nan, 0.5])
    without = np.array([0.2, 0.29, 0.8, 0.4, 0.5, np.nan])
    np.testing.assert_array_equal(flips(with_it, without, 0.3), [1, 1, 0, 1, np.nan, np.nan])
    np.testing.assert_allclose(changes(with_it, without), [0.7, 0.01, -0.49, -0.3, np.nan, np.nan])
