"""One number of an evaluation, and how it is made from a value and its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.groups import Group, GroupKind, Level, Units
from threefold.evaluation.intervals import Interval, Key, bootstrap, exact_interval
from threefold.evaluation.metrics import Metric
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        level: what is counted, cases or patients.
        group_kind, group: where.
        metric: a name of `metrics.METRICS`.
        class_name: more than two classes: the class against the rest, or `true as decided` for confusion; of
            a structure's metric the structure; empty for the metric itself.
        value: NaN where it is not estimable.
        low, high: ends of the interval; NaN where it is not estimable.
        n: units that the number is over.
        patients: patients among them.
        positives: units of the positive class, or of `class_name`; for confusion, misses, alarms and other
            shares of cases the number of those; None where neither applies.
        replicates_missing: replicates of the bootstrap in which the metric did not exist.
        note: why the value or the interval is not estimable, or how the worst site was found.
        leaks: the split shares patients between training and test: the number is too good.
    """

    level: Level
    group_kind: GroupKind
    group: str
    metric: str
    class_name: str
    value: float
    low: float
    high: float
    n: int
    patients: int
    positives: int | None
    replicates_missing: int
    note: str
    leaks: bool


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

    def row(
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
    ) -> Row:
        """Return the row of a number.

        Args:
            metric: what it is.
            value: NaN where it is not estimable.
            interval: by the bootstrap; None without replicates.
            units: that the number is over.
            needed: (n,) the units that a share is a share of.
            class_name: the class or structure that it is about.
            positives: see `Row`.
            is_mean: a mean over classes, whose share has no exact interval.
            why: it is not estimable, where it is not.
        """
        note = ""
        if interval is None or np.isnan(value):
            interval = Interval(np.nan, np.nan, 0 if interval is None else interval.missing, "")
            note = f"not estimable ({why})"
        elif metric.is_share and not is_mean and value in (0.0, 1.0):
            interval = exact_interval(value, len(np.unique(units.patients[needed])), self.spec.confidence)
            note = "exact binomial interval over patients"
        elif interval.reason:
            note = f"no interval: {interval.reason}"
        return Row(
            level=self.level,
            group_kind=self.group.kind,
            group=self.group.name,
            metric=metric.name,
            class_name=class_name,
            value=value,
            low=interval.low,
            high=interval.high,
            n=len(units),
            patients=len(np.unique(units.patients)),
            positives=positives,
            replicates_missing=interval.missing,
            note=note,
            leaks=self.leaks,
        )
