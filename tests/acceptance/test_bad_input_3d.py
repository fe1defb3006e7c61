"""Bad volumes at the command line: the exit status, and a message that names the case and what to do."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from threefold.cli.app import main
from threefold.images.writing import write_nifti

pytestmark = pytest.mark.acceptance

COLUMNS = ("case_id", "patient_id", "site", "split", "image", "mask", "structures", "label")
MEANING = """\
name: blobs
modality: mri
dimensions: 3
classes: [A, B, C]
structures: [first, second]
mask: {name: both}
"""
SMALL = (
    "data.split.kind=column",
    "data.preprocessing.size=[16, 16, 16]",
    "training.epochs=1",
    "training.selection.metric=loss",
    "evaluation.replicates=20",
)
SEGMENTER = ("aortic-arch/demo-seg", *SMALL, "network.channels=[4, 8]")
JOINT = (
    "aortic-arch/demo-joint",
    *SMALL,
    "network.segmenter.channels=[4, 8]",
    "network.classifier.blocks=[1, 1]",
    "network.classifier.growth=4",
    "network.classifier.stem=4",
)
SIDE = 18
AFFINE = np.diag([-1.0, -1.0, 1.5, 1.0])
PARTS = ("train", "train", "validation", "test")


def structures_of(number: int) -> NDArray[np.uint8]:
    structures = np.zeros((SIDE,) * 3, np.uint8)
    structures[2:7, 2:7, 3:14] = 1
    start = 2 + 4 * (number % 3)
    structures[10:15, start : start + 5, 4:12] = 2
    return structures


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Twelve volumes of three classes, all with a mask, structures and a label."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    (folder / "cohort.yaml").write_text(MEANING)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        structures = structures_of(number)
        image = (rng.normal(40, 8, structures.shape) + 120 * (structures > 0)).astype(np.float32)
        name = f"v{number}"
        write_nifti(folder / f"{name}.nii.gz", image, AFFINE)
        write_nifti(folder / f"{name}-mask.nii.gz", (structures > 0).astype(np.uint8), AFFINE)
        write_nifti(folder / f"{name}-structures.nii.gz", structures, AFFINE)
        rows.append(
            {
                "case_id": name,
                "patient_id": name,
                "site": "north",
                "split": PARTS[number // 3],
                "image": f"{name}.nii.gz",
                "mask": f"{name}-mask.nii.gz",
                "structures": f"{name}-structures.nii.gz",
                "label": "ABC"[number % 3],
            }
        )
    write_rows(folder, rows)
    return folder


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "cases.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    with (folder / "cases.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def call(*arguments: str) -> int:
    """Run a command in this process; return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["threefold", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def train(recipe: tuple[str, ...], cohort: Path, run: Path, *more: str) -> int:
    return call("train", recipe[0], "--cohort", str(cohort), "--out", str(run), *recipe[1:], *more)


def holds(name: str, array: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> Callable[[Path], None]:
    return lambda folder: write_nifti(folder / name, array, affine)


def with_holes() -> NDArray[np.float32]:
    mask = (structures_of(0) > 0).astype(np.float32)
    mask[3:5, 3, 4] = np.nan
    return mask


def resampled() -> NDArray[np.float32]:
    structures = structures_of(0).astype(np.float32)
    structures[5, 5, 5] = 0.5
    return structures


def with_label(value: int) -> NDArray[np.int16]:
    structures = structures_of(0).astype(np.int16)
    structures[9, 9, 9] = value
    return structures


MOVED = AFFINE + np.array([[0, 0, 0, 4.0], [0] * 4, [0] * 4, [0] * 4])

DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a slice among volumes": (
        holds("v0.nii.gz", np.full((SIDE, SIDE), 40, np.float32)),
        ("has not the 3 axes", "v0.nii.gz is 18 x 18", "Give a volume"),
    ),
    "a mask with holes of NaN": (
        holds("v0-mask.nii.gz", with_holes()),
        ("v0-mask.nii.gz", "2 NaN", "(3, 3, 4)"),
    ),
    "structures between two labels": (
        holds("v0-structures.nii.gz", resampled()),
        ("v0-structures.nii.gz", "0.5", "(5, 5, 5)", "nearest-neighbour"),
    ),
    "a label that has no name": (
        holds("v0-structures.nii.gz", with_label(3)),
        ("cohort.yaml does not name", "v0: 3; expected 0, 1, 2", "Correct the file"),
    ),
    "a negative label": (
        holds("v0-structures.nii.gz", with_label(-1)),
        ("cohort.yaml does not name", "v0: -1; expected 0, 1, 2", "Correct the file"),
    ),
    "structures of another place": (
        holds("v0-structures.nii.gz", structures_of(0), MOVED),
        ("another grid than the image", "v0: origin shifted by 4 x 0 x 0 mm", "Resample"),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_volume_is_refused_by_check_and_by_train(
    name: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, telling = DAMAGES[name]
    damage(cohort)
    assert call("check", str(cohort), "--split", "column") == 1
    checked = capsys.readouterr()
    run = tmp_path / "run"
    assert train(SEGMENTER, cohort, run) == 1
    trained = capsys.readouterr()
    for said in (checked.out + checked.err, trained.out + trained.err):
        flat = " ".join(said.split())
        assert all(word in flat for word in telling), flat
        assert "Traceback" not in said
    assert not run.exists()


def test_labels_stored_as_float_are_the_same_labels(cohort: Path, tmp_path: Path) -> None:
    assert train(SEGMENTER, cohort, tmp_path / "integers") == 0
    for number in range(12):
        structures = structures_of(number).astype(np.float64)
        write_nifti(cohort / f"v{number}-structures.nii.gz", structures, AFFINE)
        write_nifti(cohort / f"v{number}-mask.nii.gz", (structures > 0).astype(np.float32), AFFINE)
    assert train(SEGMENTER, cohort, tmp_path / "floats") == 0
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("integers", "floats")]
    assert weights[0] == weights[1]


def test_a_volume_smaller_than_the_networks_stride_is_padded(cohort: Path, tmp_path: Path) -> None:
    import nibabel

    # Five levels halve the grid four times: 16 voxels make one.
    small = ("network.channels=[4, 4, 4, 4, 4]", "data.preprocessing.size=[9, 7, 5]")
    run = tmp_path / "run"
    assert train(SEGMENTER, cohort, run, *small) == 0
    masks = sorted((run / "masks").iterdir())
    assert len(masks) == 3
    predicted, image = nibabel.load(masks[0]), nibabel.load(cohort / "v9.nii.gz")
    assert predicted.shape == image.shape
    assert np.allclose(predicted.affine, image.affine)


def test_each_case_trains_what_it_has(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_rows(cohort)
    for number, row in enumerate(rows):
        lacks = {0: ("mask",), 1: ("structures",), 2: ("label",), 3: ("mask", "structures", "label")}
        for target in lacks[(number // 3 + number) % 4]:
            row[target] = ""
    write_rows(cohort, rows)
    assert call("check", str(cohort), "--split", "column") == 0
    run = tmp_path / "run"
    assert train(JOINT, cohort, run) == 0
    with (run / "metrics.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    for task in ("classification", "segmentation", "region"):
        assert np.isfinite(float(row[f"train_loss_{task}"]))
    with (run / "predictions.csv").open(newline="") as stream:
        predicted = list(csv.DictReader(stream))
    assert [row["case_id"] for row in predicted] == [f"v{n}" for n in range(6, 12)]
    assert all(row["probability_A"] for row in predicted)
    capsys.readouterr()

    # A target that no case has is refused, and the task that needs it is said.
    write_rows(cohort, [{**row, "structures": ""} for row in rows])
    assert train(JOINT, cohort, tmp_path / "refused") == 1
    assert "structures" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_cascade_is_not_trained_on_a_segmenter_that_tells_other_structures_apart(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter = tmp_path / "segmenter"
    assert train(SEGMENTER, cohort, segmenter, "tasks.region=null", "tasks.segmentation.target=mask") == 0
    classifier = ("aortic-arch/demo-cls", *JOINT[1:])
    capsys.readouterr()
    assert train(classifier, cohort, tmp_path / "run", "--init-from", str(segmenter)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "frozen segmenter" in said
    assert "tells the same structures apart" in said
    assert not (tmp_path / "run").exists()
