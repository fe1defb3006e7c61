"""A table of text, and how a number reads in it.

A cell reads `0.812 [0.750, 0.870] n=740/148`: the value, its interval, cases and patients. `†` after a value
says that the split leaks patients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation
from threefold.evaluation.groups import Level
from threefold.evaluation.metrics import metric_of
from threefold.experiment import EvaluationSpec

LEAK_MARK = "†"
LEAK_NOTE = (
    f"{LEAK_MARK} The split shares patients between training and test, or the patients are not known: these "
    "numbers are better, or may be, than what new patients will get."
)


class Number(str):
    """The text of a number in a table, which knows its parts and the estimate that it shows.

    Attributes:
        estimate: that it shows.
        value, interval, count_text: as text; the count may be empty.
        before: what stands before the value, with the space between.
    """

    estimate: Estimate
    value: str
    interval: str
    count_text: str
    before: str

    def __new__(
        cls, estimate: Estimate, value: str, interval: str, count: str = "", before: str = ""
    ) -> Number:
        """Make the text of its parts."""
        number = super().__new__(cls, " ".join(filter(None, (f"{before}{value}", interval, count))))
        number.estimate, number.value, number.interval = estimate, value, interval
        number.count_text, number.before = count, before
        return number


def after(before: str, text: str) -> str:
    """Return a cell with something before it; a number stays one."""
    if not isinstance(text, Number):
        return f"{before}{text}"
    return Number(text.estimate, text.value, text.interval, text.count_text, f"{before}{text.before}")


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: one line.
        columns: headings; the first is of the row names.
        rows: cells, as many as columns; those of an estimate are `Number`s.
        notes: sentences below the table.
        name: by which a report finds it among the results; empty for a table that is not kept.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    name: str = ""


def cell(row: Estimate | None) -> str:
    """Return a number with its interval and its n; what can't be estimated says why."""
    if row is None:
        return "not measured"
    count = f"n={row.n}" if row.level == "patient" else f"n={row.n}/{row.patients}"
    if math.isnan(row.value):
        return f"{row.note} {count}" if row.n else row.note
    # 0.123, but 12.34 mm or dB
    digits = 3 if metric_of(row.metric).bounds[1] <= 2 or row.metric == "log_loss" else 2
    mark = LEAK_MARK if row.leaks else ""
    interval = "[no interval]" if math.isnan(row.low) else f"[{row.low:.{digits}f}, {row.high:.{digits}f}]"
    return Number(row, f"{row.value:.{digits}f}{mark}", interval, count)


def legend(evaluation: Evaluation, level: Level) -> tuple[str, ...]:
    """Return what intervals and counts of a table mean, in one sentence."""
    return (interval_legend(evaluation.spec, level),)


def interval_legend(spec: EvaluationSpec, level: Level = "case") -> str:
    """Return what an interval and a count mean."""
    counted = "patients" if level == "patient" else "cases/patients"
    return (
        f"[low, high]: {spec.confidence:.0%} interval over {spec.replicates} resamples of the patients; n: "
        f"{counted}."
    )


def variant_legend(evaluations: Mapping[str, Evaluation], level: Level) -> tuple[str, ...]:
    """Return what a table of variants has to say below it: intervals, leaks, and whether cases differ."""
    notes = [*dict.fromkeys(note for each in evaluations.values() for note in legend(each, level))]
    if len({each.test_cases for each in evaluations.values()}) > 1:
        counts = ", ".join(f"{name} {len(each.test_cases)}" for name, each in evaluations.items())
        shared = len(frozenset.intersection(*(each.test_cases for each in evaluations.values())))
        notes.append(f"The variants were tested on different cases ({counts}; {shared} in common).")
    if any(each.leaks for each in evaluations.values()):
        notes.append(LEAK_NOTE)
    return tuple(notes)


def markdown(table: Table) -> str:
    """Return a table as Markdown, title and notes included."""
    lines = [f"## {table.title}", "", _pipes(table.columns), _pipes("---" for _ in table.columns)]
    lines += [_pipes(row) for row in table.rows]
    return "\n".join([*lines, "", *(f"{note}\n" for note in table.notes)])


def page(tables: Iterable[Table]) -> str:
    """Return a file of Markdown, one table below the other."""
    return "\n".join(markdown(table) for table in tables)


def plain(table: Table) -> str:
    """Return a table as aligned text without colours or frames."""
    grid = [table.columns, *table.rows]
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in grid]
    return "\n".join([table.title, *(line.rstrip() for line in lines), *table.notes, ""])


def show(table: Table) -> None:
    """Print a table: framed on a terminal, aligned text where the output is piped."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        print(plain(table))
        return
    framed = RichTable(title=table.title, title_justify="left", caption="\n".join(table.notes))
    framed.caption_justify = "left"
    for index, name in enumerate(table.columns):
        framed.add_column(Text(name), no_wrap=index == 0, style="bold" if index == 0 else None)
    for row in table.rows:
        framed.add_row(*(Text(text) for text in row))
    console.print(framed)


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(text.replace("|", "\\|").split()) for text in cells) + " |"
