"""A run folder with a tiny network, images of every format, and a network whose answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from threefold.cohorts.cohort import Cohort, CohortSpec, write_cohort
from threefold.cohorts.trained_on import TrainedOn
from threefold.core.outputs import Outputs
from threefold.experiment import Experiment
from threefold.experiments import experiment_yaml
from threefold.images.writing import write_nifti
from threefold.inference.calibration import Calibration, write_calibration
from threefold.run import RunFolder
from threefold.tasks.build import build_network

AFFINE = np.diag([-0.5, -0.5, 4.0, 1.0])  # rows towards the left, columns towards posterior
SHAPE = (40, 30)


def make_experiment(**tasks: object) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "data": {"preprocessing": {"size": [56, 56]}},
            "network": {
                "kind": "swin-unet",
                "encoder": {"embed_dim": 6, "depths": [1, 1], "heads": [1, 2], "window": 7},
            },
            "tasks": tasks or {"classification": {}, "segmentation": {}, "reconstruction": {}},
        }
    )


def make_spec(unit: str = "HU", **more: object) -> CohortSpec:
    return CohortSpec.model_validate(
        {
            "name": "heads",
            "modality": "ct",
            "dimensions": 2,
            "classes": ["no", "yes"],
            "positive": "yes",
            "mask": {"name": "hematoma"},
            "intensity": {"unit": unit, "window": [0, 100]},
            "site_groups": {"internal": ["a"], "external": ["b"]},
            **more,
        }
    )


def make_trained_on(spec: CohortSpec, **changes: object) -> TrainedOn:
    """What a run says of images like those below: 0 to 100, 0.5 mm, of no stated modality."""
    pair, sides = (0.0, 100.0), spec.dimensions
    return TrainedOn.model_validate(
        {
            "cases": 4,
            "measured": 4,
            "formats": {"picture" if spec.intensity.unit == "grey" else "nifti": 4},
            "modalities": {},
            "units": {},
            "photometric": {},
            "bits": {},
            "spacing_mm": [(0.5, 1.0)] * sides,
            "extent_mm": [(12.0, 40.0)] * sides,
            "thickness_mm": None,
            "size": [(20.0, 60.0)] * sides,
            "intensities": dict.fromkeys(("low", "p1", "p50", "p75", "p99", "high"), pair)
            | {"air": (0.0, 0.0)},
            "mask_follows_label": None,
            **changes,
        }
    )


def write_run(path: Path, experiment: Experiment, spec: CohortSpec, threshold: float | None) -> RunFolder:
    folder = RunFolder(path)
    path.mkdir()
    folder.experiment.write_text(experiment_yaml(experiment))
    described = {"name": spec.name, "fingerprint": "0", "folder": "?", "spec": spec.model_dump(mode="json")}
    folder.cohort.write_text(json.dumps(described))
    folder.trained_on.write_text(make_trained_on(spec).model_dump_json())
    write_calibration(folder.calibration, Calibration(coverage=0.9))  # of no validation case
    folder.write_status(state="finished", threshold=threshold)
    torch.manual_seed(5)
    network = build_network(experiment, spec)
    safetensors.torch.save_file(network.state_dict(), folder.weights)
    folder.weights.with_suffix(".json").write_text(json.dumps({"version": "0.1.0"}))
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", make_experiment(), make_spec(), 0.3).path


def make_slice(seed: int, size: int = 9, shape: tuple[int, int] = SHAPE) -> NDArray[np.int16]:
    """A dark slice with one bright rectangle at a random place."""
    array = np.full(shape, 10, np.int16)
    row, column = np.random.default_rng(seed).integers(2, 18, 2)
    array[row : row + size, column : column + size] = 90
    return array


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """a.nii.gz and below/b.nii (slices), volume.nii.gz (5 of them), and files that are no images."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    write_nifti(folder / "a.nii.gz", make_slice(1), AFFINE)
    write_nifti(folder / "below" / "b.nii", make_slice(2), AFFINE)
    write_nifti(folder / "volume.nii.gz", np.stack([make_slice(10 + k) for k in range(5)], -1), AFFINE)
    (folder / "notes.txt").write_text("nothing")
    (folder / ".hidden.nii").write_text("nothing")
    return folder


class Threshold(nn.Module):
    """Segments what is brighter than 0.5; the probability of class 1 is the bright share of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, image: Tensor) -> Outputs:
        self.calls.append(len(image))
        bright = image[:, :1]
        share = (bright > 0.5).float().mean(dim=(1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        return Outputs(
            {
                "classification": torch.stack([(1 - share).log(), share.log()], dim=1),
                "segmentation": torch.cat([0.5 - bright, bright - 0.5], dim=1),
                "reconstruction": image + 0.1,
            }
        )


@pytest.fixture
def known() -> Threshold:
    return Threshold()


@pytest.fixture
def make_cohort(tmp_path: Path) -> Callable[..., Cohort]:
    """Six cases of three patients at two sites; cases 1, 3 and 5 have a mask, case 2 has no label."""

    def make(name: str = "cohort", **more: object) -> Cohort:
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for k in range(6):
            array = make_slice(20 + k)
            write_nifti(folder / f"{k}.nii.gz", array, AFFINE)
            row = {
                "case_id": f"case{k}",
                "patient_id": f"p{k // 2}",
                "site": "a" if k < 4 else "b",
                "image": f"{k}.nii.gz",
                "label": None if k == 2 else ("no", "yes")[k % 2],
                "shortcut": f"{k / 10}",
            }
            if k % 2:
                mask = array > 50
                mask[:, :15] = False  # so that the truth is not what the threshold finds
                write_nifti(folder / f"{k}_mask.nii.gz", mask, AFFINE)
                row["mask"] = f"{k}_mask.nii.gz"
            rows.append(row)
        return write_cohort(folder, make_spec(columns={"shortcut": "planted"}, **more), rows)

    return make
