"""A page as a small tree of blocks, and its HTML: one file that needs no other and asks no network.

Texts are plain: everything in them is escaped, and a part between `backticks` is shown as code. Styles are
inside the file (report.css), pictures are data URIs, and a content security policy forbids the browser to
fetch anything.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from typing import Literal

from threefold.reporting.table import Number, Table

Kind = Literal["note", "good", "warning", "bad"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Notice:
    """A paragraph to be noticed, in a box coloured by its kind."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Facts:
    """What is what: (term, description) in order."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Lines to be copied as they are."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Attributes:
        caption: below it, and what a reader who can't see it is told.
        content: the encoded picture.
        media_type: of the content, image/png for example.
        width, height: as shown, in CSS pixels; its own may be more.
    """

    caption: str
    content: bytes
    media_type: str
    width: int
    height: int


@dataclass(frozen=True)
class Links:
    """A list of links to places beside the file: (text, relative address)."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown when a reader asks for them, and in print."""

    summary: str
    blocks: tuple[Block, ...]


Block = Text | Heading | Notice | Facts | Code | Picture | Links | Table | Folded


@dataclass(frozen=True)
class Section:
    """A part of a page that its contents list.

    Attributes:
        title: unique in the page.
        blocks: in order.
    """

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: what it is of.
        lead: one sentence on what that is.
        opening: blocks before the contents: what a reader must know before all else.
        sections: in order.
        footer: who made it, and when.
    """

    title: str
    lead: str
    opening: tuple[Block, ...]
    sections: tuple[Section, ...]
    footer: str


def render(page: Page) -> str:
    """Return a page as one HTML document."""
    style = (files("threefold") / "reporting" / "report.css").read_text(encoding="utf-8")
    names = anchors(section.title for section in page.sections)
    sections = list(zip(names, page.sections, strict=True))
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(page.title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            f"<header><h1>{escape(page.title)}</h1>",
            f'<p class="lead">{inline(page.lead)}</p>',
            *map(_block, page.opening),
            "</header>",
            *_contents(sections),
            "<main>",
            *(_section(name, section) for name, section in sections),
            "</main>",
            f"<footer><p>{inline(page.footer)}</p></footer>",
            "</body>",
            "</html>",
            "",
        )
    )


def inline(text: str) -> str:
    """Return a plain text as HTML: escaped, `backticks` as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text))


def anchors(titles: Iterable[str]) -> list[str]:
    """Return the names by which sections are linked to, each another one."""
    names: list[str] = []
    for title in titles:
        plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        unique, number = plain, 2
        while unique in names:
            unique, number = f"{plain}-{number}", number + 1
        names.append(unique)
    return names


def _contents(sections: Iterable[tuple[str, Section]]) -> Iterator[str]:
    yield '<nav aria-label="Contents"><ul>'
    for name, section in sections:
        yield f'<li><a href="#{name}">{escape(section.title)}</a></li>'
    yield "</ul></nav>"


def _section(name: str, section: Section) -> str:
    named = (
        replace(block, title="") if isinstance(block, Table) and block.title == section.title else block
        for block in section.blocks
    )
    blocks = "\n".join(map(_block, named))
    return f'<section id="{name}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{inline(text)}</p>"
        case Heading(text):
            return f"<h3>{escape(text)}</h3>"
        case Notice(kind, text):
            return f'<p class="notice {kind}">{inline(text)}</p>'
        case Facts(items):
            rows = "\n".join(f"<dt>{escape(term)}</dt><dd>{inline(said)}</dd>" for term, said in items)
            return f"<dl>\n{rows}\n</dl>"
        case Code(text):
            return f'<pre tabindex="0">{escape(text)}</pre>'
        case Picture():
            return _picture(block)
        case Links(items):
            rows = "\n".join(
                f'<li><a href="{escape(address)}">{escape(text)}</a></li>' for text, address in items
            )
            return f'<ul class="links">\n{rows}\n</ul>'
        case Folded(summary, blocks):
            inner = "\n".join(map(_block, blocks))
            return f"<details>\n<summary>{inline(summary)}</summary>\n{inner}\n</details>"
        case Table():
            return table_html(block)


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.content).decode("ascii")
    return (
        f'<figure><img alt="{escape(picture.caption)}" width="{picture.width}" height="{picture.height}" '
        f'src="data:{picture.media_type};base64,{data}">\n'
        f"<figcaption>{inline(picture.caption)}</figcaption></figure>"
    )


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
