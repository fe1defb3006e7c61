"""The table of paired differences."""

from __future__ import annotations

from collections.abc import Sequence

from threefold.evaluation.estimate import Estimate
from threefold.evaluation.paired import Gain
from threefold.experiment import EvaluationSpec
from threefold.reporting.table import LEAK_MARK, LEAK_NOTE, Number, Table


def gain_table(gains: Sequence[Gain], spec: EvaluationSpec) -> Table:
    """Return what each step gains over the one that it is held against, a row each."""
    return Table(
        title="What each step gains, paired by case",
        columns=("measure", "step", "before", "after", "difference"),
        rows=tuple(
            (
                each.measure,
                f"{each.after} over {each.before}",
                f"{each.first.value:.3f}",
                f"{each.second.value:.3f}",
                _difference(each.change),
            )
            for each in gains
        ),
        notes=(
            f"[low, high]: {spec.confidence:.0%} interval of the difference over {spec.replicates} resamples "
            "of the patients; n: cases/patients that have both. Registration is measured on all registered "
            "cases, those whose mask steered it included, the other steps on the test cases, whose masks "
            "steer nothing.",
            *((LEAK_NOTE,) if any(each.change.leaks for each in gains) else ()),
        ),
    )


def _difference(change: Estimate) -> str:
    count = f"n={change.n}/{change.patients}"
    if not change.n:
        return change.note
    interval = f"[{change.note}]" if change.why else f"[{change.low:+.3f}, {change.high:+.3f}]"
    return Number(change, f"{change.value:+.3f}{LEAK_MARK if change.leaks else ''}", interval, count)
