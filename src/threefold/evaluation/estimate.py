"""Estimates: numbers with intervals, and the differences between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.groups import Group, GroupKind, Level, SampleUnits, count_patients
from threefold.evaluation.intervals import Interval, Key, bootstrap, exact_interval
from threefold.evaluation.metrics import Metric
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval and origin.

    Attributes:
        level: unit of analysis, cases or patients.
        group_kind, group: the group of cases.
        metric: a name in `metrics.METRICS`, METRIC:STRUCTURE in a study, or the name of a fitted parameter.
        class_name: with more than two classes the class against the rest, or `true as decided` for confusion;
            for a structure's metric the structure; empty for the metric itself.
        value: NaN if not estimable.
        interval: its limits; None if there is none.
        n: number of units.
        patients: number of patients among them.
        positives: number of units of the positive class, or of `class_name`; for confusion, misses, alarms
            and other proportions of cases the numerator; None if neither applies.
        replicates_missing: bootstrap replicates in which the metric was undefined.
        why: why the value or the interval is not estimable; otherwise empty.
        remark: a deviating method: an exact interval, the worst of several sites.
        leaks: the split shares patients between training and test, so the number is optimistic.
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
        """Lower limit of the interval; NaN if there is none."""
        return math.nan if self.interval is None else self.interval[0]

    @property
    def high(self) -> float:
        """Upper limit of the interval; NaN if there is none."""
        return math.nan if self.interval is None else self.interval[1]

    @property
    def note(self) -> str:
        """The remark, and why the value or its interval is not estimable, in words; usually empty."""
        missing = f"not estimable ({self.why})" if math.isnan(self.value) else f"no interval: {self.why}"
        return "; ".join(filter(None, (self.remark, missing if self.why else "")))

    def record(self) -> dict[str, Any]:
        """Return a row of a long table, with `low` and `high` as separate columns."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = (
    *("level", "group_kind", "group", "metric", "class_name", "value", "low", "high", "n", "patients"),
    *("positives", "replicates_missing", "note", "leaks"),
)
"""Columns of a table of estimates."""
EXACT = "exact binomial interval over patients"
"""The remark on a proportion of 0 or 1."""


@dataclass(frozen=True)
class Difference:
    """Two estimates of one metric, and their difference.

    Attributes:
        first, second: estimates of two models, steps or groups.
        change: second minus first, on the same cases and resamples if both have them.
        p: two-sided p-value of no difference; NaN if not tested.
        error: analytical standard error of the change; NaN if there is none.
    """

    first: Estimate
    second: Estimate
    change: Estimate
    p: float = math.nan
    error: float = math.nan


@dataclass(frozen=True)
class Place:
    """A group at a level, with the settings of its estimates.

    Attributes:
        level, group: the unit of analysis and the group.
        spec: replicates, confidence and seed.
        leaks: the split shares patients between training and test.
    """

    level: Level
    group: Group
    spec: EvaluationSpec
    leaks: bool

    def bootstrap(
        self, metrics: Callable[[Floats], Mapping[Key, Floats]], units: SampleUnits
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
        units: SampleUnits,
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
                exact = exact_interval(value, count_patients(units.patients[needed]), self.spec.confidence)
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
            patients=count_patients(units.patients),
            positives=positives,
            replicates_missing=missing,
            why=why,
            remark=remark,
            leaks=self.leaks,
        )
