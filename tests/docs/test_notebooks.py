"""The notebooks run, and what they show is what they were last run to show, but for numbers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from threefold.cli.app import main

from ..conftest import ROOT, blank_figures

_spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
assert _spec is not None
assert _spec.loader is not None
notebooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(notebooks)


_run = subprocess.run


def run_here(command: list[str], **options: Any) -> Any:
    """Do what `python -m threefold ...` does in this process, which has imported everything."""
    if command[1:3] != ["-m", "threefold"]:
        return _run(command, **options)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", command[2:])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code, command
    return None


def kinds(outputs: list[dict[str, Any]]) -> list[set[str]]:
    return [{*output.get("data", {output["output_type"]: ""})} for output in outputs]


@pytest.mark.parametrize("path", notebooks.notebooks(), ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_did(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", run_here)
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    with blank_figures():
        found = list(notebooks.executed(content, tmp_path))
    assert [kinds(outputs) for outputs in found] == [kinds(cell["outputs"]) for cell in code]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert any(cell["outputs"] for cell in code)
