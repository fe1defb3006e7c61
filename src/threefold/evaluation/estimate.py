"""One number of an evaluation, and how it is made from a value and its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.groups import Group, GroupKind, Level, Units
from threefold.evaluation.intervals import Interval, Key, bootstrap, exact_interval
from threefold.evaluation.metrics import Metric
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval, and what it was taken from. Every number that has an interval is one.

    Attributes:
        level: what is counted, cases or patients.
        group_kind, group: where.
        metric: a name of `metrics.METRICS`, METRIC:STRUCTURE of a study's, or of what is fitted.
        class_name: more than two classes: the class against the rest, or `true as decided` for confusion; of
            a structure's metric the structure; empty for the metric itself.
        value: NaN where it is not estimable.
        interval: its ends; None where it has none.
        n: units that the number is over.
        patients: patients among them.
        positives: units of the positive class, or of `class_name`; for confusion, misses, alarms and other
            shares of cases the number of those; None where neither applies.
        replicates_missing: replicates of the bootstrap in which the metric did not exist.
        why: why the value or the interval is not estimable; empty where both are.
        remark: how it was found, where not as all others: an exact interval, the worst of several sites.
        leaks: the split shares patients between training and test: the number is too good.
    """

    level: Level = "case"
    group_kind: GroupKind = "all"
    group: str = "all"
    metric: str
    class_name: str = ""
    value: float
    interval: tuple[float, float] | None = None
    n: int
    patients: int
    positives: int | None = None
    replicates_missing: int = 0
    why: str = ""
    remark: str = ""
    leaks: bool = False

    @property
    def low(self) -> float:
        """The lower end of the interval; NaN where there is none."""
        return math.nan if self.interval is None else self.interval[0]

    @property
    def high(self) -> float:
        """The upper end of the interval; NaN where there is none."""
        return math.nan if self.interval is None else self.interval[1]

    @property
    def note(self) -> str:
        """How it was found and why it, or its interval, is not estimable, in words; most often empty."""
        missing = f"not estimable ({self.why})" if math.isnan(self.value) else f"no interval: {self.why}"
        return "; ".join(filter(None, (self.remark, missing if self.why else "")))

    def record(self) -> dict[str, Any]:
        """Return it as a row of a long table, the ends of the interval apart."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = (
    *("level", "group_kind", "group", "metric", "class_name", "value", "low", "high", "n", "patients"),
    *("positives", "replicates_missing", "note", "leaks"),
)
"""Of a table of estimates, a row each."""
EXACT = "exact binomial interval over patients"
"""The remark on a share of 0 or 1."""


@dataclass(frozen=True)
class Difference:
    """Two numbers of one metric, and what the second is above the first.

    Attributes:
        first, second: of two models, steps or groups.
        change: second minus first, of the same cases and resamples where both have them.
        p: two-sided, of no difference; NaN where it is not tested.
        error: standard error of the change, where a formula gives it; else NaN.
    """

    first: Estimate
    second: Estimate
    change: Estimate
    p: float = math.nan
    error: float = math.nan


@dataclass(frozen=True)
class Place:
    """Where a number belongs: a group at a level.

    Attributes:
        level, group: what is counted, and in which group.
        spec: replicates, confidence and seed.
        leaks: the split shares patients between training and test.
    """

    level: Level
    group: Group
    spec: EvaluationSpec
    leaks: bool

    def bootstrap(
        self, metrics: Callable[[Floats], Mapping[Key, Floats]], units: Units
    ) -> Mapping[Key, Interval]:
        """Return the interval of each metric over the units."""
        return bootstrap(
            metrics,
            units.patients,
            replicates=self.spec.replicates,
            confidence=self.spec.confidence,
            seed=self.spec.seed,
        )

    def estimate(
        self,
        metric: Metric,
        value: float,
        interval: Interval | None,
        units: Units,
        *,
        needed: NDArray[np.bool_],
        class_name: str = "",
        positives: int | None = None,
        is_mean: bool = False,
        why: str,
    ) -> Estimate:
        """Return a number.

        Args:
            metric: what it is.
            value: NaN where it is not estimable.
            interval: by the bootstrap; None without replicates.
            units: that the number is over.
            needed: (n,) the units that a share is a share of.
            class_name: the class or structure that it is about.
            positives: see `Estimate`.
            is_mean: a mean over classes, whose share has no exact interval.
            why: it is not estimable, where it is not.
        """
        remark, ends = "", None
        missing = 0 if interval is None else interval.missing
        if interval is not None and not np.isnan(value):
            if metric.is_share and not is_mean and value in (0.0, 1.0):
                exact = exact_interval(value, len(np.unique(units.patients[needed])), self.spec.confidence)
                interval, missing = exact, exact.missing
                remark = EXACT
            ends, why = interval.ends, interval.reason
        return Estimate(
            level=self.level,
            group_kind=self.group.kind,
            group=self.group.name,
            metric=metric.name,
            class_name=class_name,
            value=value,
            interval=ends,
            n=len(units),
            patients=len(np.unique(units.patients)),
            positives=positives,
            replicates_missing=missing,
            why=why,
            remark=remark,
            leaks=self.leaks,
        )
