"""A training that stopped: its folder says how far it came, and `finish` makes a run of its best epoch."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from threefold.cli.finish import finish
from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.cohorts.failures import read_failures
from threefold.cohorts.splits import read_split
from threefold.errors import ImageError, RunError
from threefold.evaluation.predictions import probability_column, read_predictions, write_predictions
from threefold.experiment.networks import InitialWeightsSpec
from threefold.inference.predictor import Predictor
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_weights, read_run_predictions
from threefold.runs.finished import finish_status
from threefold.studies.reports import report
from threefold.training import loop
from threefold.training.checkpoints import load_checkpoint
from threefold.training.run import finish_early, train

from .conftest import build_experiment, write_cases

EPOCHS = 3

finishing = typer.Typer(pretty_exceptions_enable=False)
finishing.command()(finish)


@pytest.fixture
def stopped(
    cohort: Cohort, make_experiment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunFolder]:
    """Train until a file of an epoch is about to be written, and stop there."""

    def stop(name: str, epoch: int, error: type[BaseException] = KeyboardInterrupt) -> RunFolder:
        run = RunFolder(tmp_path / "run")

        def checkpoint(path: Path, content: Any) -> None:
            if path.name == name and content["epoch"] == epoch:
                raise error
            save(path, content)

        def history(path: Path, rows: Any) -> None:
            if path.name == name and len(rows) == epoch:
                raise error
            write(path, rows)

        save, write = loop.save_checkpoint, loop.write_history
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", checkpoint)
            patch.setattr(loop, "write_history", history)
            with pytest.raises(error):
                train(make_experiment(epochs=EPOCHS), cohort, run.path)
        return run

    return stop


def _epochs(run: RunFolder) -> list[int]:
    with run.metrics.open(newline="") as stream:
        return [int(row["epoch"]) for row in csv.DictReader(stream)]


def test_metrics_and_status_are_whole_after_a_stop_in_the_last_epoch(
    stopped: Callable[..., RunFolder], cohort: Cohort, make_experiment: Callable[..., Any]
) -> None:
    run = stopped("metrics.csv", EPOCHS)
    assert _epochs(run) == [1, 2, 3]
    assert run.read_status()["epoch"] == EPOCHS
    # As a kill leaves it: nothing is written after last.ckpt.
    rows = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text("".join(rows[:-1]))
    run.write_status(**{**run.read_status(), "state": "running", "epoch": EPOCHS - 1})
    train(make_experiment(epochs=EPOCHS), cohort, run.path, resume=True)
    assert _epochs(run) == [1, 2, 3]


def test_a_stopped_training_is_finished_from_its_best_epoch_and_says_so(
    stopped: Callable[..., RunFolder], cohort: Cohort, tmp_path: Path
) -> None:
    left = stopped("metrics.csv", 2)
    for state, said in (("interrupted", "interrupted"), ("failed", "failed"), ("running", "killed")):
        run = RunFolder(tmp_path / state)
        shutil.copytree(left.path, run.path)
        run.write_status(**{**run.read_status(), "state": state})
        finish_early(run.path, cohort)
        status, best = run.read_status(), load_checkpoint(run.best_checkpoint)
        assert status["state"] == "finished"
        assert status["stopped_early"] == {"epochs": 2, "of": EPOCHS, "state": said}
        assert status["best_epoch"] == best["epoch"]
        assert status["epoch"] == len(_epochs(run)) == 2
        for name, value in load_file(run.weights).items():
            assert torch.equal(value, best["network"][name]), name
        assert len(read_predictions(run.predictions).table) == 8  # validation and test


def test_every_report_says_after_how_many_epochs(stopped: Callable[..., RunFolder], cohort: Cohort) -> None:
    run = stopped("best.ckpt", 2)
    finish_early(run.path, cohort)
    sentence = "after 1 of 3 epochs"
    assert any(sentence in note for note in read_run_predictions(run).notes)
    page = report(run.path)
    assert sentence in page.read_text(encoding="utf-8")


def test_a_kill_between_the_two_checkpoints_of_an_epoch_can_be_finished(
    stopped: Callable[..., RunFolder], cohort: Cohort
) -> None:
    run = stopped("last.ckpt", 1)
    assert not run.last_checkpoint.exists()
    finish_early(run.path, cohort)
    assert run.read_status()["stopped_early"]["epochs"] == 1


def test_a_training_without_a_whole_epoch_is_refused(
    stopped: Callable[..., RunFolder], cohort: Cohort
) -> None:
    run = stopped("best.ckpt", 1)
    with pytest.raises(RunError, match="no checkpoint of a whole epoch"):
        finish_early(run.path, cohort)
    assert run.read_status()["state"] == "interrupted"


def test_a_finished_run_is_left_alone_and_its_damaged_predictions_are_made_anew(
    cohort: Cohort, make_experiment: Callable[..., Any], tmp_path: Path
) -> None:
    run = train(make_experiment(epochs=1), cohort, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    finish_early(run.path, cohort)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before
    whole, status = run.predictions.read_bytes(), run.read_status()
    run.predictions.write_bytes(whole.replace(b"0.4", b"0.5"))
    finish_early(run.path, cohort)
    assert run.predictions.read_bytes() == whole
    assert run.read_status() == status  # it was trained to the end


def test_a_case_that_went_bad_while_training_costs_itself_alone(
    finished: tuple[Cohort, RunFolder], tmp_path: Path
) -> None:
    cohort, run = finished
    moved = read_cohort(Path(shutil.copytree(cohort.folder, tmp_path / "moved")))
    parts = read_split(run.split).parts
    whole = read_predictions(run.predictions).table.set_index("case_id")
    gone = next(case for case in moved.cases if parts[case.case_id] == "validation")
    cut = next(case for case in moved.cases if parts[case.case_id] == "test")
    before = {case.case_id: case.image.read_bytes() for case in (gone, cut)}
    gone.image.unlink()
    cut.image.write_bytes(before[cut.case_id][:-40])
    run.predictions.unlink()

    result = CliRunner().invoke(finishing, [str(run.path), "--cohort", str(moved.folder)])
    assert result.exit_code == 1, result.output
    assert f"failed: {gone.case_id}: " in result.stderr
    assert "Skipped 2 cases that could not be used; failed.csv lists them" in result.stderr
    failed = read_failures(run.failed)
    assert {*failed} == {gone.case_id, cut.case_id}
    assert "no such file" in failed[gone.case_id]
    left = read_predictions(run.predictions).table.set_index("case_id")
    assert {*left.index} == {*whole.index} - {*failed}
    assert left["probability_yes"].tolist() == whole.loc[left.index, "probability_yes"].tolist()
    assert run.read_status()["state"] == "finished"
    notes = "\n".join(read_run_predictions(run).notes)
    assert "2 of 8 cases are left out" in notes
    assert f"failed: {cut.case_id}: " in notes

    for case in (gone, cut):
        case.image.write_bytes(before[case.case_id])
    result = CliRunner().invoke(finishing, [str(run.path), "--cohort", str(moved.folder)])
    assert result.exit_code == 0, result.output
    assert not run.failed.exists()
    assert read_predictions(run.predictions).table.set_index("case_id").equals(whole)


def test_a_part_of_which_no_case_is_left_ends_a_run_and_loses_nothing(
    finished: tuple[Cohort, RunFolder], tmp_path: Path
) -> None:
    cohort, run = finished
    moved = read_cohort(Path(shutil.copytree(cohort.folder, tmp_path / "moved")))
    parts = read_split(run.split).parts
    for case in moved.cases:
        if parts[case.case_id] == "test":
            case.image.write_bytes(b"no image")
    run.predictions.unlink()
    with pytest.raises(ImageError, match=r"test part: none of its cases can be used\.\n  failed: p"):
        finish_early(run.path, moved)
    assert run.weights.is_file()
    assert finish_early(run.path, cohort).predictions.is_file()


def test_a_run_of_before_the_checksums_is_evaluated_and_finished(
    cohort: Cohort, make_experiment: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(make_experiment(epochs=1), cohort, tmp_path / "run")
    for path in (run.best_checkpoint, run.last_checkpoint):
        content = {**torch.load(path, weights_only=True), "format": 1}
        content.pop("history" if path == run.best_checkpoint else "", None)
        torch.save(content, path)
    for path in run.path.glob("*.sha256"):
        path.unlink()
    assert len(read_run_predictions(run).table) == 8
    assert "predictions.csv has no checksum" in caplog.text
    run.predictions.unlink()
    finish_early(run.path, cohort)
    assert run.predictions.is_file()
    assert "best.ckpt has no checksum" in caplog.text


def test_another_cohort_is_refused(
    stopped: Callable[..., RunFolder], make_cohort: Callable[..., Cohort], tmp_path: Path
) -> None:
    run = stopped("best.ckpt", 2)
    described = json.loads(run.cohort.read_text())
    with pytest.raises(RunError, match="was started on cohort"):
        finish_early(run.path, make_cohort("other", patients=14))
    assert json.loads(run.cohort.read_text()) == described
    shutil.rmtree(run.path)
    with pytest.raises(RunError, match="not a run folder"):
        finish_early(run.path, make_cohort("another"))


DECIDING = ("status.json", "cohort.json", "experiment.yaml", "split.csv", "trained_on.json", "weights.json")


@pytest.mark.parametrize("name", [*DECIDING, "settings.sha256"])
def test_a_changed_setting_of_a_finished_run_is_refused_by_name(
    finished: tuple[Cohort, RunFolder], name: str
) -> None:
    _, run = finished
    path = run.path / name
    Predictor.from_run(run.path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"3", b"2") + b" ")
    readers = [Predictor.from_run, lambda path: read_run_predictions(RunFolder(path))]
    for read in readers[: 1 if name == "weights.json" else 2]:
        with pytest.raises(RunError, match=r"expected .*settings\.sha256.*opy the run folder again"):
            read(run.path)
    path.write_bytes(whole)
    Predictor.from_run(run.path)


def test_settings_that_changed_are_no_start_and_no_end(
    finished: tuple[Cohort, RunFolder], make_experiment: Callable[..., Any], tmp_path: Path
) -> None:
    cohort, run = finished
    whole = run.split.read_bytes()
    run.split.write_bytes(whole + b"\n")
    start = {"path": str(run.path)}
    experiment = make_experiment(epochs=1)
    experiment = experiment.model_copy(update={"initial_weights": InitialWeightsSpec.model_validate(start)})
    with pytest.raises(RunError, match=r"split\.csv: is not what was written"):
        train(experiment, cohort, tmp_path / "new")
    with pytest.raises(RunError, match=r"split\.csv: is not what was written"):
        finish_early(run.path, cohort)
    run.split.write_bytes(whole)
    whole = run.status.read_bytes()
    changed = json.loads(whole)
    run.write_status(**{**changed, "threshold": changed["threshold"] / 2})
    with pytest.raises(RunError, match=r"status\.json: is not what was written"):
        read_run_predictions(run)
    finish_early(run.path, cohort)
    assert run.status.read_bytes() == whole


@pytest.mark.parametrize("name", ["metrics.csv", "failed.csv"])
def test_what_stands_beside_the_numbers_is_tied_to_them(
    finished: tuple[Cohort, RunFolder], name: str
) -> None:
    cohort, run = finished
    path = run.path / name
    whole = path.read_bytes() if path.is_file() else None
    path.write_bytes((whole or b"case_id,error\np0-0,gone\n") + b"\n")
    with pytest.raises(RunError, match=rf"{name}: .*threefold finish"):
        read_run_predictions(run)
    finish_early(run.path, cohort)
    assert (path.read_bytes() if path.is_file() else None) == whole
    read_run_predictions(run)


def test_the_predictions_of_another_run_are_refused_and_made_anew(finished: tuple[Cohort, RunFolder]) -> None:
    cohort, run = finished
    own = read_predictions(run.predictions).table
    columns = [probability_column(name) for name in ("no", "yes")]
    others = own.dropna(axis="columns", how="all").assign(
        **{columns[0]: own[columns[1]], columns[1]: own[columns[0]]}
    )
    write_predictions(others, run.predictions)  # with a checksum of its own
    with pytest.raises(RunError, match=r"predictions\.csv: is not what was written.*threefold finish"):
        read_run_predictions(run)
    finish_early(run.path, cohort)
    assert read_run_predictions(run).table[columns].equals(own[columns])


def test_a_run_of_two_classes_without_a_threshold_predicts_nothing(
    finished: tuple[Cohort, RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    _, run = finished
    whole, settings = run.status.read_bytes(), run.settings.read_bytes()
    run.settings.unlink()
    Predictor.from_run(run.path)
    assert "has no settings.sha256" in caplog.text
    for status in ({"threshold": None}, {}):
        run.write_status(state="finished", **status)
        with pytest.raises(RunError, match=r"status\.json: has no threshold"):
            Predictor.from_run(run.path)
    run.status.write_bytes(whole)
    run.settings.write_bytes(settings)


@pytest.fixture(scope="module")
def of_first_epoch(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two epochs, of which the first is called the best, that predicts with the last."""
    folder = tmp_path_factory.mktemp("two")
    cohort = write_cases(folder / "cohort")
    selection = {"metric": "loss", "weights": "last"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THREEFOLD_CACHE", str(folder / "cache"))
        for module in ("loop", "history"):
            patch.setattr(f"threefold.training.{module}.best_row", lambda *_: 0)
        return train(build_experiment(epochs=2, selection=selection), cohort, folder / "run")


def test_best_and_last_weights_are_kept_and_chosen_by_name(of_first_epoch: RunFolder) -> None:
    run = of_first_epoch
    assert not run.other_weights("last").exists()
    epochs = {"last": load_checkpoint(run.last_checkpoint), "best": load_checkpoint(run.best_checkpoint)}
    assert [epochs[name]["epoch"] for name in epochs] == [2, 1]
    described = json.loads(run.other_weights("best").with_suffix(".json").read_text())
    thresholds = {"last": run.read_status()["threshold"], "best": described["threshold"]}
    for name, checkpoint in epochs.items():
        predictor = Predictor.from_run(run.path, weights=name)  # type: ignore[arg-type]
        assert predictor.threshold == thresholds[name]
        for key, value in predictor.network.state_dict().items():
            assert torch.equal(value, checkpoint["network"][key])
    assert Predictor.from_run(run.path).version == Predictor.from_run(run.path, weights="last").version
    assert Predictor.from_run(run.path).version != Predictor.from_run(run.path, weights="best").version


def test_the_other_weights_are_evaluated_on_the_test_cases(of_first_epoch: RunFolder) -> None:
    run = of_first_epoch
    own = evaluate_weights(run, "last")
    assert own.tables[0].parent == run.tables
    other = evaluate_weights(run, "best")
    assert other.tables[0].parent == run.path / "evaluations" / "cohort-best" / "tables"
    cases = [
        read_predictions(path.parent / "predictions.csv").table
        for path in (run.tables, other.tables[0].parent)
    ]
    tested = {case for case, part in read_split(run.split).parts.items() if part == "test"}
    assert {*cases[1]["case_id"]} == tested
    assert {*cases[0].loc[cases[0]["part"] == "test", "case_id"]} == tested


def test_weights_that_are_not_kept_are_refused(finished: tuple[Cohort, RunFolder]) -> None:
    _, run = finished  # of one epoch, which is best and last
    assert Predictor.from_run(run.path, weights="last").threshold == run.read_status()["threshold"]
    status = run.read_status() | {"epoch": 2}
    finish_status(run, **{name: value for name, value in status.items() if name != "state"})
    with pytest.raises(RunError, match="keeps no weights of its last epoch"):
        Predictor.from_run(run.path, weights="last")
