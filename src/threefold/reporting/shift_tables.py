"""The table of what other sites cost: a metric at each of two site groups, and the difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from threefold.evaluation.metrics import METRICS
from threefold.evaluation.shift import Shift
from threefold.experiment import EvaluationSpec
from threefold.reporting.structure_tables import title_of
from threefold.reporting.table import LEAK_MARK, LEAK_NOTE, Table


def shift_table(rows: Sequence[Shift], spec: EvaluationSpec) -> Table | None:
    """Return metrics at two site groups and their difference, a row each; None without any.

    Args:
        rows: all against the same first group.
        spec: replicates and confidence.
    """
    if not rows:
        return None
    several = len({row.other for row in rows}) > 1
    first = rows[0].group
    last = "other group" if several else rows[0].other
    return Table(
        title=f"Shift: {', '.join(dict.fromkeys(row.other for row in rows))} against {first}, per case",
        columns=("metric", first, last, f"{last} − {first}"),
        rows=tuple(
            (
                title_of(row.metric, ""),
                _value(row.metric, row.value, row.n, row.patients, leaks=row.leaks),
                f"{row.other}: " * several
                + _value(row.metric, row.other_value, row.other_n, row.other_patients, leaks=row.leaks),
                _difference(row),
            )
            for row in rows
        ),
        notes=(
            f"[low, high]: {spec.confidence:.0%} interval of the difference over {spec.replicates} resamples "
            "of the patients of either group, apart from each other; n: cases/patients.",
            *((LEAK_NOTE,) if any(row.leaks for row in rows) else ()),
        ),
    )


def _digits(metric: str) -> int:
    return 3 if METRICS[metric].bounds[1] <= 2 else 2  # 0.123, but 12.34 mm or dB


def _value(metric: str, value: float, n: int, patients: int, *, leaks: bool) -> str:
    if not math.isfinite(value):
        return f"not estimable n={n}/{patients}"
    return f"{value:.{_digits(metric)}f}{LEAK_MARK if leaks else ''} n={n}/{patients}"


def _difference(row: Shift) -> str:
    if not math.isfinite(row.difference):
        return f"not estimable ({row.note})"
    digits = _digits(row.metric)
    shown = f"[no interval: {row.note}]" if row.note else f"[{row.low:+.{digits}f}, {row.high:+.{digits}f}]"
    return f"{row.difference:+.{digits}f}{LEAK_MARK if row.leaks else ''} {shown}"
