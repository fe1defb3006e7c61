"""`threefold train`: exit codes, lines when piped, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from threefold.cli.train import train
from threefold.cohorts.cohort import Cohort
from threefold.errors import ExperimentError, RunError, UsageError
from threefold.experiments import experiment_yaml
from threefold.training import loop
from threefold.training.finish import finish

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(train)


@pytest.fixture
def command(cohort: Cohort, make_experiment: Callable[..., Any], tmp_path: Path) -> Callable[..., Result]:
    file = tmp_path / "mini.yaml"
    file.write_text(experiment_yaml(make_experiment(epochs=2)))

    def run(*arguments: str) -> Result:
        fixed = [str(file), "--cohort", str(cohort.folder), "--out", str(tmp_path / "run")]
        return CliRunner().invoke(app, [*fixed, *arguments])

    return run


def test_a_line_an_epoch_when_piped_and_where_the_results_are(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    result = command("training.epochs=1")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("epoch")]
    assert len(lines) == 1
    assert "epoch 1/1  loss " in lines[0]
    assert "validation loss " in lines[0]
    assert f"threefold evaluate {tmp_path / 'run'}" in result.stdout
    assert "GPU" not in result.output
    assert "lightning" not in result.output.lower()


def test_json_is_all_of_standard_output(command: Callable[..., Result], tmp_path: Path) -> None:
    result = command("--json", "training.epochs=1")
    status = json.loads(result.stdout)
    assert (status["run"], status["state"], status["epoch"]) == (str(tmp_path / "run"), "finished", 1)


def test_usage_errors_have_their_own_exit_code(command: Callable[..., Result]) -> None:
    for arguments, error in [
        (["training.epcohs=3"], ExperimentError),
        (["--devices", "4096"], UsageError),
    ]:
        result = command(*arguments)
        assert isinstance(result.exception, error)
        assert result.exception.exit_code == 2


def test_a_second_run_into_the_folder_fails_and_resume_says_that_it_is_finished(
    command: Callable[..., Result],
) -> None:
    assert command("training.epochs=1").exit_code == 0
    refused = command("training.epochs=1")
    assert isinstance(refused.exception, RunError)
    assert refused.exception.exit_code == 1
    assert "nothing to do" in command("training.epochs=1", "--resume").stderr


def test_a_test_case_that_went_bad_while_training_is_left_out_at_the_end(
    command: Callable[..., Result], cohort: Cohort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = next(case for case in cohort.cases if case.split == "test")

    def damaging(*arguments: Any) -> float | None:
        bad.image.unlink()
        return finish(*arguments)

    monkeypatch.setattr("threefold.training.run.finish", damaging)
    result = command("training.epochs=1")
    assert result.exit_code == 1, result.output
    assert f"failed: {bad.case_id}: " in result.stderr
    assert "best is 1 (" in result.stdout
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["epoch"]) == ("finished", 1)
    assert bad.case_id in (tmp_path / "run" / "failed.csv").read_text()
    assert command("training.epochs=1", "--resume").exit_code == 1  # nothing changed


def test_an_interrupt_says_how_to_go_on(
    command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", interrupt)
        result = command()
    assert result.exit_code == 130
    assert "before the first epoch was complete" in result.stderr
    assert "last complete epoch" not in result.stderr
    with monkeypatch.context() as patched:
        patched.setattr(loop, "write_history", interrupt)
        result = command("--resume")
    assert result.exit_code == 130
    assert "To resume from the last complete epoch: the same command with --resume" in result.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"
    assert command("--resume").exit_code == 0
