"""The program as a whole: its version, schemas, recipes, and errors that are printed alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import threefold
from threefold.cli.app import app, main
from threefold.experiments import recipe_names


def _output(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_version() -> None:
    assert _output("--version") == f"threefold {threefold.__version__}\n"


@pytest.mark.parametrize(
    ("subject", "key"), [("experiment", "tasks"), ("cohort", "site_groups"), ("study", "variants")]
)
def test_schemas_are_json(subject: str, key: str) -> None:
    assert key in json.loads(_output("schema", subject))["properties"]


def test_recipes_are_listed_and_shown_with_changes() -> None:
    assert [row["name"] for row in json.loads(_output("recipes", "list", "--json"))] == [*recipe_names()]
    shown = ("recipes", "show", "hematoma/swin-cls", "training.epochs=3")
    assert yaml.safe_load(_output(*shown))["training"]["epochs"] == 3
    assert json.loads(_output(*shown, "--json")) == yaml.safe_load(_output(*shown))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("recipes", "show", "hematoma/swin-cl"), 2, "Did you mean 'hematoma/swin-cls'?"),
        (("check", "nowhere"), 1, "found nothing"),
    ],
)
def test_errors_are_printed_alone_with_their_code(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["threefold", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert said in printed.err
