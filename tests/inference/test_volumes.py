"""Volumes through a run: label maps on the input's own grid, however it lies, and large ones whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from torch import Tensor, nn
from typer.testing import CliRunner

from threefold.cli.app import app
from threefold.cohorts.cohort import CohortSpec
from threefold.core.outputs import Outputs
from threefold.errors import ImageError
from threefold.experiment import Experiment
from threefold.images.geometry import Image
from threefold.images.writing import write_nifti
from threefold.inference import sliding
from threefold.inference.predictor import Predictor

from ..images.conftest import write_dicom
from .conftest import write_run

OBLIQUE = np.array([[0.75, 0.12, -0.1, -20], [-0.1, 0.8, 0.07, 4], [0.08, -0.06, 1.1, 7], [0, 0, 0, 1.0]])
SHAPE = (20, 24, 16)


def experiment_of(**preprocessing: object) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny-3d",
            "data": {"preprocessing": {"size": [32, 32, 32], **preprocessing}},
            "network": {
                "kind": "cascade",
                "segmenter": {"channels": [2, 4]},
                "classifier": {"blocks": [1], "growth": 2, "stem": 2},
            },
            "tasks": {"classification": {}, "segmentation": {"target": "structures"}},
        }
    )


MEANING = CohortSpec.model_validate(
    {
        "name": "vessels",
        "modality": "mri",
        "dimensions": 3,
        "classes": ["x", "y", "z"],
        "structures": ["low", "high"],
        "intensity": {"window": [0, 100]},
    }
)


class Levels(nn.Module):
    """Labels 1 and 2 by brightness; the first class's logit is the mean of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Outputs:
        self.calls.append(tuple(image.shape))
        mean = image.flatten(1).mean(dim=1)
        labels = [-20 * (image - level).abs() for level in (0.0, 0.5, 1.0)]
        return Outputs(
            {
                "classification": torch.stack([mean, mean * 0, mean * 0], 1),
                "segmentation": torch.cat(labels, dim=1),
            }
        )


def blocks(shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    """Two off-centre blocks that tell every axis and direction from every other: labels 1 and 2."""
    array = np.zeros(shape, np.int16)
    array[3:9, 4:14, 2:8] = 50
    array[9:16, 4:8, 6:13] = 100
    return array


def labels_of(array: NDArray[np.int16]) -> NDArray[np.uint8]:
    return (array // 50).astype(np.uint8)


def stored_as(axes: tuple[int, ...], flips: tuple[bool, ...]) -> Image:
    """The blocks on an oblique grid, in another order of the file's axes."""
    array, affine = blocks().transpose(axes), OBLIQUE.copy()
    affine[:3, :3] = OBLIQUE[:3, :3][:, axes]
    for axis in np.flatnonzero(flips):
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
        array = np.flip(array, axis)
    return Image(np.ascontiguousarray(array), affine, Path("x.nii.gz"))


def dice(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    return 2 * float(((a > 0) & (a == b)).sum()) / float((a > 0).sum() + (b > 0).sum())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "fitted", experiment_of(), MEANING, None).path


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment = experiment_of(spacing=0.8, size=[16, 16, 16])
    return write_run(tmp_path_factory.mktemp("runs") / "spaced", experiment, MEANING, None).path


def with_levels(run: Path) -> tuple[Predictor, Levels]:
    network = Levels()
    return replace(Predictor.from_run(run), network=network), network


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product([False, True], repeat=3)))
def test_label_maps_lie_where_the_volume_does(
    fitted: Path, tmp_path: Path, axes: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    predictor, _ = with_levels(fitted)
    image = stored_as(axes, flips)
    write_nifti(tmp_path / "x.nii.gz", image.array, image.affine)
    (prediction,) = predictor.predict(tmp_path / "x.nii.gz", tmp_path / "out")
    mask = nibabel.load(tmp_path / "out" / "masks" / "x.nii.gz")
    assert_allclose(mask.affine, image.affine, atol=1e-5)
    assert_array_equal(np.asarray(mask.dataobj), prediction.mask)
    assert dice(np.asarray(mask.dataobj), labels_of(image.array)) > 0.9  # a voxel's share at the border
    # And in the patient: the blocks' voxels, wherever the file keeps them, are the oblique grid's.
    found = np.argwhere(np.asarray(mask.dataobj) == 2) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    truth = np.argwhere(labels_of(blocks()) == 2) @ OBLIQUE[:3, :3].T + OBLIQUE[:3, 3]
    assert_allclose(found.mean(axis=0), truth.mean(axis=0), atol=0.4)  # half a voxel


@pytest.mark.parametrize("windows", [False, True])
def test_a_volume_larger_than_the_grid_is_predicted_whole(
    spaced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: bool
) -> None:
    if windows:
        monkeypatch.setattr(sliding, "MEMORY_SHARE", 0.0)
    predictor, network = with_levels(spaced)
    image = stored_as((2, 0, 1), (True, False, True))
    write_nifti(tmp_path / "x.nii.gz", image.array, image.affine)
    (prediction,) = predictor.predict(tmp_path / "x.nii.gz", tmp_path / "out")
    assert prediction.mask is not None
    assert dice(prediction.mask, labels_of(image.array)) > 0.9
    row = pd.read_csv(tmp_path / "out" / "predictions.csv").iloc[0]
    assert ("windows of 16 x 16 x 16" in row["notes"]) == windows
    assert "GB" in row["notes"]
    sizes = {shape[2:] for shape in network.calls}
    assert sizes == ({(16, 16, 16)} if windows else {(16, 16, 16), (19, 24, 22)})


def test_volumes_go_one_at_a_time_and_small_ones_in_one_pass(fitted: Path, tmp_path: Path) -> None:
    predictor, network = with_levels(fitted)
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(3):
        write_nifti(folder / f"{k}.nii.gz", np.roll(blocks(), k, 0), OBLIQUE)
    predictions = list(predictor.predict(folder, batch_size=16))
    assert network.calls == [(1, 1, 32, 32, 32)] * 3
    assert [p.note for p in predictions] == [""] * 3


def test_predict_takes_volumes_and_series(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_nifti(folder / "one.nii.gz", blocks(), OBLIQUE)
    (folder / "series").mkdir()
    stored = np.random.default_rng(0).integers(101, 2000, (6, 8, 5))
    stored[0, 0, 0] = 0  # all alike in the window would be refused
    for k in range(5):
        place = (0, 0, 3.0 * k)
        path = folder / "series" / f"{9 - k}.dcm"
        write_dicom(path, stored[..., k], place, Modality="MR", RescaleIntercept=0)
    monkeypatch.setattr("threefold.inference.predictor.build_network", lambda *_: Levels())
    monkeypatch.setattr(
        "threefold.inference.predictor.load_pretrained",
        lambda *_, **__: type("Report", (), {"missing": (), "unused": ()}),
    )
    result = CliRunner().invoke(app, ["predict", str(fitted), str(folder), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("case_id")
    assert list(table.index) == ["one", "series"]
    mask = nibabel.load(tmp_path / "out" / table.loc["series", "mask"])
    assert mask.shape == stored.shape == (6, 8, 5)
    # rows run towards posterior and columns towards the left, slices 3 mm apart
    assert_allclose(mask.affine[:3, :3], [[0, -0.4, 0], [-0.5, 0, 0], [0, 0, 3]], atol=1e-6)
    assert (np.asarray(mask.dataobj)[1:] == 2).all()  # above the window
    assert table["probability_x"].between(0, 1).all()


def test_an_interruption_leaves_what_was_done(fitted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(4):
        write_nifti(folder / f"{k}.nii.gz", blocks(), OBLIQUE)
    predictor, _ = with_levels(fitted)

    class Interrupted(Levels):
        def forward(self, image: Tensor) -> Outputs:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().forward(image)

    with pytest.raises(KeyboardInterrupt):
        list(replace(predictor, network=Interrupted()).predict(folder, tmp_path / "a"))
    assert list(pd.read_csv(tmp_path / "a" / "predictions.csv")["case_id"]) == [0, 1]

    stopped = predictor.predict(folder, tmp_path / "b")
    next(iter(stopped))
    stopped.close()  # type: ignore[attr-defined]
    assert list(pd.read_csv(tmp_path / "b" / "predictions.csv")["case_id"]) == [0]

    (folder / "2.nii.gz").write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"2\.nii\.gz"):
        list(predictor.predict(folder, tmp_path / "c"))
    assert list(pd.read_csv(tmp_path / "c" / "predictions.csv")["case_id"]) == [0, 1]


def test_a_process_that_is_killed_leaves_a_table(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threefold.inference.output.WRITE_EVERY", 0.0)
    write_nifti(tmp_path / "0.nii.gz", blocks(), OBLIQUE)
    write_nifti(tmp_path / "1.nii.gz", blocks(), OBLIQUE)
    predictor, _ = with_levels(fitted)
    predictions = predictor.predict([tmp_path / "0.nii.gz", tmp_path / "1.nii.gz"], tmp_path / "out")
    next(iter(predictions))
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 1  # not closed, nothing more to come


@pytest.mark.real("fetal_brain")
def test_a_real_fetal_volume_keeps_its_grid(spaced: Path, shared_data: Path, tmp_path: Path) -> None:
    path = next(p for p in sorted((shared_data / "fetal_brain").rglob("*.nii.gz")) if _is_scan(p))
    predictor, _ = with_levels(spaced)
    experiment = experiment_of(spacing=2.0, size=[32, 32, 32])
    (prediction,) = replace(predictor, experiment=experiment).predict(path, tmp_path / "out")
    mask = nibabel.load(next((tmp_path / "out" / "masks").iterdir()))
    scan = nibabel.load(path)
    assert mask.shape == scan.shape
    assert_allclose(mask.affine, scan.affine, atol=1e-5)
    assert prediction.note
    # what the network sees as bright is what the scan has bright
    scaled = np.clip(scan.get_fdata() / 100, 0, 1)
    assert (np.asarray(mask.dataobj)[scaled > 0.95] == 2).mean() > 0.8


def _is_scan(path: Path) -> bool:
    return not any(word in path.name for word in ("mask", "parcellation", "label", "seg"))
