"""From a run folder and files to predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import safetensors.torch
import torch

from threefold.cohorts.cohort import Cohort
from threefold.errors import CohortError, ImageError, RunError, ThreefoldError, UsageError, WeightsError
from threefold.images.reading import read_image
from threefold.images.writing import write_nifti
from threefold.inference.predictor import Predictor
from threefold.tasks.build import build_network
from threefold.tasks.questions import questions_of

from .conftest import AFFINE, SHAPE, Threshold, make_experiment, make_slice, make_spec, write_run


@pytest.fixture
def predictor(run: Path, known: Threshold) -> Predictor:
    """The run's predictor with a network whose answer is known."""
    return replace(Predictor.from_run(run), network=known)


def test_three_lines_of_python(run: Path, images: Path) -> None:
    predictions = list(Predictor.from_run(run).predict(images))
    assert [p.case_id for p in predictions] == ["a", *(f"volume#{k}" for k in range(5)), "below/b"]
    for prediction in predictions:
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert list(prediction.probabilities) == ["no", "yes"]
        assert prediction.mask is not None
        assert prediction.mask.shape == prediction.image.array.shape == SHAPE
        assert prediction.decision == ("yes" if prediction.probabilities["yes"] >= 0.3 else "no")


def test_the_runs_own_weights_answer(run: Path, images: Path) -> None:
    predictor = Predictor.from_run(str(run))
    (prediction,) = predictor.predict(str(images / "a.nii.gz"))
    torch.manual_seed(99)
    network = build_network(predictor.experiment, predictor.cohort)
    network.load_state_dict(safetensors.torch.load_file(run / "weights.safetensors"))
    from threefold.images.preprocessing import prepare_image

    image = read_image(images / "a.nii.gz")
    spec = predictor.experiment.data.preprocessing
    array, _ = prepare_image(image, spec, unit="HU", window=(0, 100))
    with torch.no_grad():
        outputs = network.eval()(torch.from_numpy(array)[None])
        expected = outputs.heads["classification"].softmax(1)[0, 1].item()
    assert prediction.probabilities["yes"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batches_do_not_change_the_answer(predictor: Predictor, images: Path, batch_size: int) -> None:
    known = predictor.network
    assert isinstance(known, Threshold)
    predictions = list(predictor.predict(images, batch_size=batch_size))
    assert len(predictions) == 7
    assert max(known.calls) == min(batch_size, 5)  # the slices of the volume; the pictures are two
    for prediction in predictions:
        assert prediction.mask is not None
        truth = prediction.image.array > 50
        # Up to a voxel's half at the border, which the trip to the network's grid costs.
        overlap = (prediction.mask > 0) & truth
        assert 2 * overlap.sum() / (prediction.mask.sum() + truth.sum()) > 0.95


def test_threshold_decides_and_without_one_the_larger_probability(predictor: Predictor) -> None:
    assert predictor.decide({"no": 0.7, "yes": 0.3}) == "yes"
    assert predictor.decide({"no": 0.71, "yes": 0.29}) == "no"
    assert replace(predictor, threshold=None).decide({"no": 0.7, "yes": 0.3}) == "no"
    positive = make_spec(positive="no")
    asked = questions_of(predictor.experiment, positive)
    first = replace(predictor, cohort=positive, questions=asked)
    assert first.decide({"no": 0.3, "yes": 0.7}) == "no"


def test_folder_of_predictions(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(predictor.predict([images], out, batch_size=4))
    table = pd.read_csv(out / "predictions.csv").set_index("case_id")
    assert list(table.index) == ["a", *(f"volume#{k}" for k in range(5)), "below/b"]
    assert set(table["threshold"]) == {0.3}
    assert set(table["run"]) == {"tiny"}
    assert table["version"].str.fullmatch(r"0\.1\.0\+[0-9a-f]{12}").all()
    assert table.loc["volume#3", "slice"] == 3
    assert table.loc["below/b", "mask"] == "masks/below_b.nii.gz"
    assert sorted(p.name for p in (out / "masks").iterdir()) == [
        "a.nii.gz",
        "below_b.nii.gz",
        "volume.nii.gz",
    ]
    volume = nibabel.load(images / "volume.nii.gz")
    mask = nibabel.load(out / "masks" / "volume.nii.gz")
    assert mask.shape == volume.shape
    np.testing.assert_allclose(mask.affine, volume.affine)
    counts = np.asarray(mask.dataobj).sum(axis=(0, 1))
    assert counts.tolist() == [table.loc[f"volume#{k}", "mask_predicted_voxels"] for k in range(5)]
    truth = np.asarray(volume.dataobj) > 50
    assert (np.asarray(mask.dataobj).astype(bool) == truth).mean() > 0.99


@pytest.mark.parametrize(
    "flip", [(1, 1), (-1, 1), (1, -1), (-1, -1)], ids=["as is", "rows", "columns", "both"]
)
def test_masks_lie_where_the_image_does(predictor: Predictor, tmp_path: Path, flip: tuple[int, int]) -> None:
    array = make_slice(3, shape=(61, 33))[:: flip[0], :: flip[1]]
    affine = AFFINE @ np.diag([*flip, 1, 1])
    write_nifti(tmp_path / "x.nii.gz", array, affine)
    (prediction,) = predictor.predict(tmp_path / "x.nii.gz", tmp_path / "out")
    mask = nibabel.load(tmp_path / "out" / "masks" / "x.nii.gz")
    np.testing.assert_allclose(mask.affine, affine)
    assert mask.shape == (61, 33, 1)
    assert prediction.mask is not None
    assert (np.asarray(mask.dataobj)[..., 0] == prediction.mask).all()
    assert ((prediction.mask > 0) == (array > 50)).mean() > 0.99


def test_a_picture_gets_a_picture(known: Threshold, tmp_path: Path) -> None:
    spec = make_spec(unit="grey", intensity={"unit": "grey", "window": [0, 255]})
    write_run(tmp_path / "run", make_experiment(), spec, 0.5)
    predictor = replace(Predictor.from_run(tmp_path / "run"), network=known)
    array = np.where(make_slice(4) > 50, 255, 0).astype(np.uint8)
    PIL.Image.fromarray(array).save(tmp_path / "x.png")
    list(predictor.predict(tmp_path / "x.png", tmp_path / "out"))
    mask = np.asarray(PIL.Image.open(tmp_path / "out" / "masks" / "x.png"))
    assert set(np.unique(mask)) == {0, 255}
    assert (mask == array).mean() > 0.99


def test_a_picture_is_not_taken_for_ct_numbers(predictor: Predictor, tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"x\.png: a picture of grey values"):
        list(predictor.predict(tmp_path / "x.png"))


def test_names_are_told_apart(predictor: Predictor, tmp_path: Path) -> None:
    for name in ("one/x.nii", "one/x.nii.gz", "two/x.nii", "two/y.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_nifti(tmp_path / name, make_slice(1), AFFINE)
    out = tmp_path / "out"
    predictions = list(predictor.predict([tmp_path / "one", tmp_path / "two"], out))
    names = [p.case_id for p in predictions]
    assert names == [f"{tmp_path}/one/x.nii", "x.nii.gz", f"{tmp_path}/two/x.nii", "y"]
    assert len(list((out / "masks").iterdir())) == 4
    with pytest.raises(ImageError, match="named twice"):
        predictor.predict([tmp_path / "one" / "x.nii", tmp_path / "one" / "x.nii"])


def test_one_bad_file_raises_or_is_reported(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    (images / "bad.nii.gz").write_bytes((images / "a.nii.gz").read_bytes()[:40])
    (images / "empty.nii").touch()
    with pytest.raises(ImageError, match=r"bad\.nii\.gz"):
        list(predictor.predict(images))
    failed: list[tuple[str, str]] = []
    progress: list[tuple[int, int]] = []
    predictions = list(
        predictor.predict(
            [images, tmp_path / "absent.nii"],
            tmp_path / "out",
            on_error=lambda source, error: failed.append((source.name, str(error))),
            progress=lambda done, total: progress.append((done, total)),
        )
    )
    assert len(predictions) == 7
    assert [name for name, _ in failed] == ["bad", "empty", "absent"]
    assert all(name in text for name, text in failed)
    assert progress == [(k, 6) for k in range(1, 7)]
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 7


def test_a_cohort_needs_no_labels_and_may_be_asked_by_its_folder(
    predictor: Predictor, make_cohort: Callable[..., Cohort]
) -> None:
    cohort = make_cohort()
    by_folder = list(predictor.predict(cohort.folder))
    by_cohort = list(predictor.predict(cohort))
    assert [p.case_id for p in by_folder] == [f"case{k}" for k in range(6)]
    assert [p.probabilities for p in by_folder] == [p.probabilities for p in by_cohort]
    other = replace(cohort, spec=make_spec(classes=["no", "maybe"], positive=None))
    with pytest.raises(CohortError, match="class 'maybe' is not one that the network was trained on"):
        predictor.predict(other)
    with pytest.raises(CohortError, match=r"intensity\.unit is grey"):
        predictor.predict(replace(cohort, spec=make_spec(unit="grey")))


def test_outputs_are_not_overwritten(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    list(predictor.predict(images / "a.nii.gz", tmp_path / "out"))
    with pytest.raises(RunError, match="never overwritten"):
        predictor.predict(images, tmp_path / "out")


def test_a_network_of_one_task_gives_what_it_has(images: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "seg", make_experiment(segmentation={}), make_spec(), None)
    write_run(tmp_path / "cls", make_experiment(classification={}), make_spec(), 0.5)
    (only_mask,) = Predictor.from_run(tmp_path / "seg").predict(images / "a.nii.gz", tmp_path / "out")
    (only_class,) = Predictor.from_run(tmp_path / "cls").predict(images / "a.nii.gz", tmp_path / "out2")
    assert (only_mask.probabilities, only_mask.decision) == ({}, None)
    assert only_class.mask is None
    assert "threshold" not in pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert "mask" not in pd.read_csv(tmp_path / "out2" / "predictions.csv")
    assert not (tmp_path / "out2" / "masks").exists()


def _without_weights(run: Path) -> None:
    (run / "weights.safetensors").unlink()


def _other_network(run: Path) -> None:
    text = (run / "experiment.yaml").read_text()
    (run / "experiment.yaml").write_text(text.replace("embed_dim: 6", "embed_dim: 12"))


def _other_tasks(run: Path) -> None:
    content = json.loads((run / "cohort.json").read_text())
    content["spec"]["classes"] = ["a", "b", "c"]
    content["spec"]["positive"] = None
    (run / "cohort.json").write_text(json.dumps(content))


def _truncated(run: Path) -> None:
    data = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(data[: len(data) // 2])


def _broken_cohort(run: Path) -> None:
    (run / "cohort.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda run: shutil.rmtree(run), RunError, "not a run folder"),
        (_without_weights, RunError, r"has no weights\.safetensors yet"),
        (_other_network, WeightsError, "shape"),
        (_other_tasks, WeightsError, "2 are missing"),
        (_truncated, WeightsError, "not a checkpoint"),
        (_broken_cohort, RunError, r"cohort\.json: can't be read"),
    ],
)
def test_a_damaged_run_is_refused_with_its_cause(
    run: Path, tmp_path: Path, damage: Callable[[Path], None], error: type[ThreefoldError], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    damage(copy)
    with pytest.raises(error, match=message):
        Predictor.from_run(copy)


def test_unknown_device_and_empty_folder(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--device warp"):
        Predictor.from_run(run, device="warp")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ImageError, match="holds no image"):
        Predictor.from_run(run).predict(tmp_path / "nothing")


def test_non_finite_output_names_the_case(predictor: Predictor, images: Path) -> None:
    class Broken(Threshold):
        def forward(self, image: torch.Tensor):  # type: ignore[no-untyped-def]
            outputs = super().forward(image)
            outputs.heads["classification"][1] = torch.nan
            return outputs

    with pytest.raises(RunError, match=r"case volume#1: the network's classification is not finite"):
        list(replace(predictor, network=Broken()).predict(images, batch_size=7))


@pytest.mark.real("head_ct_dicom")
def test_a_real_dicom_series_is_refused_or_resampled(predictor: Predictor, shared_data: Path) -> None:
    folder = shared_data / "head_ct_dicom"
    series = next(p.parent for p in sorted(folder.rglob("*")) if p.suffix.lower() == ".dcm")
    with pytest.raises(ImageError, match="unevenly spaced"):
        list(predictor.predict(series))
    predictions = list(predictor.predict(series, uneven="resample"))
    assert {p.case_id.partition("#")[0] for p in predictions} == {series.name}
    assert all(p.image.notes for p in predictions)
    volume = predictions[0].volume
    assert volume is not None
    assert len(predictions) == volume.array.shape[2]
