"""Comparing variants that were trained several times and tested on the same cases.

A pair is a baseline and a variant that share cohort, split and seed. The effect is the mean over the pairs
of the variant's metric minus the baseline's. Its uncertainty has two levels: which patients are tested, and
which seeds were drawn.

- Patients: each replicate draws them with replacement, all cases of a patient together and the same ones for
  every run. Of n patients the resampled mean spreads too little, by a share that n - 1 degrees of freedom
  leave unknown: each replicate's distance from the effect is multiplied by sqrt(n / chi2(n - 1)), which for a
  mean of normal values makes a Student's t of it.
- Pairs, S of them: each replicate adds s / sqrt(S) t(d), where s^2 is the variance of the pairs' effects,
  known with d degrees of freedom: S - 1, or more where a study's other claims tell of it (`spread`).
  Resampling three pairs would give 2/3 of their variance and never more than their range. Pairs of one split
  share their training cases: where there are several splits, S counts those, and the effects are their means.

Where that leads beyond what two values of the metric can differ by, the replicate is put at that end. The
interval is the percentile interval, and p is twice the smaller share of replicates on either side of no
difference, both of the same replicates. Patients that all differ by the same amount never lie on the other
side; p is therefore never below 2^(1 - n), the least that a two-sided sign test of n patients can say.

n is the number of patients that the metric rests on: with positive cases for sensitivity, of the rarer class
for an AUC; the smaller number where baseline and variant were tested on other patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.evaluation.estimate import EXACT, Difference, Estimate
from threefold.evaluation.groups import group_kind_of
from threefold.evaluation.intervals import (
    FEWEST_PATIENTS,
    SAME_VALUE,
    drawn_patients,
    exact_interval,
    percentile_interval,
)
from threefold.evaluation.spread import Spread, own_spread

Floats = NDArray[np.float64]
Expected = Literal["higher", "lower", "different"]
Verdict = Literal["supported", "contradicted", "undecided", "not estimable", "unfinished"]
Values = Callable[[Floats], Floats]
"""From how often each patient was drawn (R, P) to the values of the runs (R, S)."""
_BLOCK = 250


@dataclass(frozen=True)
class Measured:
    """A metric of one run.

    Attributes:
        cases: (n,) id of each case.
        patients: (n,) patient of each case.
        metric: from weights of the cases (R, n) to values (R,); NaN where it does not exist.
        needs: (n,) the cases of each kind that it rests on, such as positives and negatives; none: all.
        numbers: (n,) what `numbered` is, where it is known; None: to be found.
    """

    cases: NDArray[np.str_]
    patients: NDArray[np.str_]
    metric: Callable[[Floats], Floats]
    needs: tuple[NDArray[np.bool_], ...] = ()
    numbers: NDArray[np.int64] | None = None

    @property
    def fewest_patients(self) -> int:
        """The patients with cases of that kind which the fewest have."""
        kinds = [self.numbered[kind] for kind in self.needs] or [self.numbered]
        return min(int(np.count_nonzero(np.bincount(kind))) for kind in kinds)

    @cached_property
    def numbered(self) -> NDArray[np.int64]:
        """The patient of each case as a number, (n,), without gaps, in the order of their names."""
        if self.numbers is not None:
            return self.numbers
        return pd.factorize(self.patients.astype(object), sort=True)[0].astype(np.int64)

    @property
    def is_mean_over_classes(self) -> bool:
        """Whether it is the mean of several classes' numbers: the mean of several shares is no share."""
        return len(self.needs) > 1


@dataclass(frozen=True)
class Effect:
    """A difference, or a mean, over the runs of a study.

    Attributes:
        estimate: mean over the runs; its n and patients are the union over the runs.
        p: two-sided, of no difference beyond the margin, or of the one that a claim names; NaN without one to
            test.
        runs: the number of pairs, or of runs.
        fewest_cases: of the smallest test, of any run and of either side.
        fewest_patients: with cases of a kind that the metric rests on, in any such test.
        each: the value of each run or pair, in their order; NaN where the metric does not exist.
    """

    estimate: Estimate
    p: float
    runs: int
    fewest_cases: int
    fewest_patients: int
    each: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """Return it as columns of a table."""
        return {
            "value": self.estimate.value,
            "low": self.estimate.low,
            "high": self.estimate.high,
            "p": self.p,
            "runs": self.runs,
            "cases": self.estimate.n,
            "patients": self.estimate.patients,
            "fewest_cases": self.fewest_cases,
            "fewest_patients": self.fewest_patients,
            "each": self.each,
            "note": self.estimate.why,
        }


class Patients(NamedTuple):
    """How many patients were tested.

    Attributes:
        all: the union over the runs.
        fewest: with cases of a kind that the metric rests on, of one run of either side.
    """

    all: int
    fewest: int


Draw = Callable[[Values, Floats, Patients], Floats]
"""From values, their point (S,) and the number of patients to the mean over runs in each replicate (R,)."""


def mean_of(
    runs: Sequence[Measured],
    *,
    replicates: int,
    confidence: float,
    metric: str = "",
    group: str = "all",
    leaks: bool = False,
    is_share: bool = False,
    seed: int = 0,
) -> Effect:
    """Return the mean of a metric over runs, resampling patients and runs.

    Args:
        runs: that were measured.
        replicates: number of resamples.
        confidence: of the interval, for example 0.95.
        metric, group, leaks: what the estimate says that it is of.
        is_share: a share of cases, which at 0 or 1 has the exact binomial interval over patients.
        seed: of the resamples.
    """
    draw = partial(_resampled, replicates=replicates, seed=seed)
    of = _estimate_of(metric, group, leaks)
    found = _effect([(run,) for run in runs], draw, confidence, of, needed=FEWEST_PATIENTS)
    is_share = is_share and not any(run.is_mean_over_classes for run in runs)
    if not is_share or found.estimate.value not in (0.0, 1.0):
        return found
    exact = exact_interval(found.estimate.value, found.fewest_patients, confidence)
    return replace(
        found, estimate=replace(found.estimate, interval=exact.ends, why=exact.reason, remark=EXACT)
    )


def difference_of(
    pairs: Sequence[tuple[Measured, Measured]],
    *,
    replicates: int,
    confidence: float,
    metric: str = "",
    group: str = "all",
    leaks: bool = False,
    splits: Sequence[int] = (),
    spread: Spread | None = None,
    margin: float = 0.0,
    beyond: float = 0.0,
    largest: float = np.inf,
    seed: int = 0,
) -> Effect:
    """Return the mean over pairs of the second's metric minus the first's.

    A patient is drawn for baseline and variant alike, so that tests on the same cases are paired. Tests on
    other cases are not, but for the patients that they share.

    Args:
        pairs: baseline and variant.
        replicates: number of resamples.
        confidence: of the interval, for example 0.95.
        metric, group, leaks: what the estimate says that it is of.
        splits: the split of each pair; none: all of one.
        spread: of the effects, as `effects_of` gives them; None: as they show it themselves.
        margin: differences up to it count as none, for p.
        beyond: the difference that p is of.
        largest: what no difference of the metric exceeds.
        seed: of the resamples.
    """
    draw = partial(
        _calibrated, splits=splits, spread=spread, largest=largest, replicates=replicates, seed=seed
    )
    of = _estimate_of(metric, group, leaks)
    return _effect(
        [(second, first) for first, second in pairs],
        draw,
        confidence,
        of,
        needed=2,
        margin=margin,
        beyond=beyond,
    )


def _estimate_of(metric: str, group: str, leaks: bool) -> partial[Estimate]:
    return partial(Estimate, metric=metric, group=group, group_kind=group_kind_of(group), leaks=leaks)


def effects_of(pairs: Sequence[tuple[Measured, Measured]], splits: Sequence[int] = ()) -> Floats:
    """Return the second's metric minus the first's of each pair, or of several splits each one's mean, (S,).

    NaN where there is none.
    """
    found = [second.metric(_each_once(second)) - first.metric(_each_once(first)) for first, second in pairs]
    return _drawn_apart(np.concatenate([np.empty(0), *found]), splits)


def _drawn_apart(effects: Floats, splits: Sequence[int]) -> Floats:
    """Return the effects that were drawn apart: those of the pairs, or the means of several splits."""
    names = np.unique(np.asarray(splits))
    if len(names) < 2:
        return effects
    return np.array([effects[np.asarray(splits) == name].mean() for name in names])


def verdict(
    effect: Effect,
    adjusted: float,
    expected: Expected,
    confidence: float,
    *,
    beyond: float = 0.0,
    finished: bool = True,
) -> Verdict:
    """Say what an effect means for a claim.

    - unfinished: some of its pairs have not finished; which ones do first is not chance alone.
    - supported: it differs from none, or from the difference that the claim names (beyond), as the claim
      says, and the adjusted p is below 1 - confidence.
    - contradicted: it differs the other way, and the adjusted p is below 1 - confidence. A claim that two
      differ, either way, is never contradicted.
    - undecided: anything else; at this number of patients and seeds either may be true.
    """
    if not finished:
        return "unfinished"
    if np.isnan(effect.estimate.value) or np.isnan(adjusted):
        return "not estimable"
    if adjusted >= 1 - confidence:
        return "undecided"
    as_claimed = expected == "different" or (effect.estimate.value > beyond) == (expected == "higher")
    return "supported" if as_claimed else "contradicted"


def _effect(
    runs: Sequence[tuple[Measured, ...]],
    draw: Draw,
    confidence: float,
    of: Callable[..., Estimate],
    *,
    needed: int,
    margin: float | None = None,
    beyond: float = 0.0,
) -> Effect:
    """Return the mean over runs of a metric, or of the first of two minus the second."""
    whose = [one.patients for run in runs for one in run]
    if not any(map(len, whose)):
        note = "no test case has it" if runs else "no finished run was tested on it"
        if any(len(run) > 1 for run in runs):
            note = "baseline and variant share no test case that has it"
        return Effect(of(value=np.nan, n=0, patients=0, why=note), np.nan, len(runs), 0, 0, ())
    names, numbers = np.unique(np.concatenate(whose), return_inverse=True)
    parts = iter(np.split(numbers, np.cumsum([len(each) for each in whose])[:-1]))
    numbered = [[(one.metric, next(parts)) for one in run] for run in runs]
    cases = [one.cases for run in runs for one in run]
    fewest = min(one.fewest_patients for run in runs for one in run)

    def values(times: Floats) -> Floats:
        columns = []
        for run in numbered:
            found = [metric(times[:, patients]) for metric, patients in run]
            columns.append(found[0] if len(found) == 1 else found[0] - found[1])
        return np.stack(columns, axis=1)

    point = values(np.ones((1, len(names))))[0]
    all_cases = len(np.unique(np.concatenate(cases)))
    of = partial(of, n=all_cases, patients=len(names))
    tested = (len(runs), min(map(len, cases)), fewest, tuple(point.tolist()))
    missing = int(np.isnan(point).sum())
    if missing:
        note = f"the metric does not exist in {missing} of {len(runs)} runs"
        return Effect(of(value=np.nan, why=note), np.nan, *tested)
    value = float(point.mean())
    if fewest < needed:
        note = f"fewer than {needed} patients" if needed > 2 else "one patient"
        return Effect(of(value=value, why=note), np.nan, *tested)
    drawn = draw(values, point, Patients(len(names), fewest))
    interval = percentile_interval(drawn, confidence)
    if interval.reason not in ("", SAME_VALUE):
        return Effect(of(value=value, why=interval.reason), np.nan, *tested)
    p = np.nan if margin is None else _p_value(drawn[~np.isnan(drawn)] - beyond, margin, fewest)
    return Effect(of(value=value, interval=interval.ends, why=interval.reason), p, *tested)


def _resampled(values: Values, point: Floats, patients: Patients, *, replicates: int, seed: int) -> Floats:
    """Return the mean over runs in each replicate, (R,), runs resampled too."""
    generator = np.random.default_rng(seed)
    means = []
    for times in _drawn_patients(generator, patients.all, replicates):
        chosen = generator.integers(0, len(point), (len(times), len(point)))
        means.append(np.take_along_axis(values(times), chosen, axis=1).mean(axis=1))
    return np.concatenate(means)


def _each_once(measured: Measured) -> Floats:
    return np.ones((1, len(measured.cases)))


def _calibrated(
    values: Values,
    point: Floats,
    patients: Patients,
    *,
    splits: Sequence[int],
    spread: Spread | None,
    largest: float,
    replicates: int,
    seed: int,
) -> Floats:
    """Return the mean over runs in each replicate, (R,), with the spread that few patients and runs leave."""
    generator = np.random.default_rng(seed)
    means = [values(times).mean(axis=1) for times in _drawn_patients(generator, patients.all, replicates)]
    effect, apart = point.mean(), _drawn_apart(point, splits)
    scale = np.sqrt(patients.fewest / generator.chisquare(patients.fewest - 1, replicates))
    drawn: Floats = effect + (np.concatenate(means) - effect) * scale
    over_runs = spread or own_spread(apart)
    if over_runs is not None:
        drawn += np.sqrt(over_runs.variance / len(apart)) * generator.standard_t(
            over_runs.freedom, replicates
        )
    return np.clip(drawn, -largest, largest)


def _drawn_patients(generator: np.random.Generator, patients: int, replicates: int) -> Iterator[Floats]:
    """Yield how often each patient was drawn, in blocks of replicates (r, P)."""
    for start in range(0, replicates, _BLOCK):
        rows = min(_BLOCK, replicates - start)
        yield drawn_patients(generator, patients, rows).astype(np.float64)


def _p_value(drawn: Floats, margin: float, patients: int) -> float:
    """Return twice the smaller share of resamples that do not exceed the margin to one side."""
    above = (np.count_nonzero(drawn <= margin) + 1) / (len(drawn) + 1)
    below = (np.count_nonzero(drawn >= -margin) + 1) / (len(drawn) + 1)
    return float(min(1.0, max(2 * min(above, below), 2.0 ** (1 - patients))))


@dataclass(frozen=True)
class ClaimRow:
    """What a claim came to in one cohort.

    Attributes:
        claim: in words.
        cohort, baseline_cohort: in which the variant and the baseline were trained; most often the same.
        variant, baseline: their names.
        metric, group: what was measured, on which test cases.
        baseline_group: the baseline's test cases; most often the same.
        expected: which way the claim says that the variant differs.
        beyond: from which difference.
        baseline_mean, variant_mean: mean of the metric over the pairs.
        effect: variant minus baseline, paired.
        adjusted: p after Holm's correction over the study's rows.
        verdict: supported, contradicted, undecided or not estimable.
        pairs: that the study asks for; `effect.runs` have finished.
        leaks: a split shares patients between training and test.
        finished_before: how many of its runs had finished when it was written down; None where that is not
            known.
    """

    claim: str
    cohort: str
    baseline_cohort: str
    variant: str
    baseline: str
    metric: str
    group: str
    baseline_group: str
    expected: Expected
    beyond: float
    baseline_mean: Effect
    variant_mean: Effect
    effect: Effect
    adjusted: float
    verdict: Verdict
    pairs: int
    leaks: bool
    finished_before: int | None

    @property
    def is_late(self) -> bool:
        """Whether it was written down when what it came to could have been seen."""
        return bool(self.finished_before)


@dataclass(frozen=True)
class VariantRow:
    """A variant's metric, mean over its runs.

    Attributes:
        cohort, variant, metric, group: what and where.
        mean: of the finished runs; its `p` is NaN.
        runs: that the study asks for.
        leaks: a split shares patients between training and test.
    """

    cohort: str
    variant: str
    metric: str
    group: str
    mean: Effect
    runs: int
    leaks: bool


@dataclass(frozen=True)
class RelianceRow:
    """What a variant's networks rely on: a number of `explain`, over its runs.

    Attributes:
        cohort, variant: which.
        group: of test cases: all, or a site group.
        what: worst group (accuracy), label, shortcut or site probe (AUC), calibration error (and its
            change by the temperature).
        mean, lowest, highest: over the runs.
        runs: that have it.
        leaks: the split of one of them shares patients between training and test.
    """

    cohort: str
    variant: str
    group: str
    what: str
    mean: float
    lowest: float
    highest: float
    runs: int
    leaks: bool


@dataclass(frozen=True)
class PairRow:
    """The test of one pair of runs on the AUC.

    Attributes:
        cohort, baseline_cohort, variant, baseline, group, split, seed: which pair.
        difference: variant minus baseline, clustered by patient.
        cases, patients: that both were tested on.
        leaks: the split of one of them shares patients between training and test.
    """

    cohort: str
    baseline_cohort: str
    variant: str
    baseline: str
    group: str
    split: int
    seed: int
    difference: Difference
    cases: int
    patients: int
    leaks: bool


def record_of(row: ClaimRow | VariantRow | RelianceRow | PairRow) -> dict[str, Any]:
    """Return a row as a record: what is made of several numbers is a record itself."""
    return {name: _plain(value) for name, value in vars(row).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Effect):
        return value.record()
    if isinstance(value, Difference):
        return {
            "first": value.first.value,
            "second": value.second.value,
            "difference": value.change.value,
            "error": value.error,
            "low": value.change.low,
            "high": value.change.high,
            "p": value.p,
        }
    return value
