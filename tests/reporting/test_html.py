"""A page is one valid document, everything in it is escaped, and nothing in it points elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from threefold.evaluation.estimate import Estimate
from threefold.reporting.html import (
    Code,
    Facts,
    Folded,
    Heading,
    Links,
    Notice,
    Page,
    Picture,
    Section,
    Text,
    anchors,
    inline,
    render,
    table_html,
)
from threefold.reporting.table import LEAK_MARK, Number, Table

EVIL = "<script>alert('x')</script> & \"quoted\" <img src=http://elsewhere/x>"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Document(HTMLParser):
    """What a page consists of; reading one that is not well nested fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.addresses += [value for key in ("src", "href") if (value := found.get(key)) is not None]
        self.ids += [value] if (value := found.get("id")) is not None else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style"} & set(self.open):
            self.text.append(data)

    @property
    def words(self) -> str:
        """The text of the page, in one line."""
        return " ".join(" ".join(self.text).split())


def page(*blocks: object, title: str = "title") -> str:
    section = Section("A section", tuple(blocks))  # type: ignore[arg-type]
    return render(Page(title, "lead", (), (section,), "footer"))


EVERY_BLOCK = (
    Text(EVIL),
    Heading(EVIL),
    Notice("bad", EVIL),
    Facts(((EVIL, EVIL),)),
    Code(EVIL),
    Picture(EVIL, b"\x89PNG", "image/png", 3, 2),
    Links(((EVIL, "runs/a%20b"),)),
    Table(EVIL, (EVIL, EVIL), ((EVIL, EVIL), (EVIL, f"{EVIL}: 0.5 [0.4, 0.6] n=3/2")), (EVIL,)),
    Folded(EVIL, (Text(EVIL), Code(EVIL))),
)


@pytest.mark.parametrize("block", EVERY_BLOCK, ids=lambda block: type(block).__name__)
def test_everything_is_escaped(block: object) -> None:
    found = Document(page(block, title=EVIL))
    assert "script" not in found.tags
    assert found.tags.count("img") == isinstance(block, Picture)
    assert "alert('x')" in found.words


def test_a_page_points_nowhere_else() -> None:
    text = page(*EVERY_BLOCK)
    for address in Document(text).addresses:
        assert address.startswith(("#", "data:", "runs/")), address
    assert not re.search(r"@import|url\(", text)
    assert "default-src &#x27;none&#x27;" in text


def test_contents_lead_to_each_section() -> None:
    sections = tuple(Section(name, (Text(name),)) for name in ("What is what", "ROC", "Ä & B"))
    found = Document(render(Page("t", "l", (Notice("good", "first"),), sections, "f")))
    assert found.ids == ["what-is-what", "roc", "b"]
    assert found.addresses == ["#what-is-what", "#roc", "#b"]
    assert found.words.index("first") < found.words.index("What is what")
    assert anchors(("...", "a b", "a-b", "A B!")) == ["section", "a-b", "a-b-2", "a-b-3"]


def test_backticks_are_code_and_markup_in_them_is_text() -> None:
    assert inline("run `a < b` now") == "run <code>a &lt; b</code> now"
    assert inline("one ` alone") == "one ` alone"


def test_a_number_is_shown_apart_from_its_interval_and_count() -> None:
    estimate = Estimate(metric="auc", value=0.812, n=740, patients=148)
    cells = (
        ("0.812 [0.750, 0.870] n=740/148", "0.812", "[0.750, 0.870]", "n=740/148", ""),
        (f"0.5{LEAK_MARK} [no interval] n=6", f"0.5{LEAK_MARK}", "[no interval]", "n=6", ""),
        ("-0.014 [-0.02, +0.01]", "-0.014", "[-0.02, +0.01]", "", ""),
        ("site-03: 1.28 [1.1, 1.4] n=12/12", "1.28", "[1.1, 1.4]", "n=12/12", "site-03: "),
    )
    for text, value, interval, count, before in cells:
        number = Number(estimate, value, interval, count, before)
        assert number == text
        shown = table_html(Table("t", ("a", "b"), (("row", number),)))
        assert f"<b>{value}</b>" in shown
        assert f'<span class="interval">{interval}</span>' in shown
        assert ('class="count"' in shown) == bool(count)
        # Read without styles it is the same cell.
        assert text in " ".join(re.sub(r"<[^>]+>", " ", shown).replace(": ", ": ").split())
    assert "<b>" not in table_html(Table("t", ("a", "b"), (("row", "0.812 [0.750, 0.870] n=3"),)))


@pytest.mark.parametrize(("word", "kind"), [("supported", "good"), ("failed", "bad"), ("warn", "warning")])
def test_words_that_a_reader_looks_for_are_marked(word: str, kind: str) -> None:
    assert f'<span class="mark {kind}">{word}</span>' in table_html(Table("", ("a", "b"), (("x", word),)))
    assert "mark" not in table_html(Table("", ("a", "b"), (("x", f"{word} by all"),)))


def test_a_wide_table_is_scrolled_by_keyboard_too() -> None:
    shown = table_html(Table("Wide", tuple("abc"), (("1", "2", "3"),), ("a note",)))
    assert 'role="region" tabindex="0" aria-label="Wide"' in shown
    assert shown.count('scope="row"') == 1
    assert shown.count('scope="col"') == 3
    assert "a note" in shown


def test_a_title_that_is_the_sections_is_said_once() -> None:
    table = Table("A section", ("a", "b"), (("1", "2"),))
    assert page(table).count("<h3>") == 0
    assert page(Table("Another", table.columns, table.rows)).count("<h3>") == 1
