"""What comparing the runs of a study comes to: rows of its tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from threefold.evaluation.comparison import Effect, Expected, Verdict
from threefold.evaluation.estimate import Difference


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
