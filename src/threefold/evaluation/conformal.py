"""Split conformal prediction: sets and intervals that contain the truth in a stated share of new cases.

Scores say how far the truth was from the prediction in the validation cases. The bound is the smallest one
that a case of a new patient is within with the stated probability, if that patient is exchangeable with
those of the validation part: drawn alike, from the same hospitals and scanners. Cases of one patient
resemble each other, so that patients are counted and not cases: the scores of a patient share one weight
(hierarchical conformal prediction: Lee, Barber and Willett 2023, arXiv 2306.06342; with a case a patient,
the usual split conformal: Vovk et al. 2005, Lei et al. 2018).

Scores:

- a diagnosis: 1 - probability of the true class (Sadinle, Lei and Wasserman 2019). The set is every class
  whose score is within the bound, and always the most probable one.
- a number: |predicted - true|.
- the volume of a mask: |V^(1/d) - W^(1/d)| of the predicted and the true volume, d the number of axes. An
  empty mask has a score, too, and the interval of a large volume is wider than that of a small one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_ROUNDING = 1e-9


def conformal_bound(scores: ArrayLike, patients: Sequence[str], level: float) -> float:
    """Return the smallest bound with the stated coverage; inf where there are too few patients for any.

    With K patients the highest level that has one is K / (K + 1): 0.9 needs nine.

    Args:
        scores: (n,) of the validation cases, finite.
        patients: of each case.
        level: probability that the score of a case of a new patient is within the bound.
    """
    values = np.asarray(scores, np.float64)
    _, of_patient, counts = np.unique(
        np.asarray(patients, dtype=str), return_inverse=True, return_counts=True
    )
    weights = 1 / ((len(counts) + 1) * counts[of_patient])
    order = np.argsort(values, kind="stable")
    reached = np.flatnonzero(np.cumsum(weights[order]) >= level - _ROUNDING)
    return float(values[order[reached[0]]]) if reached.size else math.inf


def class_set(probabilities: Sequence[float], bound: float) -> tuple[int, ...]:
    """Return the classes of a set, by index: those whose score is within the bound, and the most probable."""
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    return tuple(k for k, p in enumerate(probabilities) if k == best or 1 - p <= bound + _ROUNDING)


def volume_score(predicted: ArrayLike, true: ArrayLike, axes: int) -> Floats:
    """Return |V^(1/d) - W^(1/d)|, (n,).

    Args:
        predicted, true: (n,) volumes or areas, not negative.
        axes: d, 2 or 3.
    """
    sides = (np.asarray(one, np.float64) ** (1 / axes) for one in (predicted, true))
    found: Floats = np.abs(np.subtract(*sides))
    return found


def volume_interval(predicted: float, bound: float, axes: int) -> tuple[float, float]:
    """Return the volumes whose score is within the bound: lowest, at least 0, and highest, perhaps inf."""
    side = predicted ** (1 / axes)
    return max(0.0, side - bound) ** axes, (side + bound) ** axes
