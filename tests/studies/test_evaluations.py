"""Runs, other cohorts and tables are evaluated from predictions; leaks are said."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from threefold.cli.app import main
from threefold.cohorts.cohort import read_cohort
from threefold.errors import ImageError, RunError
from threefold.evaluation.predictions import read_predictions
from threefold.experiment import EvaluationSpec
from threefold.experiments import read_experiment
from threefold.reporting.results import read_results
from threefold.reporting.run_report import choose_examples, comparison
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_run, evaluate_run_on, evaluate_table


def _call(*arguments: str, code: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["threefold", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == code


def test_a_run_is_evaluated_from_its_predictions_alone(run: RunFolder, tmp_path: Path) -> None:
    moved = RunFolder(tmp_path / "moved")
    shutil.copytree(run.path, moved.path)
    moved.weights.unlink()
    described = json.loads(moved.cohort.read_text())
    moved.settings.unlink(missing_ok=True)
    moved.cohort.write_text(json.dumps({**described, "folder": str(tmp_path / "gone")}))
    report = evaluate_run(moved)
    here = evaluate_run(run)
    pd.testing.assert_frame_equal(report.evaluation.table, here.evaluation.table)
    assert report.evaluation.threshold == pytest.approx(run.read_status()["threshold"])
    # Only the pictures of cases need the scans.
    assert {p.name for p in here.figures} - {p.name for p in report.figures} == {"examples.png"}
    assert all(path.stat().st_size > 0 for path in (*here.tables, *here.figures))


def test_numbers_are_of_test_cases_only(run: RunFolder) -> None:
    table = pd.read_csv(run.predictions)
    auc = evaluate_run(run).evaluation.find("auc")
    assert auc is not None
    assert auc.n == (table["part"] == "test").sum() < len(table)
    dice = evaluate_run(run).evaluation.find("dice")
    assert dice is not None
    assert dice.n == (table["mask_truth_voxels"].notna() & (table["part"] == "test")).sum()


def test_an_unfinished_run_is_refused(run: RunFolder, tmp_path: Path) -> None:
    unfinished = RunFolder(tmp_path / "unfinished")
    shutil.copytree(run.path, unfinished.path)
    unfinished.predictions.unlink()
    with pytest.raises(RunError, match=r"has no predictions\.csv \(state: "):
        evaluate_run(unfinished)


def test_another_cohort_is_predicted_first(run: RunFolder, cohort_folder: Path, tmp_path: Path) -> None:
    mine = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, mine.path)
    # The same cases again: the training cases among them leak, and their numbers are marked.
    report = evaluate_run_on(mine, read_cohort(cohort_folder))
    folder = mine.path / "evaluations" / cohort_folder.name
    again = pd.read_csv(folder / "predictions.csv").set_index("case_id")
    known = pd.read_csv(mine.predictions).set_index("case_id")
    columns = [name for name in known.columns if name.startswith("probability_")]
    assert set(known.index) < set(again.index)
    pd.testing.assert_frame_equal(again.loc[known.index, columns], known[columns], rtol=1e-5)
    assert report.evaluation.leaks
    assert (folder / "tables" / "metrics.md").is_file()


def _unreadable(path: Path, *_: object) -> None:
    raise ImageError(f"{path}: can't be read.")


def test_cases_that_cant_be_predicted_are_left_out_and_named(
    run: RunFolder, cohort_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that can't be read and one that is no CT: the others are evaluated."""
    mine, other = RunFolder(tmp_path / "run"), tmp_path / "other"
    shutil.copytree(run.path, mine.path)
    shutil.copytree(cohort_folder, other)
    first, second, *_ = read_cohort(other).cases
    first.image.write_bytes(b"no image")
    data = nibabel.load(second.image)
    nibabel.save(nibabel.Nifti1Image(np.asarray(data.dataobj) * 0 + 7, data.affine), second.image)
    with pytest.MonkeyPatch.context() as patch:  # a mask that is read again for a picture
        patch.setattr("threefold.reporting.run_report.read_mask", _unreadable)
        report = evaluate_run_on(mine, read_cohort(other))
    _call("evaluate", str(mine.path), "--cohort", str(other), code=1)
    printed = capsys.readouterr()
    assert f"2 of {len(read_cohort(other).cases)} cases are left out" in printed.out
    assert f"failed: {first.case_id}: " in printed.err
    tables = mine.path / "evaluations" / "other" / "tables"
    assert set(pd.read_csv(tables / "failed.csv")["case_id"]) == {first.case_id, second.case_id}
    facts = read_results(tables.parent)["evaluate"].facts
    assert {*facts["left_out"]} == {first.case_id, second.case_id}
    there = pd.read_csv(mine.path / "evaluations" / "other" / "predictions.csv")["case_id"]
    assert not {first.case_id, second.case_id} & {*there}
    assert len(there) == len(read_cohort(other).cases) - 2
    said = "\n".join(report.evaluation.notes)
    assert "2 of " in said
    assert f"{first.case_id}: " in said
    assert "the image is constant" in said


def test_a_cohort_of_other_patients_does_not_leak(
    run: RunFolder, cohort_folder: Path, tmp_path: Path
) -> None:
    mine = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, mine.path)
    other = tmp_path / "other"
    shutil.copytree(cohort_folder, other)
    table = pd.read_csv(other / "cases.csv", dtype=str)
    table.assign(patient_id="x" + table["patient_id"]).to_csv(other / "cases.csv", index=False)
    assert not evaluate_run_on(mine, read_cohort(other)).evaluation.leaks


def test_a_cohort_of_the_same_name_never_replaces_another_ones_evaluation(
    run: RunFolder, cohort_folder: Path, tmp_path: Path
) -> None:
    mine = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, mine.path)
    first = evaluate_run_on(mine, read_cohort(cohort_folder))
    again = evaluate_run_on(mine, read_cohort(cohort_folder))
    pd.testing.assert_frame_equal(again.evaluation.table, first.evaluation.table)
    other = tmp_path / cohort_folder.name
    shutil.copytree(cohort_folder, other)
    lines = (other / "cases.csv").read_text().splitlines()
    (other / "cases.csv").write_text("\n".join(lines[:-1]) + "\n")
    before = first.tables[0].read_bytes()
    with pytest.raises(RunError, match="holds the evaluation of another cohort"):
        evaluate_run_on(mine, read_cohort(other))
    assert first.tables[0].read_bytes() == before


def test_anyones_table(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "case_id": [f"c{i}" for i in range(8)],
            "label": ["no", "yes"] * 4,
            "probability_no": [0.9, 0.2, 0.6, 0.7, 0.8, 0.1, 0.7, 0.4],
        }
    )
    table["probability_yes"] = 1 - table["probability_no"]
    table.to_csv(tmp_path / "theirs.csv", index=False)
    report = evaluate_table(tmp_path / "theirs.csv", tmp_path / "out", EvaluationSpec(replicates=50))
    found = report.evaluation.find("auc")
    assert found is not None
    assert found.value == pytest.approx(14.5 / 16)  # 0.7 against 0.6 is the wrong way, 0.3 twice is a tie
    assert (tmp_path / "out" / "tables" / "metrics.csv").is_file()


def test_examples_show_truth_beside_prediction(run: RunFolder, cohort_folder: Path) -> None:
    cohort = read_cohort(cohort_folder)
    predictions = read_predictions(run.predictions)
    preprocessing = read_experiment(run.experiment).data.preprocessing
    rows = choose_examples(predictions, cohort, cohort.spec, preprocessing, run.masks)
    assert set(rows) == {"internal", "external"}
    for example in rows["internal"]:
        assert example.image.shape == preprocessing.size
        assert example.truth is not None
        assert example.predicted is not None
    assert all(example.truth is None for example in rows["external"])


def test_names_that_come_twice_are_told_apart(run: RunFolder) -> None:
    report = evaluate_run(run)
    assert list(comparison([("a", report), ("b", report), ("a", report)])) == ["a", "b", "a (2)"]


def test_command_compares_runs_and_prints_json(
    run: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    second = tmp_path / "second"
    shutil.copytree(run.path, second)
    _call("evaluate", str(run.path), str(second))
    printed = capsys.readouterr().out
    assert "Variants by site group" in printed
    assert "internal F1" in printed
    assert "external AUC" in printed
    _call("evaluate", str(run.path), "--json")
    rows = json.loads(capsys.readouterr().out)["run"]["numbers"]
    assert {row["metric"] for row in rows} >= {"auc", "dice", "psnr", "brier"}


@pytest.mark.parametrize(
    "arguments", [["table.csv", "run"], ["table.csv", "--cohort", "c"], ["r", "--out", "o"]]
)
def test_command_refuses_mixed_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _call("evaluate", *arguments, code=2)
    assert "error:" in capsys.readouterr().err


def test_an_evaluation_that_stops_leaves_nothing_in_the_way(
    run: RunFolder, cohort_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, mine.path, ignore=shutil.ignore_patterns("evaluations"))
    evaluations = mine.path / "evaluations"
    earlier = evaluations / cohort_folder.name
    (earlier / "tables").mkdir(parents=True)
    (earlier / "cohort.json").write_text(
        '{"name": "x", "fingerprint": "of a cohort that was corrected since"}'
    )

    def stops(*_: object, masks: Path, **__: object) -> None:
        masks.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("threefold.inference.cases.predict_cases", stops)
    for _ in range(2):  # what never became whole is in no one's way
        with pytest.raises(KeyboardInterrupt):
            evaluate_run_on(mine, read_cohort(cohort_folder))
        assert [path.name for path in evaluations.iterdir() if path.is_dir()] == [cohort_folder.name]
        assert sorted(path.name for path in earlier.iterdir()) == ["cohort.json", "tables"]
