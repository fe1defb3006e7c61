"""How strongly a measurement or a category goes with a class: effect, interval and test, by patient.

Cases of one patient are alike, so each test sums its scores over a patient's cases before their variance is
taken (the score test of generalised estimating equations with independence as working correlation: Liang and
Zeger 1986, Biometrika 73).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_NOTHING = 1e-9
"""Structural components are shares: differences below this are rounding."""
REPLICATES = 400
"""Of the bootstrap over patients, for the interval of Cramér's V."""


def cramers_v(tables: Floats) -> Floats:
    """Return the bias-corrected Cramér's V (Bergsma 2013) of contingency tables, 0 to 1.

    The correction matters: where each patient has a category of its own, the plain V is always 1.

    Args:
        tables: (..., K, C) counts, which may be fractions.

    Returns:
        (...); 0 for a table of one row or column.
    """
    rows, columns = tables.sum(axis=-1), tables.sum(axis=-2)
    n = rows.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = rows[..., :, None] * columns[..., None, :] / n[..., None, None]
        phi2 = np.where(expected > 0, (tables - expected) ** 2 / expected, 0).sum(axis=(-2, -1)) / n
        r, k = (rows > 0).sum(axis=-1), (columns > 0).sum(axis=-1)
        phi2 = np.maximum(0, phi2 - (r - 1) * (k - 1) / (n - 1))
        smaller = np.minimum(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)) - 1
        v = np.where((n > 1) & (smaller > 1e-9), np.sqrt(phi2 / smaller), 0.0)
    return np.minimum(1.0, v)


def patient_tables(categories: Ints, positive: Bools, patients: Ints) -> Floats:
    """Return each patient's part of the table of category and class: (P, K, 2), summing to 1 each."""
    count, levels = int(patients.max()) + 1, int(categories.max()) + 1
    flat = (patients * levels + categories) * 2 + positive
    tables = np.bincount(flat, minlength=count * levels * 2).reshape(count, levels, 2).astype(float)
    return np.asarray(tables / tables.sum(axis=(1, 2), keepdims=True), dtype=np.float64)


def v_interval(tables: Floats, *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the percentile interval of Cramér's V when patients are resampled.

    Args:
        tables: (P, K, C) by `patient_tables`.
    """
    generator = np.random.default_rng(seed)
    flat = tables.reshape(len(tables), -1)
    drawn = generator.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), size=REPLICATES)
    values = cramers_v((drawn @ flat).reshape(REPLICATES, *tables.shape[1:]))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def ranks(values: Floats) -> Floats:
    """Return midranks, 1 to n."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[place], dtype=np.float64)


def p_of_order(values: Floats, positive: Bools, patients: Ints) -> float:
    """Return the two-sided p of the order of cases: whether positives have higher or lower values.

    Args:
        values: (n,).
        positive: (n,) the class.
        patients: (n,) numbers from 0.
    """
    rank = ranks(values)
    scores = np.bincount(patients, weights=(rank - rank.mean()) * (positive - positive.mean()))
    error = math.sqrt(float(scores @ scores))
    return math.erfc(abs(float(scores.sum())) / error / math.sqrt(2)) if error > 0 else 1.0


def auc_of_patients(
    values: Floats, positive: Bools, patients: Ints, *, confidence: float = 0.95
) -> tuple[float, tuple[float, float] | None]:
    """Return the AUC of values and its interval, by patient.

    Args:
        values: (n,) higher is more positive.
        positive: (n,) the class.
        patients: (n,) numbers from 0.
        confidence: of the interval, within 0 and 1.

    Returns:
        NaN with fewer than two patients of either class; no interval where the variance is 0.
    """
    above, below = structural_components(positive, values)
    if min(len(np.unique(patients[positive])), len(np.unique(patients[~positive]))) < 2:
        return math.nan, None
    area = float(above.mean())
    variance = variance_of_components(above - area, below - area, positive, patients)
    if variance < _NOTHING**2:
        return area, None
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance)
    return area, (max(0.0, area - reach), min(1.0, area + reach))


def structural_components(positive: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """Return the share of negatives below each positive, and of positives above each negative; ties half.

    By midranks (Sun and Xu 2014). The mean of either is the AUC.
    """
    ups, downs = scores[positive], scores[~positive]
    together = ranks(np.concatenate([ups, downs]))
    below = together[: len(ups)] - ranks(ups)
    above = together[len(ups) :] - ranks(downs)
    return below / len(downs), 1 - above / len(ups)


def variance_of_components(up: Floats, down: Floats, positive: Bools, patients: Ints) -> float:
    """Return the variance of a mean of structural components, summed by patient (Obuchowski 1997).

    Args:
        up, down: of the positives and of the negatives, their mean taken away.
        positive: (n,) the class.
        patients: (n,) numbers from 0 without gaps.
    """
    of_positives, of_negatives = patients[positive], patients[~positive]
    m, n, count = len(up), len(down), int(patients.max()) + 1
    positives = np.bincount(of_positives, weights=up, minlength=count)
    negatives = np.bincount(of_negatives, weights=down, minlength=count)
    with_positive, with_negative = len(np.unique(of_positives)), len(np.unique(of_negatives))
    return float(
        (positives @ positives) * with_positive / ((with_positive - 1) * m**2)
        + (negatives @ negatives) * with_negative / ((with_negative - 1) * n**2)
        + 2 * (positives @ negatives) * count / ((count - 1) * m * n)
    )


def p_of_categories(categories: Ints, positive: Bools, patients: Ints) -> float:
    """Return the p of the categories: whether the share of positives differs between them."""
    count, levels = int(patients.max()) + 1, int(categories.max()) + 1
    scores = np.bincount(
        patients * levels + categories, weights=positive - positive.mean(), minlength=count * levels
    ).reshape(count, levels)
    total, covariance = scores.sum(axis=0), scores.T @ scores
    freedom = int(np.linalg.matrix_rank(covariance, hermitian=True))
    if freedom == 0:
        return 1.0
    statistic = float(total @ np.linalg.pinv(covariance, hermitian=True) @ total)
    return chi2_tail(statistic, freedom)


def chi2_tail(statistic: float, freedom: int) -> float:
    """Return P(chi-squared > statistic) (Abramowitz and Stegun 26.4.4, 26.4.5)."""
    half = statistic / 2
    if freedom % 2:
        tail, term, start = math.erfc(math.sqrt(half)), math.exp(-half) * math.sqrt(half / math.pi) * 2, 1.5
    else:
        tail, term, start = math.exp(-half), math.exp(-half) * half, 2.0
    for step in range((freedom - 1) // 2):
        tail += term
        term *= half / (start + step)
    return min(1.0, tail)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979); NaN stays and does not count.

    What is still to be tested counts as 1: else a correction would grow when it is.
    """
    p = np.asarray(values, np.float64)
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return [float(value) for value in adjusted]
