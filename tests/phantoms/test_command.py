"""`threefold phantom head-ct` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from threefold.cli.phantom import phantom
from threefold.cohorts.cohort import read_cohort
from threefold.errors import CohortError, UsageError
from threefold.phantoms.head_parameters import CaseParameters
from threefold.phantoms.parameters_file import read_parameters

SMALL = ["--patients", "1", "--external-patients-per-site", "1", "--slices", "1", "2", "size=96"]


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(phantom, ["head-ct", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_makes_a_cohort_and_names_the_next_command(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    text = _run(str(out), *SMALL, "--seed", "3")
    cohort = read_cohort(out)
    assert len(cohort.sites) == 11
    assert f"{len(cohort.cases)} slices of 11 patients from 11 sites" in text
    assert f"threefold check {out}" in text
    assert read_parameters(out, CaseParameters)[0].acquisition.size == 96


def test_json_tells_the_whole_specification(tmp_path: Path) -> None:
    options = ["--preset", "demo", "--shortcut", "0.5", "--external-shortcut", "reversed", "--json"]
    result = json.loads(_run(str(tmp_path / "cohort"), *SMALL, *options, "noise=0.25", "sites=5"))
    assert result["sites"] == 5
    assert result["spec"]["shortcut"] == 0.5
    assert result["spec"]["external_shortcut"] == "reversed"
    assert result["spec"]["noise"] == 0.25
    assert result["spec"]["hematoma_volume"] == [30.0, 75.0]  # the demo's
    assert result["masks"] < result["cases"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["nosie=2"], UsageError, "Did you mean 'noise'"),
        (["noise"], UsageError, "expected KEY=VALUE"),
        (["--shortcut", "2"], UsageError, "shortcut"),
        (["marker_density=[20, 40]"], UsageError, "expected it within"),
    ],
)
def test_mistakes_are_named_and_nothing_is_left(
    arguments: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "cohort"
    with pytest.raises(error, match=message):
        CliRunner().invoke(phantom, ["head-ct", str(out), *arguments], catch_exceptions=False)
    assert not out.exists()


def test_a_folder_with_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CohortError, match="not empty"):
        CliRunner().invoke(phantom, ["head-ct", str(tmp_path), *SMALL], catch_exceptions=False)
    assert (tmp_path / "mine.txt").read_text() == "mine"
