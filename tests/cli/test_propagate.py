"""`threefold propagate`: what it prints, and that mistakes come back quickly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from threefold.cli.propagate import propagate
from threefold.cohorts.cohort import Cohort
from threefold.errors import CohortError, ExperimentError

from ..balls import write_balls

QUICK = ["size=[12,12,12]", "epochs=0", "affine_steps=3", "refinement_steps=2"]
app = typer.Typer()
app.command()(propagate)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return write_balls(tmp_path / "cohort", "ab", side=12)


def test_the_summary_counts_and_says_where_everything_is(cohort: Cohort, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(cohort.folder), "--out", str(out), "--atlases", "mean", *QUICK]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert f"{out}: structures propagated to 2 cases" in result.output
    assert "Dice with the mask: " in result.output
    assert "registered (mean of 2 cases)" in result.output
    assert "Dice with the reference structures: " in result.output
    assert "registered (mean of 1 case)" in result.output
    assert f"Next: threefold check {out}" in result.output
    # repeated, it finds what is there
    as_json = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    summary = json.loads(as_json.stdout)
    assert summary["propagated"] == 2
    assert summary["failed"] == {}
    assert summary["means"]["mask_dice"]["n"] == 2
    assert summary["means"]["mask_dice"]["mean"] > 0.8


def test_failures_are_named(cohort: Cohort, tmp_path: Path) -> None:
    arguments = [str(cohort.folder), "--out", str(tmp_path / "out"), *QUICK, "failure.min_gain=1"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "failed: a: local correlation changed by " in result.output
    assert (
        "Those that failed have no structures, so training leaves them out; their labels are in "
        in result.output
    )
    assert "failed" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_case_that_cannot_be_used_is_named_and_the_exit_status_is_1(cohort: Cohort, tmp_path: Path) -> None:
    cohort.cases[0].image.unlink()
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [str(cohort.folder), "--out", str(out), *QUICK])
    assert result.exit_code == 1
    assert f"{out}: structures propagated to 1 case" in result.output
    assert "failed: a: " in result.output
    assert "Skipped 1 case that could not be used. Correct the files or the table" in result.output
    as_json = CliRunner().invoke(app, [str(cohort.folder), "--out", str(out), *QUICK, "--json"])
    assert as_json.exit_code == 1
    assert list(json.loads(as_json.stdout)["left_out"]) == ["a"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["epocs=3"], ExperimentError, "Did you mean 'epochs'"),
        (["--atlases", "maen"], CohortError, "there is no atlas 'maen'. Did you mean 'mean'"),
    ],
)
def test_mistakes_are_said(
    arguments: list[str], error: type[Exception], message: str, cohort: Cohort, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, [str(cohort.folder), "--out", str(tmp_path / "out"), *arguments])
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_mistakes_import_nothing_heavy(cohort: Cohort) -> None:
    script = (
        "import sys, typer\n"
        "from threefold.cli.propagate import propagate\n"
        "app = typer.Typer(); app.command()(propagate)\n"
        "try:\n    app()\nexcept (SystemExit, Exception) as error:\n    print(error)\n"
        "print([m for m in ('torch', 'pandas', 'scipy', 'matplotlib', 'lightning') if m in sys.modules])"
    )
    for arguments in (["--help"], [str(cohort.folder), "--out", "x", "--atlases", "maen"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
