"""The package as it is installed: what a wheel holds, that it runs alone, and what is said of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import threefold
from threefold.cli.extras import EXTRAS
from threefold.experiments import recipe_names

from .conftest import ROOT

FOR_DEVELOPERS = {"test", "lint", "docs", "dev"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(content["project"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy: what an earlier build left beside the sources would be packed, too."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "source" / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), "./source"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_a_wheel_holds_what_is_no_code_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"threefold-{threefold.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith("threefold-")}
    source = ROOT / "src"
    files = [path for path in (source / "threefold").rglob("*") if path.is_file()]
    expected = {path.relative_to(source).as_posix() for path in files if "__pycache__" not in path.parts}
    assert held == expected
    assert "threefold/py.typed" in held
    assert any(name.endswith(".css") for name in held)
    assert sum("/recipes/" in name and name.endswith(".yaml") for name in held) == len(recipe_names())


def test_a_wheel_runs_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "threefold", *arguments]
        told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        return told.stdout

    assert run("--version").splitlines()[0] == f"threefold {threefold.__version__}"
    assert "hematoma/demo" in run("recipes", "list")
    where = [sys.executable, "-c", "import threefold; print(threefold.__file__)"]
    shown = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(shown.stdout.strip()).is_relative_to(tmp_path)


def test_extras_are_listed_where_they_are_declared(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    assert {*EXTRAS} == {*extras} - FOR_DEVELOPERS
    page = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)` \|", page, flags=re.MULTILINE) == [*extras]


def test_a_citation_is_of_this_version(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == threefold.__version__
    assert citation["license"] == project["license"]
    assert [one["name"] for one in citation["authors"]] == [one["name"] for one in project["authors"]]
