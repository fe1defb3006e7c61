"""`threefold predict`, as a program runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from threefold.cli.predict import predict
from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.trained_on import describe_training
from threefold.errors import RunError
from threefold.experiment import Experiment
from threefold.experiments import experiment_yaml
from threefold.images.reading import read_label_map
from threefold.images.writing import write_nifti
from threefold.inference.calibration import Calibration, write_calibration
from threefold.inference.output import Prediction, PredictionFolder
from threefold.run import RunFolder
from threefold.tasks.build import build_network

AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])

app = typer.Typer()
app.command()(predict)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    folder.path.mkdir()
    experiment = Experiment.model_validate(
        {
            "name": "tiny",
            "data": {"preprocessing": {"size": [56, 56]}},
            "network": {"kind": "swin-unet", "encoder": {"embed_dim": 6, "depths": [1, 1], "heads": [1, 2]}},
            "tasks": {"classification": {}, "segmentation": {}},
        }
    )
    spec = CohortSpec.model_validate(
        {
            "name": "heads",
            "modality": "ct",
            "dimensions": 2,
            "classes": ["no", "yes"],
            "mask": {},
            "intensity": {"unit": "HU", "window": [0, 80]},
        }
    )
    folder.experiment.write_text(experiment_yaml(experiment))
    described = {"name": spec.name, "fingerprint": "0", "folder": "?", "spec": spec.model_dump(mode="json")}
    folder.cohort.write_text(json.dumps(described))
    write_calibration(folder.calibration, Calibration(coverage=0.9))  # of no validation case
    folder.write_status(state="finished", threshold=0.25)
    torch.manual_seed(0)
    safetensors.torch.save_file(build_network(experiment, spec).state_dict(), folder.weights)
    cases = [Case(str(k), str(k), "a", tmp_path_factory.mktemp("seen") / "x.nii.gz") for k in range(3)]
    for k, case in enumerate(cases):
        write_nifti(case.image, make_slice(k), AFFINE)
    folder.trained_on.write_text(describe_training(cases, spec).model_dump_json())
    return folder.path


def make_slice(number: int) -> NDArray[np.int16]:
    """A slice that brightens from corner to corner, with a rectangle in it."""
    array = np.add.outer(np.arange(30), np.arange(40)).astype(np.int16)
    array[5 : 15 + number, 8:20] = 80
    return array


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(3):
        write_nifti(folder / f"{k}.nii.gz", make_slice(k), AFFINE)
    return folder


def test_table_and_masks(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [str(run), str(images), "--out", str(out), "--batch-size", "2"])
    assert result.exit_code == 0, result.output
    assert f"3 predictions in {out / 'predictions.csv'}; 0 inputs failed" in result.output
    table = pd.read_csv(out / "predictions.csv", dtype={"case_id": str})
    assert table["case_id"].tolist() == ["0", "1", "2"]
    assert (table["decision"] == np.where(table["probability_yes"] >= 0.25, "yes", "no")).all()
    assert all((out / mask).is_file() for mask in table["mask"])


def test_json_names_the_masks_and_what_was_noted(run: Path, tmp_path: Path) -> None:
    """A volume whose third axis runs right to left: its slices are sagittal, which is said once."""
    affine = np.array([[0, 0, -4.0, 0], [-1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    volume = np.stack([make_slice(k) for k in range(3)], axis=-1)
    write_nifti(tmp_path / "sagittal.nii.gz", volume, affine)
    write_nifti(tmp_path / "axial.nii.gz", volume, np.diag([-1.0, -1.0, 1.0, 1.0]))
    files, out = [str(tmp_path / f"{name}.nii.gz") for name in ("sagittal", "axial")], tmp_path / "out"
    result = CliRunner().invoke(app, [str(run), *files, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["predictions"]
    assert [Path(row["mask"]) for row in rows] == [
        *[out / "masks" / "sagittal.nii.gz"] * 3,
        *[out / "masks" / "axial.nii.gz"] * 3,
    ]
    said = "another plane than that of any training image (sagittal, there axial)"
    assert [row["notes"] for row in rows] == [[said]] * 3 + [[]] * 3
    assert result.stderr.count(said) == 1


def test_a_slice_of_a_volume_that_shows_nothing_is_named_in_its_row(run: Path, tmp_path: Path) -> None:
    volume = np.stack([make_slice(0), np.full((30, 40), -990), make_slice(2)], axis=-1)
    volume[::2, :, 1] += 5  # air, which the window hides
    write_nifti(tmp_path / "a.nii.gz", volume, AFFINE)
    arguments = [str(run), str(tmp_path / "a.nii.gz"), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["predictions"]
    assert ["blank" in " ".join(row["notes"]) for row in rows] == [False, True, False]
    assert [len(row["probabilities"]) for row in rows] == [2, 0, 2]
    assert [row["decision"] is None for row in rows] == [False, True, False]
    assert not read_label_map(tmp_path / "out" / "masks" / "a.nii.gz").array[..., 1].any()


def test_a_first_slice_without_a_diagnosis_leaves_the_columns_as_they_are(run: Path, tmp_path: Path) -> None:
    volumes = {"blank": [np.full((30, 40), 7), make_slice(1)], "whole": [make_slice(1), make_slice(2)]}
    headers = []
    for name, slices in volumes.items():
        write_nifti(tmp_path / f"{name}.nii.gz", np.stack(slices, axis=-1), AFFINE)
        out = tmp_path / f"out-{name}"
        result = CliRunner().invoke(app, [str(run), str(tmp_path / f"{name}.nii.gz"), "--out", str(out)])
        assert result.exit_code == 0, result.output
        headers.append((out / "predictions.csv").read_text().splitlines()[0])
    assert headers[0] == headers[1]


def test_a_bad_file_among_good_ones(run: Path, images: Path, tmp_path: Path) -> None:
    (images / "1.nii.gz").write_bytes(b"not an image")
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [str(run), str(images), "--out", str(out), "--json"])
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert [row["case_id"] for row in content["predictions"]] == ["0", "2"]
    assert [row["case_id"] for row in content["failures"]] == ["1"]
    assert content["threshold"] == 0.25
    assert "1.nii.gz" in result.stderr
    assert len(pd.read_csv(out / "predictions.csv")) == 2


def test_all_bad(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(run), str(tmp_path / "absent.nii"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "absent.nii: no such file" in result.stderr
    assert "0 predictions; 1 input failed" in result.stdout


def test_progress_lines_when_piped(run: Path, images: Path, tmp_path: Path) -> None:
    copies = [str(images / "0.nii.gz")]
    for k in range(39):
        copy = tmp_path / f"copy{k}.nii.gz"
        copy.write_bytes((images / "0.nii.gz").read_bytes())
        copies.append(str(copy))
    result = CliRunner().invoke(app, [str(run), *copies, "--out", str(tmp_path / "out")])
    assert result.stderr.splitlines() == [f"Predicting: {4 * k} of 40" for k in range(1, 11)]


def test_json_of_what_was_passed_over_and_of_a_second_call(run: Path, images: Path, tmp_path: Path) -> None:
    (images / "notes.txt").write_text("nothing")
    (images / "1.nii.gz").write_bytes(b"not an image")
    out = tmp_path / "out"
    arguments = [str(run), str(images), "--out", str(out), "--json"]
    first = CliRunner().invoke(app, arguments)
    (images / "1.nii.gz").write_bytes((images / "0.nii.gz").read_bytes())
    again = CliRunner().invoke(app, arguments)
    contents = [json.loads(result.stdout) for result in (first, again)]
    assert [result.exit_code for result in (first, again)] == [1, 0]
    assert [len(content["failures"]) for content in contents] == [1, 0]
    assert [row["case_id"] for row in contents[1]["predictions"]] == ["0", "1", "2"]
    kept = [row for row in contents[1]["predictions"] if row["case_id"] != "1"]
    assert kept == contents[0]["predictions"]
    for content, result in zip(contents, (first, again), strict=True):
        kinds = {"files of no known format": {"count": 1, "first": [str(images / "notes.txt")]}}
        assert content["passed_over"] == kinds
        assert "passed over: files of no known format (1)" in result.stderr


def test_a_run_of_an_earlier_version_says_what_is_not_known(run: Path, images: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(run, before)
    (before / "trained_on.json").unlink()
    result = CliRunner().invoke(app, [str(before), str(images), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    said = "what the run was trained on is not known"
    assert [note.startswith(said) for note in content["notes"]] == [True]
    assert all(row["notes"][-1].startswith(said) for row in content["predictions"])
    assert result.stderr.count(said) == 1


@pytest.mark.parametrize("how", ["signal", "interrupt"])
def test_a_stop_keeps_what_was_done_and_the_same_command_goes_on(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    out = tmp_path / "out"
    arguments = [str(run), str(images), "--out", str(out), "--batch-size", "1"]
    add = PredictionFolder.add
    with monkeypatch.context() as patch:

        def stopped(folder: PredictionFolder, number: int, prediction: Prediction) -> Prediction:
            if number == 2:
                if how == "interrupt":
                    raise KeyboardInterrupt
                os.kill(os.getpid(), signal.SIGTERM)
            return add(folder, number, prediction)

        patch.setattr(PredictionFolder, "add", stopped)
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == (130 if how == "interrupt" else 143)
    assert f"interrupted. Finished predictions are in {out}; repeat the command" in result.stderr
    table = pd.read_csv(out / "predictions.csv", dtype={"case_id": str})
    assert table["case_id"].tolist() == ["0", "1"]
    assert all((out / mask).is_file() for mask in table["mask"])
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "3 predictions in" in result.output
    assert len(pd.read_csv(out / "predictions.csv")) == 3


def test_not_a_run_is_an_error_of_its_own(images: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path), str(images), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, RunError)
    assert not (tmp_path / "out").exists()


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert "threefold predict my-run" in result.output
