"""A patient's DICOM series as a cohort: a damaged file takes its own series with it, and no other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.uid import BasicTextSRStorage, SegmentationStorage

from threefold.cli.app import main
from threefold.cohorts.cohort import Cohort, CohortSpec
from threefold.cohorts.dicom_import import Identity, import_dicom
from threefold.errors import CohortError, ImageError
from threefold.images.reading import read_image

from ..images.conftest import write_dicom

SPECS: dict[int, CohortSpec] = {
    axes: CohortSpec.model_validate(
        {
            "name": "scans",
            "modality": "ct",
            "dimensions": axes,
            "intensity": {"unit": "HU", "window": [0, 80]},
        }
    )
    for axes in (2, 3)
}


def write_series(folder: Path, uid: str, *, slices: int = 4, value: int = 1000, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(slices):
        pixels = np.full((6, 8), value + z)
        write_dicom(folder / f"{uid}-{z}.dcm", pixels, (0, 0, 5 * z), SeriesInstanceUID=uid, **changes)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Two series of one patient, in folders of their own."""
    folder = tmp_path / "scan"
    write_series(folder / "head", "1.1", value=1000, PatientID="A")
    write_series(folder / "neck", "1.2", value=2000, PatientID="A")
    return folder


def make(folder: Path, out: Path, axes: int = 3, **options: Any) -> Cohort:
    return import_dicom(folder, out, spec=SPECS[axes], identity=Identity("p1", "north"), **options)


def provenance(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "provenance.json").read_text()))


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def other_rows(path: Path) -> None:
    write_dicom(path, np.zeros((7, 8)), (0, 0, 15), SeriesInstanceUID="1.1", PatientID="A")


def other_spacing(path: Path) -> None:
    write_dicom(
        path, np.zeros((6, 8)), (0, 0, 15), SeriesInstanceUID="1.1", PatientID="A", PixelSpacing=[0.7, 0.7]
    )


def damaged_pixels(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.PixelData = dataset.PixelData[:-10]
    pydicom.dcmwrite(path, dataset)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut in its pixels": lambda path: cut(path, path.stat().st_size - 20),
    "cut in its header": lambda path: cut(path, 500),
    "cut behind its preamble": lambda path: cut(path, 140),
    "no DICOM": lambda path: path.write_bytes(b"hello"),
    "empty": lambda path: path.write_bytes(b""),
    "too few pixels": damaged_pixels,
    "another shape": other_rows,
    "another spacing": other_spacing,
    "gone": lambda path: path.with_name("1.1-1.dcm").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("axes", [2, 3])
def test_a_bad_file_takes_its_series_with_it_and_no_other(
    scan: Path, tmp_path: Path, damage: str, axes: int
) -> None:
    DAMAGE[damage](scan / "head" / "1.1-3.dcm")  # the last slice: the others are a whole, even series
    cohort = make(scan, tmp_path / "out", axes)
    expected = ["north-p1-2"] if axes == 3 else [f"north-p1-2-{k:03d}" for k in range(4)]
    assert [case.case_id for case in cohort.cases] == expected
    failed = provenance(tmp_path / "out")["failed"]
    assert list(failed) == ["head"]
    assert "1.1" in failed["head"]
    assert len(list((tmp_path / "out" / "images").iterdir())) == len(expected)


@pytest.mark.parametrize("kept", [0, 100])
def test_a_file_that_is_named_as_its_series_and_is_no_dicom_is_missing(
    scan: Path, tmp_path: Path, kept: int
) -> None:
    for path in (scan / "head").iterdir():
        path.rename(path.with_suffix(""))
    cut(scan / "head" / "1.1-3", kept)
    (scan / "head" / "LICENSE").write_text("free")
    make(scan, tmp_path / "out")
    assert "gap in the series" in provenance(tmp_path / "out")["failed"]["head"]
    assert provenance(tmp_path / "out")["passed over"] == ["head/LICENSE"]


def test_every_series_is_a_case_or_slices(scan: Path, tmp_path: Path) -> None:
    volumes = make(scan, tmp_path / "volumes")
    assert [case.case_id for case in volumes.cases] == ["north-p1-1", "north-p1-2"]
    assert [case.extra["origin"] for case in volumes.cases] == ["head", "neck"]
    for case, series in zip(volumes.cases, ("head", "neck"), strict=True):
        image, expected = read_image(case.image), read_image(scan / series)
        assert_array_equal(image.array, expected.array)
        assert_allclose(image.affine, expected.affine, atol=1e-6)
    slices = make(scan / "neck", tmp_path / "slices", axes=2)
    assert [case.case_id for case in slices.cases] == [f"north-p1-{k:03d}" for k in range(4)]
    assert read_image(slices.cases[3].image).array.max() == 2003 - 1024
    assert "failed" not in provenance(tmp_path / "slices")


def test_a_slice_that_is_kept_as_scanned_is_left_out_alone(scan: Path, tmp_path: Path) -> None:
    damaged_pixels(scan / "head" / "1.1-1.dcm")
    cohort = make(scan / "head", tmp_path / "out", axes=2, uneven="keep")
    assert [case.case_id for case in cohort.cases] == ["north-p1-000", "north-p1-002", "north-p1-003"]
    assert "1.1-1.dcm" in provenance(tmp_path / "out")["failed"]["north-p1-001"]


def test_several_series_in_one_folder(scan: Path, tmp_path: Path) -> None:
    for path in (scan / "neck").iterdir():
        path.rename(scan / "head" / path.name)
    (scan / "head" / "odd.dcm").write_bytes(b"hello")
    cohort = make(scan, tmp_path / "out")
    assert len(cohort.cases) == 2
    # Of which of the two it was a part nobody can say.
    assert list(provenance(tmp_path / "out")["failed"]) == ["head/odd.dcm"]
    damaged_pixels(scan / "head" / "1.2-0.dcm")
    assert len(make(scan, tmp_path / "again").cases) == 1
    assert "head/series of 1.2-0.dcm" in provenance(tmp_path / "again")["failed"]


def test_a_series_may_lie_in_two_folders_but_not_twice(scan: Path, tmp_path: Path) -> None:
    (scan / "rest").mkdir()
    moved = (scan / "head" / "1.1-3.dcm").rename(scan / "rest" / "1.1-3.dcm")
    cohort = make(scan, tmp_path / "out")
    assert len(cohort.cases) == 2
    assert max(read_image(case.image).array.shape[2] for case in cohort.cases) == 4
    (scan / "head" / "1.1-3.dcm").write_bytes(moved.read_bytes())
    assert len(make(scan, tmp_path / "again").cases) == 1
    failed = provenance(tmp_path / "again")["failed"]
    assert list(failed) == ["head", "rest"]
    assert "lies in 2 folders, with copies of the same files: head, rest" in failed["head"]


def export(folder: Path) -> Path:
    """Series of two patients, and one that names none."""
    header = {"InstitutionName": "St. Elsewhere", "StationName": "CT7", "Manufacturer": "ACME", "KVP": "120"}
    for uid, patient in (("1.1", "A 17"), ("1.2", "A 17"), ("2.1", "B")):
        name = {"PatientID": patient, "PatientName": "Doe^Jane", "SeriesDescription": "for Dr. Who"}
        write_series(folder / uid, uid, **header, **name, StudyInstanceUID=uid[0])
    write_series(folder / "3.1", "3.1", **header)
    return folder


def test_patients_sites_and_scanners_come_from_the_headers(tmp_path: Path) -> None:
    scans = export(tmp_path / "export")

    def imported(name: str, **options: Any) -> Cohort:
        return import_dicom(scans, tmp_path / name, spec=SPECS[3], identity=Identity(**options))

    cohort, again, other = imported("a", key=b"k" * 32), imported("b", key=b"k" * 32), imported("c")
    patients = [case.patient_id for case in cohort.cases]
    names = [f"{patients[0]}-1", f"{patients[0]}-2", f"{patients[2]}-1"]
    assert [case.case_id for case in cohort.cases] == names
    assert len({*patients}) == 2
    assert [case.patient_id for case in again.cases] == patients
    assert not {*patients} & {case.patient_id for case in other.cases}
    assert provenance(tmp_path / "a")["failed"]["3.1"].startswith("has no PatientID")
    extra = cohort.cases[0].extra
    assert (extra["manufacturer"], extra["kvp"], extra["modality"]) == ("ACME", "120", "CT")
    assert "kvp" in cohort.spec.columns
    written = "".join(
        path.read_text() for path in (tmp_path / "a").iterdir() if path.suffix in (".csv", ".yaml")
    )
    for secret in ("A 17", "Doe", "Elsewhere", "CT7", "Who"):
        assert secret not in written
    kept = imported("d", keep_identifiers=True).cases[0]
    assert (kept.patient_id, kept.site, kept.extra["patient_name"]) == ("A 17", "St. Elsewhere", "Doe^Jane")


def test_a_key_has_to_be_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("short")
    (tmp_path / "cohort.yaml").write_text("name: x\nmodality: ct\ndimensions: 3\n")
    command = ["import", "dicom", tmp_path, "--meaning", tmp_path / "cohort.yaml", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["threefold", *map(str, command), "--key-file", str(tmp_path / "key")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2


def test_what_is_no_image_is_passed_over(scan: Path, tmp_path: Path) -> None:
    write_dicom(
        scan / "head" / "report.dcm", np.zeros((6, 8)), (0, 0, 0), SOPClassUID=BasicTextSRStorage, Rows=None,
        PixelData=None, SeriesInstanceUID="1.3",
    )  # fmt: skip
    write_dicom(
        scan / "head" / "seg.dcm", np.zeros((6, 8)), (0, 0, 0), SOPClassUID=SegmentationStorage,
        SeriesInstanceUID="1.4",
    )  # fmt: skip
    (scan / "head" / "notes.txt").write_text("notes")
    (scan / "elsewhere").symlink_to(tmp_path)
    make(scan, tmp_path / "out")
    assert provenance(tmp_path / "out")["passed over"] == [
        "elsewhere (a link to a folder)",
        "head/notes.txt",
        "head/report.dcm (Basic Text SR Storage)",
        "head/seg.dcm (Segmentation)",
    ]


def test_a_folder_that_can_not_be_listed_is_named(
    scan: Path, tmp_path: Path, refuse_to_list: Callable[[Path], None]
) -> None:
    refuse_to_list(scan / "head")
    assert len(make(scan, tmp_path / "out").cases) == 1
    assert "can't be listed (Permission denied)" in provenance(tmp_path / "out")["failed"]["head"]


def test_the_command_names_what_it_left_out(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged_pixels(scan / "head" / "1.1-2.dcm")
    (tmp_path / "cohort.yaml").write_text(
        "name: scans\nmodality: ct\ndimensions: 3\nintensity: {unit: HU, window: [0, 80]}\n"
    )
    command = ["import", "dicom", scan, "--meaning", tmp_path / "cohort.yaml", "--site", "north"]
    command += ["--patient", "p1", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["threefold", *map(str, command)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "1 cases of 1 patients" in printed.out
    assert "failed: head: " in printed.err
    assert "1.1-2.dcm" in printed.err


def test_what_can_not_be_imported_at_all(scan: Path, tmp_path: Path) -> None:
    write_series(scan / "other", "1.5", PatientID="B")
    with pytest.raises(CohortError, match=r"holds series of 2 patients .*, for example head, other"):
        make(scan, tmp_path / "out")
    for name in ("1.1-0.dcm", "1.1-1.dcm", "1.1-2.dcm", "1.1-3.dcm"):
        damaged_pixels(scan / "head" / name)
    with pytest.raises(CohortError, match=r"no case could be made.\n  failed: head: .*1\.1-0\.dcm"):
        make(scan / "head", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="empty: expected DICOM series in it, found no DICOM image"):
        make(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ImageError, match="no such folder"):
        make(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_volume_can_not_keep_uneven_slices(tmp_path: Path) -> None:
    spec = CohortSpec(name="x", modality="ct", dimensions=3)
    with pytest.raises(CohortError, match="resample them"):
        import_dicom(tmp_path, tmp_path / "out", spec=spec, identity=Identity("p", "s"), uneven="keep")


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("none", "haemorrhage"), "label: 'haemorhage' is not a class of cohort.yaml. Did you mean "),
        ((), "label: 'haemorhage', but cohort.yaml names no classes; list them under classes."),
    ],
)
def test_a_series_label_that_is_no_class_is_one_line(
    tmp_path: Path, classes: tuple[str, ...], said: str
) -> None:
    spec = CohortSpec(name="x", modality="ct", dimensions=2, classes=classes)
    with pytest.raises(CohortError) as error:
        import_dicom(
            tmp_path / "no-series",
            tmp_path / "out",
            spec=spec,
            identity=Identity("p", "s"),
            label="haemorhage",
        )
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
