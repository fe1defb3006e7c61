"""Bad input at the command line: the exit status, and a message that names the case and what to do."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from threefold.cli.app import main
from threefold.images.writing import write_nifti

from .squares import AFFINE, write_squares

pytestmark = pytest.mark.acceptance

COLUMNS = ("case_id", "patient_id", "site", "split", "image", "mask", "label")
MEANING = """\
name: squares
modality: ct
dimensions: 2
classes: [plain, holed]
mask: {name: square, values: [1]}
intensity: {unit: HU, window: [0, 80]}
"""
SMALL = (
    "training.epochs=1",
    "training.batch_size=4",
    "training.selection.metric=loss",
    "network.encoder.embed_dim=8",
    "data.preprocessing.size=[32, 32]",
    "evaluation.replicates=20",
)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Eight patients of two sites, a slice each, all with a mask and a label."""
    folder = tmp_path / "cohort"
    write_squares(folder)
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


def change(**fields: str) -> Callable[[Path], None]:
    """Change the first row of the table."""

    def apply(folder: Path) -> None:
        first, *rest = read_rows(folder)
        write_rows(folder, [{**first, **fields}, *rest])

    return apply


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-200]) and None


def truncated_picture(folder: Path) -> None:
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(folder / "cut.png")
    truncate("cut.png")(folder)
    change(image="cut.png", mask="")(folder)


def truncated_dicom(folder: Path) -> None:
    (folder / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00")
    change(image="cut.dcm", mask="")(folder)


def voxels(name: str, array: Any, affine: Any = AFFINE) -> Callable[[Path], None]:
    return lambda folder: write_nifti(folder / name, np.asarray(array), affine)


NOT_FINITE = np.full((32, 32), 40, np.float32)
NOT_FINITE[3, 5] = np.nan
INFINITE = np.full((32, 32), 40, np.float32)
INFINITE[3, 5] = np.inf
SHIFTED = AFFINE + np.array([[0, 0, 0, 7.0], [0] * 4, [0] * 4, [0] * 4])
STRANGE = np.zeros((32, 32), np.uint8)
STRANGE[4:6, 4:6] = 3


def twice(folder: Path) -> None:
    change(case_id="c1")(folder)


def two_parts(folder: Path) -> None:
    change(patient_id="p7")(folder)


def one_class(folder: Path) -> None:
    write_rows(folder, [{**row, "label": "plain"} for row in read_rows(folder)])


def no_rows(folder: Path) -> None:
    write_rows(folder, [])


def no_mask(folder: Path) -> None:
    write_rows(folder, [{**row, "mask": ""} for row in read_rows(folder)])


def single_case(folder: Path) -> None:
    write_rows(folder, read_rows(folder)[:1])


def leaving(folder: Path) -> None:
    shutil.move(folder / "c0.nii.gz", folder.parent / "c0.nii.gz")
    change(image="../c0.nii.gz")(folder)


DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing file": (change(image="gone.nii.gz"), ("c0", "gone.nii.gz")),
    "truncated NIfTI": (truncate("c0.nii.gz"), ("c0",)),
    "truncated PNG": (truncated_picture, ("c0", "cut.png")),
    "truncated DICOM": (truncated_dicom, ("c0", "cut.dcm")),
    "0-byte file": (write("c0.nii.gz", b""), ("c0", "empty")),
    "0-byte mask": (write("c0-mask.nii.gz", b""), ("c0-mask.nii.gz", "empty")),
    "infinite voxel": (voxels("c0.nii.gz", INFINITE), ("c0", "1 infinite", "(3, 5)")),
    "NaN voxel": (voxels("c0.nii.gz", NOT_FINITE), ("c0", "NaN")),
    "mask of another shape": (voxels("c0-mask.nii.gz", np.ones((16, 32), np.uint8)), ("c0", "shape")),
    "mask of another affine": (voxels("c0-mask.nii.gz", STRANGE // 3, SHIFTED), ("c0", "7")),
    "unknown mask value": (voxels("c0-mask.nii.gz", STRANGE), ("c0", "3")),
    "label typo": (change(label="holled"), ("row 2", "holled", "Did you mean 'holed'?")),
    "duplicate case id": (twice, ("c1",)),
    "0-byte table": (write("cases.csv", b""), ("cases.csv", "header")),
    "part typo": (change(split="trian"), ("row 2", "Did you mean 'train'?")),
    "one patient in two parts": (two_parts, ("p7",)),
    "empty table": (no_rows, ("cases.csv",)),
    "one class": (one_class, ("'plain'",)),
    "no mask anywhere": (no_mask, ("No case has a mask",)),
    "single case": (single_case, ("1",)),
    "path that leaves the folder": (leaving, ("../c0.nii.gz", "allow-outside")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_cohort_is_refused_by_check_and_by_train(
    name: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, telling = DAMAGES[name]
    damage(cohort)
    assert call("check", str(cohort), "--split", "column") == 1
    checked = capsys.readouterr()
    run = tmp_path / "run"
    command = ["train", "hematoma/demo", "--cohort", str(cohort), "--out", str(run), *SMALL]
    assert call(*command, "data.split.kind=column") == 1
    trained = capsys.readouterr()
    for said in (checked.out + checked.err, trained.out + trained.err):
        flat = " ".join(said.split())
        assert all(word in flat for word in telling), flat
        assert "Traceback" not in said
    assert not run.exists()


def test_a_site_without_masks_trains_and_is_said(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_rows(cohort)
    write_rows(cohort, [{**row, "mask": row["mask"] if row["site"] == "a" else ""} for row in rows])
    assert call("check", str(cohort), "--split", "column") == 0
    assert "No mask at b" in " ".join(capsys.readouterr().out.split())
    run = tmp_path / "run"
    arguments = ["--cohort", str(cohort), "--out", str(run), *SMALL, "data.split.kind=column"]
    assert call("train", "hematoma/demo", *arguments) == 0
    assert call("evaluate", str(run)) == 0
    assert "not estimable (no true mask with a lesion)" in capsys.readouterr().out
    # A run folder that exists is refused, and nothing in it changes.
    before = (run / "weights.safetensors").read_bytes()
    assert call("train", "hematoma/demo", *arguments) == 1
    assert "--resume" in capsys.readouterr().err
    # Resuming with another network is refused with what differs.
    assert call("train", "hematoma/demo", *arguments, "--resume", "network.encoder.window=4") == 1
    assert "network.encoder.window" in capsys.readouterr().err
    # Weights of another network are refused before a folder is made.
    wider = ["--out", str(tmp_path / "wider"), f"initial_weights.path={run / 'weights.safetensors'}"]
    status = call("train", "hematoma/demo", *arguments, *wider, "network.encoder.embed_dim=16")
    assert status == 1
    assert "weights.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "wider").exists()
    assert (run / "weights.safetensors").read_bytes() == before


def test_a_path_that_leaves_is_read_by_every_verb_where_asked_for(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaving(cohort)
    run = tmp_path / "run"
    train = ("train", "hematoma/demo", "--cohort", str(cohort), "--out", str(run), *SMALL)
    verbs = (
        ("check", str(cohort), "--split", "column"),
        (*train, "data.split.kind=column"),
        ("evaluate", str(run), "--cohort", str(cohort)),
        ("predict", str(run), str(cohort), "--out", str(tmp_path / "predictions")),
    )
    for verb in verbs:
        assert call(*verb) == 1
        said = capsys.readouterr()
        assert "'../c0.nii.gz' leaves the cohort's folder" in said.out + said.err
        assert call(*verb, "--allow-outside") == 0


def test_a_full_disk_stops_with_what_to_do_and_the_run_goes_on(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    command = ["train", "hematoma/demo", "--cohort", str(cohort), "--out", str(run), *SMALL]
    command += ["data.split.kind=column", "training.epochs=2"]

    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.name == "last.ckpt" and target.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert call(*command) == 1
    said = capsys.readouterr().err
    assert "last.ckpt: could not be written (No space left on device)" in said
    assert "--resume" in said
    assert '"epoch": 1' in (run / "status.json").read_text()  # the first epoch's checkpoint is untouched
    assert call(*command, "--resume") == 0
    assert "2 epochs" in capsys.readouterr().out

    unbroken = tmp_path / "unbroken"
    assert call(*command, "--out", str(unbroken)) == 0
    assert (run / "weights.safetensors").read_bytes() == (unbroken / "weights.safetensors").read_bytes()

    # A checkpoint of another network, and damaged files of a run, are refused by name.
    wider = tmp_path / "wider"
    assert call(*command, "--out", str(wider), "network.encoder.embed_dim=16") == 0
    (run / "status.json").write_text('{"state": "running"}')
    shutil.copy(wider / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    assert call(*command, "--resume") == 1
    assert "last.ckpt: the weights are another network's" in capsys.readouterr().err
    for name in ("checkpoints/last.ckpt", "split.csv", "cohort.json", "status.json"):
        (run / name).write_text("{cut o")
        assert call(*command, "--resume") == 1
        said = capsys.readouterr().err
        assert f"{run / name}: " in said
        assert "weights_only" not in said


def test_a_disk_that_refuses_anywhere_is_an_error_of_one_line(
    cohort: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "run/figures")

    monkeypatch.setattr("threefold.audits.audit.audit", refuse)
    assert call("check", str(cohort)) == 1
    assert capsys.readouterr().err.startswith("error: run/figures: the disk refuses (Read-only file system)")


@pytest.mark.parametrize(
    ("verb", "telling"),
    [
        ("train nowhere.yaml --cohort {cohort} --out run", (2, "nowhere.yaml: no such file")),
        (
            "train hematoma/mtl-cls-sge --cohort {cohort} --out run",
            (2, "Did you mean 'hematoma/mtl-cls-seg'?"),
        ),
        ("train hematoma/demo --cohort nowhere --out run", (1, "nowhere: expected a cohort")),
        ("evaluate nowhere", (1, "nowhere: not a run folder")),
        ("predict nowhere {cohort} --out out", (1, "nowhere: not a run folder")),
        ("predict {cohort}", (2, "Missing")),
        ("frobnicate", (2, "frobnicate")),
    ],
)
def test_a_name_of_nothing_is_said(
    verb: str, telling: tuple[int, str], cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, words = telling
    assert call(*verb.format(cohort=cohort).split()) == status
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        (["training.epcohs=3"], "training.epcohs: unknown key. Did you mean 'epochs'?"),
        (["--devices", "64"], "64"),
        (["training.epochs=0"], "training.epochs"),
        (["nonsense"], "expected key.path=value"),
    ],
)
def test_an_experiment_that_asks_for_what_is_not_there_is_a_usage_error(
    arguments: list[str], telling: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    status = call("train", "hematoma/demo", "--cohort", str(cohort), "--out", str(out), *SMALL, *arguments)
    assert status == 2
    assert telling in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.real("head_ct_dicom")
def test_two_series_in_a_folder_are_named(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pydicom

    series = tmp_path / "series"
    shutil.copytree(shared_data / "head_ct_dicom" / "series", series)
    for path in sorted(series.iterdir())[:5]:
        path.chmod(0o644)
        data = pydicom.dcmread(path)
        data.SeriesInstanceUID = "1.2.3.4"
        data.save_as(path)
    (tmp_path / "cohort.yaml").write_text(MEANING)
    status = call(
        *("import", "dicom", str(series), "--site", "a", "--patient", "p"),
        *("--meaning", str(tmp_path / "cohort.yaml"), "--out", str(tmp_path / "out")),
    )
    assert status == 1
    said = capsys.readouterr().err
    assert "1.2.3.4" in said
    assert not (tmp_path / "out").exists()
