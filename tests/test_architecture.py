"""The house: imports point one way, and heavy or foreign libraries stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "threefold"

# A room may import rooms of its own storey and of those below.
STOREYS = (
    {"errors", "experiment", "validation", "experiments", "run", "topology", "__init__"},
    {"images"},
    {"cohorts"},
    {"phantoms"},
    {"networks", "evaluation"},
    {"atlases"},
    {"tasks"},
    {"inference", "reporting"},
    {"training"},
    {"studies"},
    {"cli", "__main__"},
)
STOREY = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}

FOREIGN = {
    "lightning": {"cli", "training", "inference"},
    "pydicom": {"images"},
    "nibabel": {"images"},
    "typer": {"cli"},
    "matplotlib": {"reporting"},
}
NO_TORCH = ("experiment", "experiments", "validation", "errors", "run", "topology", "evaluation", "phantoms")


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    room = _room(path)
    assert room in STOREY, f"{room} has no storey: add it to STOREYS and to docs/explanation/house.md"
    for line, module in _imports(path):
        top, _, rest = module.partition(".")
        if top == "threefold" and rest:
            other = rest.split(".")[0]
            assert STOREY[other] <= STOREY[room], f"{path.name}:{line}: {room} may not import {other}"
        assert room in FOREIGN.get(top, {room}), f"{path.name}:{line}: {room} may not import {top}"
        if room in NO_TORCH:
            assert top not in ("torch", "lightning"), f"{path.name}:{line}: {room} may not import {top}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_rooms_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420, "a file that grows past about 400 lines wants two rooms"


HEAVY = ("torch", "lightning", "pandas", "scipy", "sklearn", "skimage", "matplotlib")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["recipes", "list"],
        ["check", "--help"],
        ["train", "--help"],
        ["recipes", "show", "hematoma/swin-cls"],
        ["train", "hematoma/swin-cls", "--cohort", "x", "--out", "y", "training.epcohs=3"],
    ],
    ids=" ".join,
)
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys, threefold.cli.app as app\n"
        f"sys.argv = ['threefold', *{arguments!r}]\n"
        "try:\n    app.main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1] == "HEAVY []", result.stdout + result.stderr
