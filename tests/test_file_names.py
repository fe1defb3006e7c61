"""Names of files that every system can hold."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from threefold.file_names import case_stem, portable, unportable
from threefold.paths import PathPart, is_path_part


@pytest.mark.parametrize(
    "stem", ["p01-2", "Ärztin 3", "a.b", "console", "com", "COM10", "volume#0", "x=1@2+3"]
)
def test_what_every_system_can_hold_stays(stem: str) -> None:
    assert unportable(stem) is None
    assert portable(stem) == stem


@pytest.mark.parametrize(
    ("stem", "why", "instead"),
    [
        ("CON", "a device", "_CON"),
        ("aux.1", "a device", "_aux.1"),
        ("Lpt1", "a device", "_Lpt1"),
        ("site:4", "no ':'", "site_4"),
        ("what?", "no '?'", "what_"),
        ("end.", "no dot or space at the end", "end"),
        ("end ", "no dot or space at the end", "end"),
        ("nul. ", "a device", "_nul"),
        ("...", "no dot or space at the end", "_"),
    ],
)
def test_what_windows_reserves_is_named_and_replaced(stem: str, why: str, instead: str) -> None:
    said = unportable(stem)
    assert said is not None
    assert said.startswith(why)
    assert portable(stem) == instead
    assert unportable(instead) is None


@given(st.text(max_size=300), st.text(max_size=300))
@example("CON", "con")
@example("a:b", "a?b")
@example("end.", "end")
@example("é" * 200, "é" * 199)
def test_files_of_any_case_have_a_name_of_their_own_everywhere(one: str, other: str) -> None:
    for case_id in (one, other):
        stem = case_stem(case_id)
        assert unportable(stem) is None
        assert len(stem.encode("utf-8", "surrogatepass")) <= 201
    assert (case_stem(one) == case_stem(other)) == (one == other)


def test_what_every_system_can_hold_names_its_files_itself() -> None:
    assert case_stem("Ärztin 3.b") == "Ärztin 3.b"


@pytest.mark.parametrize("name", ["CON", "nul", "Com1.x", "end."])
def test_what_windows_reserves_is_no_part_of_a_path(name: str) -> None:
    assert not is_path_part(name)
    with pytest.raises(ValidationError, match="can't name a file on Windows"):
        TypeAdapter(PathPart).validate_python(name)
