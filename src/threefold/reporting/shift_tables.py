"""The table of what other sites cost: a metric at each of two site groups, and the difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from threefold.evaluation.estimate import Difference, Estimate
from threefold.evaluation.metrics import metrics
from threefold.experiment import EvaluationSpec
from threefold.reporting.structure_tables import title_of
from threefold.reporting.table import LEAK_MARK, LEAK_NOTE, Number, Table, after


def shift_table(rows: Sequence[Difference], spec: EvaluationSpec) -> Table | None:
    """Return metrics at two site groups and their difference, a row each; None without any.

    Args:
        rows: all against the same first group.
        spec: replicates and confidence.
    """
    if not rows:
        return None
    first, others = rows[0].first.group, list(dict.fromkeys(row.second.group for row in rows))
    several = len(others) > 1
    last = "other group" if several else others[0]
    return Table(
        title=f"Shift: {', '.join(others)} against {first}, per case",
        columns=("metric", first, last, f"{last} − {first}"),
        rows=tuple(
            (
                title_of(row.change.metric, ""),
                _value(row.first),
                after(f"{row.second.group}: " if several else "", _value(row.second)),
                _difference(row.change),
            )
            for row in rows
        ),
        notes=(
            f"[low, high]: {spec.confidence:.0%} interval over {spec.replicates} resamples of the patients "
            "of either group, apart from each other; n: cases/patients.",
            *((LEAK_NOTE,) if any(row.change.leaks for row in rows) else ()),
        ),
        name="shift",
    )


def _digits(metric: str) -> int:
    return 3 if metrics()[metric].bounds[1] <= 2 else 2  # 0.123, but 12.34 mm or dB


def _value(at: Estimate) -> str:
    if not math.isfinite(at.value):
        return f"not estimable ({at.why})"
    digits, mark = _digits(at.metric), LEAK_MARK if at.leaks else ""
    shown = "[no interval]" if at.why else f"[{at.low:.{digits}f}, {at.high:.{digits}f}]"
    return Number(at, f"{at.value:.{digits}f}{mark}", shown, f"n={at.n}/{at.patients}")


def _difference(change: Estimate) -> str:
    if not math.isfinite(change.value):
        return f"not estimable ({change.why})"
    digits, mark = _digits(change.metric), LEAK_MARK if change.leaks else ""
    ends = f"[{change.low:+.{digits}f}, {change.high:+.{digits}f}]"
    shown = f"[no interval: {change.why}]" if change.why else ends
    return Number(change, f"{change.value:+.{digits}f}{mark}", shown)
