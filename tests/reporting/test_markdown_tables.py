"""Tables that were written as Markdown are read as they were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from threefold.reporting.table import Table, from_markdown, markdown

LETTERS = st.characters(categories=("L", "N", "P"), include_characters="|", exclude_characters="\\#")
TEXT = st.text(LETTERS, min_size=1, max_size=12)
CELL = st.one_of(st.just(""), TEXT.filter(lambda text: not set(text) <= set("-:")))


@st.composite
def tables(draw: st.DrawFn) -> Table:
    width = draw(st.integers(1, 4))
    row = st.tuples(*[CELL] * width)
    return Table(
        draw(TEXT),
        tuple(draw(TEXT.filter(lambda text: not set(text) <= set("-:"))) for _ in range(width)),
        tuple(draw(st.lists(row.filter(any), max_size=3))),
        tuple(draw(st.lists(TEXT.filter(lambda text: not text.startswith("|")), max_size=2))),
    )


@given(st.lists(tables(), min_size=1, max_size=3))
def test_reading_is_the_inverse_of_writing(several: list[Table]) -> None:
    assert from_markdown("\n".join(map(markdown, several))) == tuple(several)


def test_what_others_write_is_read_as_far_as_it_goes() -> None:
    text = (
        "# Attention\n\nTwo lines\nof prose.\n\n| a | b |\n|:--|--:|\n| 1 |\n| 1 | 2 | 3 |\n\n"
        "### Empty\nOnly words.\n"
    )
    first, second = from_markdown("Before all.\n" + text)[1:]
    assert first == Table("Attention", ("a", "b"), (("1", ""), ("1", "2")), ("Two lines of prose.",))
    assert second == Table("Empty", (), (), ("Only words.",))
    assert from_markdown("Before all.\n" + text)[0] == Table("", (), (), ("Before all.",))
    assert from_markdown("") == ()
