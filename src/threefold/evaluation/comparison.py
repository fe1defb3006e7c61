"""Comparing variants that were trained several times and tested on the same cases.

A pair is a baseline and a variant that share cohort, split and seed. The effect is the mean over the pairs
of the variant's metric minus the baseline's. Its uncertainty has two levels: which patients are tested, and
which seeds were drawn. Each replicate draws patients with replacement, all cases of a patient together and
the same ones for every run, and pairs with replacement; the interval is the percentile interval, and p is
twice the smaller share of replicates on either side of no difference, both of the same resamples.

Resamples of a few patients that all differ the same way never lie on the other side. p is therefore never
below 2^(1 - patients), the least that a two-sided sign test of so many patients can say.

Three seeds say little of the spread over seeds: the variance of their resamples is 2/3 of what it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.intervals import SAME_VALUE, percentile_interval

Floats = NDArray[np.float64]
Expected = Literal["higher", "lower", "different"]
Verdict = Literal["supported", "contradicted", "undecided", "not estimable"]
_BLOCK = 250


@dataclass(frozen=True)
class Measured:
    """A metric of one run.

    Attributes:
        cases: (n,) id of each case.
        patients: (n,) patient of each case.
        metric: from weights of the cases (R, n) to values (R,); NaN where it does not exist.
    """

    cases: NDArray[np.str_]
    patients: NDArray[np.str_]
    metric: Callable[[Floats], Floats]


@dataclass(frozen=True)
class Effect:
    """A difference, or a mean, over the runs of a study.

    Attributes:
        value: mean over the runs; NaN where it is not estimable.
        low, high: ends of its interval; NaN where it has none.
        p: two-sided, of no difference beyond the margin; NaN without one to test.
        runs: the number of pairs, or of runs.
        cases, patients: tested, the union over the runs.
        note: why it, or its interval, is not estimable; empty where both are.
    """

    value: float
    low: float
    high: float
    p: float
    runs: int
    cases: int
    patients: int
    note: str = ""


def mean_of(runs: Sequence[Measured], *, replicates: int, confidence: float, seed: int = 0) -> Effect:
    """Return the mean of a metric over runs, resampling patients and runs."""
    return _effect([(run,) for run in runs], replicates, confidence, seed, margin=None)


def difference_of(
    pairs: Sequence[tuple[Measured, Measured]],
    *,
    replicates: int,
    confidence: float,
    margin: float = 0.0,
    seed: int = 0,
) -> Effect:
    """Return the mean over pairs of the second's metric minus the first's, resampling patients and pairs.

    A patient is drawn for baseline and variant alike, so that tests on the same cases are paired. Tests on
    other cases are not, but for the patients that they share.

    Args:
        pairs: baseline and variant.
        replicates: number of resamples.
        confidence: of the interval, for example 0.95.
        margin: differences up to it count as none, for p.
        seed: of the resamples.
    """
    return _effect([(second, first) for first, second in pairs], replicates, confidence, seed, margin=margin)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979); NaN stays and does not count."""
    p = np.asarray(values, np.float64)
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return [float(value) for value in adjusted]


def verdict(effect: Effect, adjusted: float, expected: Expected, confidence: float) -> Verdict:
    """Say what an effect means for a claim.

    - supported: it differs as the claim says, and the adjusted p is below 1 - confidence.
    - contradicted: it differs the other way, and the adjusted p is below 1 - confidence. A claim that two
      differ, either way, is never contradicted.
    - undecided: anything else; at this number of patients and seeds either may be true.
    """
    if np.isnan(effect.value) or np.isnan(adjusted):
        return "not estimable"
    if adjusted >= 1 - confidence:
        return "undecided"
    as_claimed = expected == "different" or (effect.value > 0) == (expected == "higher")
    return "supported" if as_claimed else "contradicted"


def _effect(
    runs: Sequence[tuple[Measured, ...]],
    replicates: int,
    confidence: float,
    seed: int,
    *,
    margin: float | None,
) -> Effect:
    """Return the mean over runs of a metric, or of the first of two minus the second."""
    whose = [one.patients for run in runs for one in run]
    if not any(map(len, whose)):
        return Effect(np.nan, np.nan, np.nan, np.nan, len(runs), 0, 0, "no run was tested on such a case")
    names, numbers = np.unique(np.concatenate(whose), return_inverse=True)
    parts = iter(np.split(numbers, np.cumsum([len(each) for each in whose])[:-1]))
    numbered = [[(one.metric, next(parts)) for one in run] for run in runs]
    cases = len(np.unique(np.concatenate([one.cases for run in runs for one in run])))

    def values(times: Floats) -> Floats:
        """From how often each patient was drawn (R, P) to the values of the runs (R, runs)."""
        columns = []
        for run in numbered:
            found = [metric(times[:, patients]) for metric, patients in run]
            columns.append(found[0] if len(found) == 1 else found[0] - found[1])
        return np.stack(columns, axis=1)

    point = values(np.ones((1, len(names))))[0]
    missing = int(np.isnan(point).sum())
    if missing:
        note = f"the metric does not exist in {missing} of {len(runs)} runs"
        return Effect(np.nan, np.nan, np.nan, np.nan, len(runs), cases, len(names), note)
    value = float(point.mean())
    drawn = _resampled(values, len(names), len(runs), replicates, seed)
    interval = percentile_interval(drawn, confidence)
    if len(names) < 2 or interval.reason not in ("", SAME_VALUE):
        note = "one patient" if len(names) < 2 else interval.reason
        return Effect(value, np.nan, np.nan, np.nan, len(runs), cases, len(names), note)
    p = np.nan if margin is None else _p_value(drawn[~np.isnan(drawn)], margin, len(names))
    return Effect(value, interval.low, interval.high, p, len(runs), cases, len(names), interval.reason)


def _resampled(
    values: Callable[[Floats], Floats], patients: int, runs: int, replicates: int, seed: int
) -> Floats:
    """Return the mean over runs in each replicate, (R,)."""
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, replicates, _BLOCK):
        rows = min(_BLOCK, replicates - start)
        drawn = generator.integers(0, patients, (rows, patients)) + patients * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)  # (r, P)
        chosen = generator.integers(0, runs, (rows, runs))
        means.append(np.take_along_axis(values(times.astype(np.float64)), chosen, axis=1).mean(axis=1))
    return np.concatenate(means)


def _p_value(drawn: Floats, margin: float, patients: int) -> float:
    """Return twice the smaller share of resamples that do not exceed the margin to one side."""
    above = (np.count_nonzero(drawn <= margin) + 1) / (len(drawn) + 1)
    below = (np.count_nonzero(drawn >= -margin) + 1) / (len(drawn) + 1)
    return float(min(1.0, max(2 * min(above, below), 2.0 ** (1 - patients))))
