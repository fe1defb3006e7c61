"""What validation cases say of predictions: fitted, written, read, and applied to a row of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from threefold.errors import RunError
from threefold.evaluation.calibration import with_temperature
from threefold.experiment import Experiment
from threefold.inference.calibration import (
    Calibration,
    fit_calibration,
    read_calibration,
    with_trust,
    write_calibration,
)
from threefold.inference.cases import CaseTables
from threefold.tasks.questions import Question, questions_of

from .conftest import make_experiment, make_spec

SPEC = make_spec(
    targets={
        "findings": {"kind": "multilabel", "classes": ["any", "rare"]},
        "weeks": {"kind": "number", "unit": "weeks"},
    }
)
CASES = 60


@pytest.fixture(scope="module")
def questions() -> tuple[Question, ...]:
    fields = make_experiment().model_dump()
    tasks = {
        "classification": {},
        "findings": {"kind": "multilabel"},
        "weeks": {"kind": "regression"},
        "segmentation": {},
    }
    selection = {"selection": {"metric": "loss"}}
    experiment = Experiment.model_validate({**fields, "tasks": tasks, "training": selection})
    return questions_of(experiment, SPEC)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Overconfident diagnoses, findings, numbers with an error of 2, masks a third too large."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1, CASES)
    yes = rng.random(CASES) < 1 / (1 + np.exp(-logits))
    said = 1 / (1 + np.exp(-3 * logits))
    weeks = rng.normal(30, 4, CASES)
    true = rng.uniform(0, 30, CASES)
    return pd.DataFrame(
        {
            "case_id": [f"c{k}" for k in range(CASES)],
            "patient_id": [f"p{k}" for k in range(CASES)],
            "label": np.where(yes, "yes", "no"),
            "probability_no": 1 - said,
            "probability_yes": said,
            "findings.truth_any": np.where(np.arange(CASES) % 5, yes.astype(float), np.nan),
            "findings.probability_any": said,
            "findings.truth_rare": 0.0,
            "findings.probability_rare": 0.01,
            "weeks.truth": weeks,
            "weeks.predicted": weeks + 2 * rng.choice([-1, 1], CASES),
            "mask_truth_voxels": 5,
            "mask_predicted_voxels": 5,
            "mask_overlap_voxels": 5,
            "mask_volume": true * 4 / 3,
            "mask_truth_volume": true,
            "mask_volume_unit": "mL",
        }
    )


@pytest.fixture(scope="module")
def fitted(table: pd.DataFrame, questions: tuple[Question, ...]) -> Calibration:
    return fit_calibration(table, questions, 0.9)


def test_each_answer_has_its_fit(fitted: Calibration) -> None:
    diagnosis = fitted.diagnoses["classification"]
    assert diagnosis.temperature is not None
    assert 2 < diagnosis.temperature < 5  # drawn at 3
    assert diagnosis.cases == CASES
    assert fitted.findings["findings"]["any"].cases == CASES - CASES // 5
    rare = fitted.findings["findings"]["rare"]
    assert rare.temperature is None
    assert "one class" in rare.why
    assert fitted.numbers["weeks"].spread == pytest.approx(2)
    assert fitted.numbers["weeks"].bound == pytest.approx(2)
    assert {*fitted.volumes["segmentation"]} == {"mL"}


def test_a_table_gets_columns_for_each_answer(
    table: pd.DataFrame, fitted: Calibration, questions: tuple[Question, ...]
) -> None:
    found = with_trust(CaseTables(table, pd.DataFrame()), fitted, None, questions)
    temperature = fitted.diagnoses["classification"].temperature
    raw = table[["probability_no", "probability_yes"]].to_numpy()
    np.testing.assert_allclose(
        found["calibrated_probability_yes"], with_temperature(raw, temperature or 0)[:, 1]
    )
    assert {*found["prediction_set"]} <= {"no", "yes", "no | yes"}
    right = [
        label in told.split(" | ")
        for label, told in zip(table["label"], found["prediction_set"], strict=True)
    ]
    assert np.mean(right) >= 0.9
    np.testing.assert_allclose(found["weeks.interval_high"] - found["weeks.predicted"], 2)
    assert (found["findings.calibrated_probability_rare"] == 0.01).all()
    assert {*found["findings.prediction_set_rare"]} == {"absent"}
    inside = found["mask_volume_low"].le(table["mask_truth_volume"]) & found["mask_volume_high"].ge(
        table["mask_truth_volume"]
    )
    assert inside.mean() >= 0.9
    assert {*found["out_of_distribution"]} == {""}
    assert found[[*table]].equals(table)


def test_with_few_patients_a_set_is_everything_which_is_said(
    table: pd.DataFrame, questions: tuple[Question, ...]
) -> None:
    few = fit_calibration(table.head(8), questions, 0.9)
    found = with_trust(CaseTables(table, pd.DataFrame()), few, None, questions)
    assert {*found["prediction_set"]} == {"no | yes"}
    assert found["weeks.interval_low"].isna().all()
    assert (found["mask_volume_low"] == 0).all()
    assert found["mask_volume_high"].isna().all()
    assert any("need 9 validation patients" in line and "weeks (8)" in line for line in few.limits())


def test_no_validation_case_and_a_unit_never_seen_are_no_error(
    table: pd.DataFrame, fitted: Calibration, questions: tuple[Question, ...]
) -> None:
    nothing = fit_calibration(pd.DataFrame(), questions, 0.9)
    assert with_trust(CaseTables(table, pd.DataFrame()), nothing, None, questions)[[*table]].equals(table)
    labelled = questions[-1]
    told = fitted.columns(labelled, {"mask_volume": 3.0, "mask_volume_unit": "voxels"})
    assert told == {"mask_volume_low": 0.0, "mask_volume_high": None}
    assert fitted.columns(questions[0], {}) == {}


def test_it_is_read_as_written_and_damage_is_refused(fitted: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    assert read_calibration(path) is None
    write_calibration(path, fitted)
    assert read_calibration(path) == fitted
    path.write_text(path.read_text().replace('"coverage": 0.9', '"coverage": 0.8'))
    with pytest.raises(RunError, match=r"calibration\.json: is not what was written"):
        read_calibration(path)
    path.write_text(json.dumps({"coverage": "high"}))
    with pytest.raises(RunError, match="coverage"):
        read_calibration(path)
