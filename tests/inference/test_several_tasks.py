"""A network of several tasks: each has columns and masks of its own, by its name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from threefold.cohorts.cohort import Cohort, write_cohort
from threefold.core.outputs import Outputs
from threefold.errors import RunError
from threefold.experiment import Experiment
from threefold.images.reading import read_label_map
from threefold.images.writing import write_nifti
from threefold.inference.cases import predict_cases
from threefold.inference.evidence import Explainer
from threefold.inference.predictor import Predictor
from threefold.partials import _remove_abandoned

from .conftest import AFFINE, make_experiment, make_slice, make_spec, write_run

SPEC = make_spec(
    targets={
        "stage": {"kind": "class", "classes": ["early", "late"]},
        "findings": {"kind": "multilabel", "classes": ["any", "rare"]},
        "weeks": {"kind": "number", "unit": "weeks"},
        "oedema": {"kind": "mask", "values": [7], "outside": [0, 9]},
    }
)
TASKS: dict[str, object] = {
    "classification": {},
    "stage": {"kind": "classification", "target": "stage"},
    "findings": {"kind": "multilabel"},
    "weeks": {"kind": "regression"},
    "segmentation": {},
    "oedema": {"kind": "segmentation", "target": "oedema"},
}
THRESHOLDS = {"classification": 0.3, "stage": 0.9}


def experiment_of() -> Experiment:
    fields = make_experiment().model_dump()
    selection = {"selection": {"metric": "loss"}}
    return Experiment.model_validate({**fields, "tasks": TASKS, "training": selection})


class Fixed(nn.Module):
    """The same answers for any image; segments what is bright, and as oedema what is dark."""

    def forward(self, image: Tensor) -> Outputs:
        def of(*values: float) -> Tensor:
            return torch.tensor([values] * len(image))

        bright = image[:, :1] - 0.5
        return Outputs(
            {
                "classification": of(0.0, -0.2),
                "stage": of(0.0, 1.0),
                "findings": of(2.0, -3.0),
                "weeks": of(31.5),
                "segmentation": torch.cat([-bright, bright], dim=1),
                "oedema": torch.cat([bright, -bright], dim=1),
            }
        )


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """A case of which everything is known, and one of which nothing is."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    rows = []
    for k in range(2):
        write_nifti(folder / f"{k}.nii", make_slice(k), AFFINE)
        rows.append({"case_id": f"c{k}", "patient_id": f"p{k}", "site": "a", "image": f"{k}.nii"})
    oedema = np.where(make_slice(0) < 50, 7, 9).astype(np.uint8)
    oedema[:, :5] = 0
    write_nifti(folder / "o.nii", oedema, AFFINE)
    write_nifti(folder / "m.nii", (make_slice(0) > 50).astype(np.uint8), AFFINE)
    rows[0] |= {"label": "yes", "stage": "early", "findings_any": 1, "weeks": 30.0}
    rows[0] |= {"mask": "m.nii", "oedema": "o.nii"}
    return write_cohort(folder, SPEC, rows)


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    folder = write_run(tmp_path / "run", experiment_of(), SPEC, None)
    folder.write_status(state="finished", thresholds=THRESHOLDS)
    return replace(Predictor.from_run(folder.path), network=Fixed())


def logistic(value: float) -> float:
    return 1 / (1 + float(np.exp(-value)))


def test_each_question_has_its_columns_and_its_truth(cohort: Cohort, tmp_path: Path) -> None:
    found = predict_cases(Fixed(), experiment_of(), cohort, None, masks=tmp_path / "masks")
    known, unknown = (found.cases.loc[k] for k in range(2))
    assert known["classification.probability_yes"] == pytest.approx(logistic(-0.2))
    assert known["stage.probability_late"] == pytest.approx(logistic(1))
    assert known["findings.probability_any"] == pytest.approx(logistic(2))
    assert known["findings.probability_rare"] == pytest.approx(logistic(-3))
    assert known["weeks.predicted"] == unknown["weeks.predicted"] == 31.5
    assert (known["classification.label"], known["stage.label"]) == ("yes", "early")
    assert (unknown["classification.label"], unknown["stage.label"]) == ("", "")
    assert (known["findings.truth_any"], known["findings.truth_rare"]) == (1, "")
    assert known["weeks.truth"] == 30
    assert np.isnan(unknown["weeks.truth"])
    assert not [name for name in found.cases if name.startswith("probability_")]
    for task, path in (("segmentation", "m.nii"), ("oedema", "o.nii")):
        inside = read_label_map(cohort.folder / path).array == (1 if task == "segmentation" else 7)
        assert known[f"{task}.mask_truth_voxels"] == inside.sum()
        written = read_label_map(tmp_path / "masks" / task / "c0.nii.gz").array
        assert known[f"{task}.mask_predicted_voxels"] == (written > 0).sum()
        assert known[f"{task}.mask_overlap_voxels"] == ((written > 0) & inside).sum()
        assert np.isnan(unknown[f"{task}.mask_truth_voxels"])
    assert found.structures["structure"].tolist() == ["segmentation.union", "oedema.union"] * 2


def test_a_folder_of_predictions_has_them_by_task(
    predictor: Predictor, cohort: Cohort, tmp_path: Path
) -> None:
    found = list(predictor.predict(cohort, tmp_path / "out"))
    first = found[0]
    assert (first.probabilities, first.decision, first.mask) == ({}, None, None)
    assert {*first.masks} == {"segmentation", "oedema"}
    table = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("case_id")
    # By the threshold of each: 0.45 is above 0.3, and 0.73 below 0.9.
    assert table.loc["c0", "classification.decision"] == "yes"
    assert table.loc["c0", "stage.decision"] == "early"
    assert table.loc["c0", "weeks.predicted"] == 31.5
    assert table.loc["c0", "findings.probability_any"] == pytest.approx(logistic(2))
    assert not [name for name in table if "truth" in name or name.endswith("label")]
    for task in ("segmentation", "oedema"):
        path = table.loc["c0", f"{task}.mask"]
        assert path == f"masks/{task}/c0.nii.gz"
        assert (read_label_map(tmp_path / "out" / path).array == first.masks[task]).all()
    left = tmp_path / "out" / "masks" / "oedema" / ".c0.nii.gz.999999999.partial"
    left.touch()  # by a process that was killed
    _remove_abandoned.cache_clear()
    assert list(predictor.predict(cohort, tmp_path / "out")) == []  # all of it is there
    assert not left.exists()


def test_each_of_two_classes_needs_its_threshold(predictor: Predictor, tmp_path: Path) -> None:
    status = tmp_path / "run" / "status.json"
    content = json.loads(status.read_text())
    del content["thresholds"]["stage"]
    status.write_text(json.dumps(content))
    with pytest.raises(RunError, match="has no threshold"):
        Predictor.from_run(tmp_path / "run")


def test_the_class_question_to_explain_may_be_named(predictor: Predictor, cohort: Cohort) -> None:
    assert Explainer.of(predictor, cohort, None).question.head == "classification"
    assert Explainer.of(predictor, cohort, None, task="stage").question.classes == ("early", "late")
    assert Explainer.of(predictor, cohort, None, task="label").question.head == "classification", "its target"
    with pytest.raises(RunError, match=r"no classification task 'weeks'.*It has classification, stage"):
        Explainer.of(predictor, cohort, None, task="weeks")
