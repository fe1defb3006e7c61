"""A finished run says how far its predictions can be trusted, and keeps saying it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from threefold.cohorts.cohort import Cohort
from threefold.errors import RunError
from threefold.inference.calibration import read_calibration
from threefold.inference.out_of_distribution import read_features
from threefold.inference.predictor import UNCALIBRATED, Predictor
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_run
from threefold.training.run import finish_early

Finished = tuple[Cohort, RunFolder]
TRUST = {"calibrated_probability_yes", "prediction_set", "mask_volume_low", "mask_volume_high"}


def test_calibration_and_features_belong_to_the_run(finished: Finished) -> None:
    cohort, run = finished
    calibration, features = read_calibration(run.calibration), read_features(run.features)
    assert calibration is not None
    assert features is not None
    known = {case.case_id for case in cohort.cases if case.split == "validation" and case.label is not None}
    assert calibration.diagnoses["classification"].cases == len(known)
    assert "fewer than 5" in calibration.no_distances
    assert {*calibration.volumes["segmentation"]} == {"mm2"}
    assert len(features.features) == sum(case.split == "train" for case in cohort.cases)
    listed = run.settings.read_text()
    assert run.calibration.name in listed
    assert run.features.name in listed
    table = pd.read_csv(run.predictions)
    assert {*TRUST, "out_of_distribution"} <= {*table}
    assert {*table["prediction_set"]} == {"no | yes"}  # of two patients
    assert np.allclose(table["mask_volume"], table["mask_predicted_voxels"])  # 1 mm2 a pixel


def test_predict_says_it_of_new_images(finished: Finished, tmp_path: Path) -> None:
    cohort, run = finished
    shutil.copy(cohort.cases[0].image, tmp_path / "x.png")
    predictor = Predictor.from_run(run.path)
    assert any("need 9 validation patients" in line for line in predictor.limits)
    (one,) = predictor.predict(tmp_path / "x.png", tmp_path / "out")
    assert one.prediction_set == ("no", "yes")
    assert sum(one.calibrated.values()) == pytest.approx(1)
    assert one.volume_interval is not None
    assert one.volume_interval.unit == "mm2"
    assert one.volume_interval.high is None
    assert one.out_of_distribution is not None
    assert one.out_of_distribution.flag is None  # of four validation cases there is no threshold
    row = pd.read_csv(tmp_path / "out" / "predictions.csv").iloc[0]
    assert {*row.index} >= TRUST
    assert row["coverage"] == 0.9
    assert row["calibrated_probability_yes"] == pytest.approx(one.calibrated["yes"])
    assert pd.isna(row["out_of_distribution"])


def test_a_run_of_an_earlier_version_predicts_as_before_and_says_so(finished: Finished) -> None:
    cohort, run = finished
    before = next(iter(Predictor.from_run(run.path).predict(cohort.cases[0].image)))
    for path in (run.calibration, run.features, run.settings):
        path.unlink()
    predictor = Predictor.from_run(run.path)
    assert predictor.limits == (UNCALIBRATED,)
    (one,) = predictor.predict(cohort.cases[0].image)
    assert one.probabilities == before.probabilities
    assert not one.calibrated
    assert not one.prediction_set
    assert one.volume_interval is None
    assert evaluate_run(run).evaluation.find("coverage") is not None  # of the table, as it is


@pytest.mark.parametrize("name", ["calibration.json", "features.safetensors"])
def test_another_calibration_is_refused_and_finish_makes_it_anew(finished: Finished, name: str) -> None:
    cohort, run = finished
    path = run.path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"    ")
    with pytest.raises(RunError, match=rf"{name}: is not what was written"):
        Predictor.from_run(run.path)
    finish_early(run.path, cohort)
    assert path.read_bytes() == whole
    path.unlink()
    with pytest.raises(RunError, match=rf"{name}: expected the file"):
        Predictor.from_run(run.path)


def test_the_report_has_calibration_and_coverage_by_site(finished: Finished) -> None:
    _, run = finished
    report = evaluate_run(run)
    text = (run.tables / "trust.md").read_text()
    assert "Calibration slope, calibrated" in text
    assert "nominal coverage 90%" in text
    coverage = report.evaluation.find("coverage")
    assert coverage is not None
    assert coverage.value == 1
