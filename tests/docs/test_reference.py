"""The generated pages of the reference say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"

_spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize(
    "name", ["experiment.md", "cohort.md", "propagation.md", "chain.md", "study.md", "cli.md", "api.md"]
)
def test_page_is_current(name: str) -> None:
    path = DOCS / "reference" / name
    assert path.read_text() == generate.pages()[path], f"{path.name} is old: run `python docs/generate.py`"
