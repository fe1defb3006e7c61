"""`threefold predict`, as a program runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import typer
from typer.testing import CliRunner

from threefold.cli.predict import predict
from threefold.cohorts.cohort import CohortSpec
from threefold.errors import RunError
from threefold.experiment import Experiment
from threefold.experiments import experiment_yaml
from threefold.images.writing import write_nifti
from threefold.networks.build import build_network
from threefold.run import RunFolder

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
    folder.cohort.write_text(json.dumps({"name": spec.name, "spec": spec.model_dump(mode="json")}))
    folder.write_status(state="finished", threshold=0.25)
    torch.manual_seed(0)
    safetensors.torch.save_file(build_network(experiment, spec).state_dict(), folder.weights)
    return folder.path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(3):
        array = np.random.default_rng(k).integers(0, 80, (30, 40)).astype(np.int16)
        write_nifti(folder / f"{k}.nii.gz", array, np.diag([-1.0, -1.0, 5.0, 1.0]))
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
    write_nifti(tmp_path / "sagittal.nii.gz", np.zeros((30, 40, 3), np.int16), affine)
    write_nifti(tmp_path / "axial.nii.gz", np.zeros((30, 40, 3), np.int16), np.eye(4))
    files, out = [str(tmp_path / f"{name}.nii.gz") for name in ("sagittal", "axial")], tmp_path / "out"
    result = CliRunner().invoke(app, [str(run), *files, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["predictions"]
    assert [Path(row["mask"]) for row in rows] == [
        *[out / "masks" / "sagittal.nii.gz"] * 3,
        *[out / "masks" / "axial.nii.gz"] * 3,
    ]
    said = "its slices along the third axis are sagittal, not axial"
    assert [row["notes"] for row in rows] == [[said]] * 3 + [[]] * 3
    assert result.stderr.count(said) == 1


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


def test_not_a_run_is_an_error_of_its_own(images: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path), str(images), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, RunError)
    assert not (tmp_path / "out").exists()


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert "threefold predict my-run" in result.output
