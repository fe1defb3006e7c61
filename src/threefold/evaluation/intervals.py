"""Confidence intervals: a bootstrap that resamples patients, not cases.

Cases of one patient are alike, so n cases say less than n patients do. Each replicate draws as many patients
as there are, with replacement, and takes all cases of each; in weights: a case counts as often as its patient
was drawn. The interval is the percentile interval: it stays inside a metric's range, needs no formula a
metric, and remains defined when a metric does not exist in some replicates (a BCa interval would need the
metric to exist without each single patient, which fails just where patients are few).

Where every replicate gives the same value the resamples can't see the uncertainty, and a width of zero would
claim certainty. A share of 0 or 1 then gets the exact binomial interval over its patients (`exact_interval`);
any other metric is said to have no interval. Nor has one what fewer than `FEWEST_PATIENTS` say: resampling
two or three patients gives their range at most, which holds the truth far less often than promised.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = TypeVar("Key", bound=Hashable)

# Above this share of replicates without the metric, the rest say too little about it.
MAX_MISSING = 0.1

FEWEST_PATIENTS = 5

SAME_VALUE = "every resample gives the same value"

MOST_DRAWN = 10_000_000
"""Cases drawn for an interval, over all replicates; groups of up to 10,000 cases have 1,000 replicates."""
FEWEST_REPLICATES = 100

_ELEMENTS_AT_ONCE = 500_000


@dataclass(frozen=True)
class Interval:
    """What resampling says of a number's uncertainty.

    Attributes:
        ends: low and high, by percentiles or an exact formula; None where it is not estimable.
        missing: number of replicates in which the metric did not exist.
        reason: why it is not estimable; empty where it is.
    """

    ends: tuple[float, float] | None
    missing: int = 0
    reason: str = ""


FEW = Interval(None, 0, f"fewer than {FEWEST_PATIENTS} patients")
"""Of what so few patients say."""


def replicates_for(cases: int, asked: int) -> int:
    """Return how many replicates n cases get: those that are asked for, or fewer where the cases are many.

    The ends of a normal estimate's interval by 200 replicates lie within about a tenth of its half width of
    those by many more, by 100 within a seventh (their standard errors); and of so many cases it is narrow.
    """
    return min(asked, max(FEWEST_REPLICATES, MOST_DRAWN // max(1, cases)))


def patient_weights(patients: Ints, replicates: int, seed: int) -> Iterator[Floats]:
    """Yield how often each case counts in each replicate, in blocks of replicates (r, n).

    Args:
        patients: (n,) patient of each case, numbered 0..P-1 without gaps.
        replicates: asked for; R, the sum of r over the blocks, is `replicates_for` so many cases.
        seed: the same seed gives the same weights.
    """
    if not len(patients):
        return
    count = int(patients.max()) + 1
    block = max(1, _ELEMENTS_AT_ONCE // len(patients))
    replicates = replicates_for(len(patients), replicates)
    each_once = len(patients) == count and np.array_equal(patients, np.arange(count))
    drawn = _resamples(count, replicates, seed)
    for start in range(0, replicates, block):
        times = drawn[start : start + block]
        yield (times if each_once else np.take(times, patients, axis=1)).astype(np.float64)


@lru_cache(maxsize=32)
def _resamples(patients: int, replicates: int, seed: int) -> NDArray[np.uint8]:
    """Return how often each of P patients is drawn in each of R replicates, (R, P).

    A group's metrics, per case and per patient, its curves and its shift rest on the same draws: those of a
    few groups are kept, a byte a patient (none is drawn 256 times in the lifetime of the universe), which
    `MOST_DRAWN` bounds to 10 MB a group of up to 100,000 cases, and to 20 MB for 200,000.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _ELEMENTS_AT_ONCE // patients)
    blocks = [
        drawn_patients(generator, patients, min(rows, replicates - start)).astype(np.uint8)
        for start in range(0, replicates, rows)
    ]
    return np.concatenate(blocks)


def drawn_patients(generator: np.random.Generator, patients: int, rows: int) -> Ints:
    """Return how often each of P patients is drawn, with replacement, in each of r replicates: (r, P)."""
    drawn = generator.integers(0, patients, (rows, patients))
    drawn += patients * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)


def bootstrap(
    metrics: Callable[[Floats], Mapping[Key, Floats]],
    patients: Ints,
    *,
    replicates: int,
    confidence: float,
    seed: int,
) -> dict[Key, Interval]:
    """Return the patient-clustered interval of each metric.

    Args:
        metrics: from weights (R, n) to values (R,) by key; NaN where a metric does not exist.
        patients: (n,) patient of each case, numbered 0..P-1 without gaps.
        replicates: number of resamples; of many cases fewer (`replicates_for`).
        confidence: for example 0.95.
        seed: of the resampling.
    """
    if not len(patients):
        return {}
    if patients.max() + 1 < FEWEST_PATIENTS:
        return dict.fromkeys(metrics(np.ones((1, len(patients)))), FEW)
    blocks = [metrics(weights) for weights in patient_weights(patients, replicates, seed)]
    return {
        key: percentile_interval(np.concatenate([block[key] for block in blocks]), confidence)
        for key in blocks[0]
    }


def percentile_interval(values: Floats, confidence: float) -> Interval:
    """Return the central interval of bootstrap values (R,), NaN where the metric did not exist."""
    there = values[~np.isnan(values)]
    missing = len(values) - len(there)
    if missing > MAX_MISSING * len(values):
        share = missing / len(values)
        return Interval(None, missing, f"absent in {share:.0%} of resamples")
    if np.ptp(there) < 1e-12:
        return Interval(None, missing, SAME_VALUE)
    tail = (1 - confidence) / 2
    low, high = np.quantile(there, [tail, 1 - tail])
    return Interval((float(low), float(high)), missing)


def exact_interval(share: float, patients: int, confidence: float) -> Interval:
    """Return the Clopper-Pearson interval of a share of 0 or 1 over k patients.

    If all k patients show 0, the mean share is at most the chance that a patient shows more than 0, whose
    exact upper limit is 1 - (tail)^(1/k), whatever the number of cases a patient; likewise for 1.

    Raises:
        ValueError: for any other share, or without patients.
    """
    if share not in (0.0, 1.0) or patients < 1:
        raise ValueError(f"expected a share of 0 or 1 over patients, found {share:g} over {patients}")
    limit = 1 - ((1 - confidence) / 2) ** (1 / patients)
    return Interval((0.0, limit) if share == 0 else (1 - limit, 1.0))
