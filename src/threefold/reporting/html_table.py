"""A table of text as HTML: values, intervals and counts told apart, the same cells as in Markdown."""

from __future__ import annotations

from html import escape

from threefold.reporting.table import Number, Table

# Words that a reader looks for, by what they mean to him.
_MARKS = {
    "supported": "good",
    "finished": "good",
    "contradicted": "bad",
    "failed": "bad",
    "refuse": "bad",
    "undecided": "dull",
    "unfinished": "dull",
    "waiting": "dull",
    "note": "dull",
    "not estimable": "dull",
    "interrupted": "warning",
    "running": "warning",
    "warn": "warning",
}


def table_html(table: Table) -> str:
    """Return a table as HTML, title and notes included; a wide one is scrolled, not the page.

    A table without columns is its title and notes.
    """
    title = f"<h3>{escape(table.title)}</h3>\n" if table.title else ""
    notes = "".join(f'<p class="foot">{escape(note)}</p>\n' for note in table.notes)
    if not table.columns:
        return f"{title}{notes}"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "\n".join(
        "<tr>" + f'<th scope="row">{escape(row[0])}</th>' + "".join(map(_cell, row[1:])) + "</tr>"
        for row in table.rows
    )
    name = escape(table.title or "Table")
    return (
        f'{title}<div class="scroll" role="region" tabindex="0" aria-label="{name}">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n{notes}"
    )


def _cell(text: str) -> str:
    mark = _MARKS.get(text)
    if mark is not None:
        return f'<td><span class="mark {mark}">{escape(text)}</span></td>'
    if not isinstance(text, Number):
        kind = ' class="aside"' if text.startswith("not ") else ""
        return f"<td{kind}>{escape(text)}</td>"
    count = f' <span class="count">{escape(text.count_text)}</span>' if text.count_text else ""
    return (
        f'<td><span class="value">{escape(text.before)}<b>{escape(text.value)}</b></span> '
        f'<span class="interval">{escape(text.interval)}</span>{count}</td>'
    )
