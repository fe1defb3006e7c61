"""A command that fails at a write, or for want of memory, leaves when repeated what an unbroken one does.

A spread-out sample of the faults; `benchmarks/fault_points.py` tries all of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, which POSIX alone does"),
]
COUNTS = {
    "train": 2,
    "finish": 1,
    "evaluate": 1,
    "evaluate --cohort": 1,
    "report": 2,
    "import": 3,
    "phantom": 2,
    "export": 2,
    "predict": 2,
}
"""Few, where a command takes a second or two."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """The harness, and what the commands need, made once: a cohort, a stopped and a finished run."""
    base = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.setenv("THREEFOLD_CACHE", str(base / "cache"))
        import faults

        faults.prepare(base / "prepared", base / "home")
        yield faults, base
    shutil.rmtree(base)


@pytest.mark.parametrize("name", COUNTS)
def test_a_command_that_failed_at_a_write_is_repeated(name: str, prepared: tuple[Any, Path]) -> None:
    faults, base = prepared

    def asked(unbroken: Any) -> Sequence[Any]:
        found: Sequence[Any] = faults.spread(faults.all_faults(unbroken), COUNTS[name])
        return found

    assert faults.check(faults.COMMANDS[name], base / "prepared", base / "home", asked) > 0


@pytest.mark.parametrize("name", ["report", "phantom", "predict"])
def test_a_command_that_ran_out_of_memory_is_repeated(name: str, prepared: tuple[Any, Path]) -> None:
    faults, base = prepared

    def asked(unbroken: Any) -> Sequence[Any]:
        found: Sequence[Any] = faults.memory_faults(unbroken, 1)
        return found

    assert faults.check(faults.COMMANDS[name], base / "prepared", base / "home", asked) > 0


def test_every_command_of_the_harness_is_tried(prepared: tuple[Any, Path]) -> None:
    assert COUNTS.keys() == prepared[0].COMMANDS.keys()
