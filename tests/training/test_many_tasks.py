"""Six tasks by name on one network: trained, stopped and resumed, evaluated, and asked for predictions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from threefold.api import compare
from threefold.cohorts.cohort import Cohort
from threefold.csv_tables import as_numbers, read_frame
from threefold.errors import RunError
from threefold.images.reading import read_label_map
from threefold.inference.predictor import Predictor
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_run
from threefold.runs.probe import probe_run
from threefold.training.run import train

from ..conftest import blank_figures
from .conftest import MANY_TASKS, stopped_in_second_epoch

MakeExperiment = Callable[..., Any]
COLUMNS = {
    "density": ("label", "probability_low", "probability_high"),
    "side": ("label", "probability_left", "probability_middle", "probability_right"),
    "signs": ("truth_edge", "truth_dot", "probability_edge", "probability_dot"),
    "age": ("truth", "predicted"),
    "square": ("mask_truth_voxels", "mask_predicted_voxels", "mask_overlap_voxels"),
    "spot": ("mask_truth_voxels", "mask_predicted_voxels", "mask_overlap_voxels"),
}
METRICS = {
    "density": ("auc", "average_precision", "balanced_accuracy"),
    "side": ("auc", "average_precision", "balanced_accuracy"),
    "signs": ("auc", "average_precision"),
    "square": ("dice",),
    "spot": ("dice",),
}
MASKS = ("square", "spot")


def test_six_tasks_train_resume_evaluate_and_predict(
    many_targets: Cohort, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    experiment = make_experiment(epochs=2, tasks=MANY_TASKS, selection={"metric": "square.dice"})
    whole = train(experiment, many_targets, tmp_path / "whole")
    cut = tmp_path / "cut"
    with stopped_in_second_epoch():
        train(experiment, many_targets, cut)
    assert len(read_frame(cut / "metrics.csv")) == 1
    resumed = train(experiment, many_targets, cut, resume=True)
    for name in ("weights", "predictions", "structures"):
        one, other = (getattr(run, name).read_bytes() for run in (whole, resumed))
        assert hashlib.sha256(one).digest() == hashlib.sha256(other).digest(), name
    assert resumed.read_status() == whole.read_status()

    _has_a_history_by_task(whole)
    _predicts_by_task(whole, many_targets)
    _evaluates_by_task(whole)
    _answers_by_task(whole, many_targets, tmp_path / "answers")
    _is_probed_and_compared_by_task(whole)


def _has_a_history_by_task(run: RunFolder) -> None:
    history = read_frame(run.metrics)
    for task in MANY_TASKS:
        assert history[f"train_loss_{task}"].astype(float).gt(0).all()
        assert history[f"validation_loss_{task}"].astype(float).gt(0).all()
    named = [f"validation_{task}.{metric}" for task, metrics in METRICS.items() for metric in metrics]
    assert {*named, "validation_mae", "validation_rmse", "validation_r2"} <= {*history.columns}
    best = run.read_status()["best_value"]
    assert best == pytest.approx(history["validation_square.dice"].astype(float).max())


def _predicts_by_task(run: RunFolder, cohort: Cohort) -> None:
    """The table has each task's columns, the truth is the cohort's, and masks lie in a folder each."""
    table = read_frame(run.predictions).set_index("case_id")
    answers = [f"{task}.{name}" for task, names in COLUMNS.items() for name in names]
    assert [name for name in table if name in answers] == answers
    calibrated = {"density.prediction_set", "signs.prediction_set_dot", "age.interval_low"}
    assert {*calibrated, "square.mask_volume_low", "spot.mask_volume_high"} <= {*table.columns}
    told = pd.read_csv(cohort.folder / "cases.csv", dtype=str, keep_default_na=False).set_index("case_id")
    told = told.loc[table.index]
    for column, own in (("density.label", "density"), ("side.label", "side")):
        assert table[column].tolist() == told[own].tolist()
    for name in ("edge", "dot"):
        assert table[f"signs.truth_{name}"].astype(str).tolist() == told[f"signs_{name}"].tolist()
    ages = pd.to_numeric(table["age.truth"], errors="coerce").to_numpy(float)
    np.testing.assert_array_equal(ages, pd.to_numeric(told["age"], errors="coerce"))
    assert (ages > 0).sum() < len(table)  # not known of some
    for task in MASKS:
        for case, row in table[table["part"] == "test"].iterrows():
            found = read_label_map(run.masks / task / f"{case}.png").array > 0
            assert int(row[f"{task}.mask_predicted_voxels"]) == found.sum()
            path = told[task][case]
            if path:
                truth = read_label_map(cohort.folder / path).array > 0
                assert float(row[f"{task}.mask_truth_voxels"]) == truth.sum()
                assert float(row[f"{task}.mask_overlap_voxels"]) == (truth & found).sum()


def _evaluates_by_task(run: RunFolder) -> None:
    with blank_figures():
        report = evaluate_run(run)
    assert [table.title for table in report.tasks] == list(COLUMNS)
    for task in COLUMNS:
        assert (run.path / "tasks" / task / "tables/metrics.csv").is_file()
    folder = run.path / "tasks/signs"
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {
        "tables",
        "results.json",
        "edge",
        "dot",
    }
    assert (run.path / "tasks/age/figures/agreement.png").is_file()
    assert "Mean absolute error (weeks)" in (run.path / "tasks/age/tables/metrics.md").read_text()
    rows = read_frame(run.path / "tasks/age/tables/metrics.csv").set_index(["group", "metric"])
    table = read_frame(run.predictions)
    known = table[(table["part"] == "test") & (table["age.truth"].notna()) & (table["age.truth"] != "")]
    error = known["age.predicted"].astype(float) - known["age.truth"].astype(float)
    assert float(rows.loc[("all", "mae"), "value"]) == pytest.approx(error.abs().mean())


def _is_probed_and_compared_by_task(run: RunFolder) -> None:
    of_all = probe_run(run)
    assert "The run has several diagnoses (density, side): name one with --task" in " ".join(of_all.notes)
    asked = probe_run(run, task="side")
    assert {table.name for table in asked.tables} == {"side-calibration_temperature", "side-probes"}
    assert "label" in (run.tables / "side-probes.md").read_text()
    with pytest.raises(RunError, match=r"has no classification task 'sied'.*'side'"):
        probe_run(run, task="sied")
    table = read_frame(run.predictions)
    test = table[table["part"] == "test"]
    error = (as_numbers(test["age.predicted"]) - as_numbers(test["age.truth"])).abs()
    of_itself = compare(run.path, run.path, "age.mae")
    assert of_itself.first.value == pytest.approx(error.mean())
    assert of_itself.change.value == 0
    low = test[test["density.label"] == "low"]
    found = as_numbers(low["density.probability_low"]) >= run.read_status()["thresholds"]["density"]
    assert compare(run.path, run.path, "density.sensitivity").first.value == pytest.approx(found.mean())


def _answers_by_task(run: RunFolder, cohort: Cohort, out: Path) -> None:
    """New images get the answers that the table of predictions has, without truth, each at its threshold."""
    predictor = Predictor.from_run(run.path)
    assert {*predictor.thresholds} == {"density"}  # of two classes
    table = read_frame(run.predictions).set_index("case_id")
    found = {one.case_id: one for one in predictor.predict(cohort, out)}
    assert {*found} == {case.case_id for case in cohort.cases}
    written = read_frame(out / "predictions.csv").set_index("case_id")
    assert not [name for name in written if "truth" in name or name.endswith("label")]
    for case in table.index:
        one = found[case]
        for task, names in COLUMNS.items():
            for name in names:
                if name.startswith("probability") or name == "predicted":
                    expected = float(table.loc[case, f"{task}.{name}"])
                    assert one.answers[f"{task}.{name}"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        low = one.answers["density.probability_low"]
        positive = low >= predictor.thresholds["density"]
        if not math.isclose(low, predictor.thresholds["density"], rel_tol=1e-4):
            assert written.loc[case, "density.decision"] == ("low" if positive else "high")
        for task in MASKS:
            assert written.loc[case, f"{task}.mask"] == f"masks/{task}/{case}.png"
            mask = read_label_map(out / "masks" / task / f"{case}.png").array
            np.testing.assert_array_equal(mask > 0, one.masks[task] > 0)
