"""Names of files that every system can hold."""

from __future__ import annotations

import pytest

from threefold.file_names import portable, unportable


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
