"""The audit: each defect is found, named, and graded; a sound cohort is silent."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from threefold.audits import voxel_checks
from threefold.audits.audit import Audit, Finding, audit
from threefold.cohorts.cohort import Case, Cohort, CohortSpec, IntensitySpec
from threefold.cohorts.samples import read_sample
from threefold.cohorts.splits import Split, make_split
from threefold.core.targets import MaskSpec
from threefold.errors import ImageError
from threefold.experiment import PreprocessingSpec, SplitSpec
from threefold.images.reading import read_image
from threefold.images.writing import write_nifti, write_png

AFFINE = np.diag([-0.5, -0.5, 5.0, 1.0])
Make = Callable[..., Cohort]
Rows = list[dict[str, Any]]


def _found(result: Audit, check: str, severity: str | None = None) -> list[Finding]:
    return [f for f in result.findings if f.check == check and severity in (None, f.severity)]


def _one(result: Audit, check: str, severity: str) -> Finding:
    (finding,) = _found(result, check, severity)
    assert result.refused or severity != "refuse"
    return finding


def test_a_sound_cohort_is_silent(make_cohort: Make) -> None:
    cohort = make_cohort()
    result = audit(cohort, split=SplitSpec(seed=1))
    assert [f for f in result.findings if f.severity != "note"] == []
    assert not result.refused
    assert [(s.site, s.cases, s.patients, s.masks, s.structures) for s in result.sites] == [
        ("a", 12, 6, 12, 0),
        ("b", 12, 6, 12, 0),
    ]
    assert result.sites[0].labels == {"absent": 6, "present": 6}
    assert result.split is not None
    assert sum(part["cases"] for part in result.split["parts"].values()) == 24


def test_json_is_plain_data(make_cohort: Make) -> None:
    result = audit(make_cohort(), split=SplitSpec(kind="slice"))
    data = json.loads(json.dumps(result.as_json()))
    assert data["refused"] is False
    assert data["association"]["patients"] == 12
    assert data["split"]["leaking_patients"]
    assert {f["severity"] for f in data["findings"]} == {"warn"}


def test_progress_counts_to_the_end(make_cohort: Make) -> None:
    seen: list[tuple[int, int]] = []
    audit(make_cohort(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 24) for n in range(1, 25)]


def test_ids_that_can_not_name_files_everywhere(make_cohort: Make) -> None:
    cohort = make_cohort()
    names = ("aux", "scan:1", "Scan", "scan")
    renamed = (replace(case, case_id=name) for case, name in zip(cohort.cases, names, strict=False))
    cases = (*renamed, *cohort.cases[len(names) :])
    found = audit(Cohort(cohort.folder, cohort.spec, cases))
    first, second = _one(found, "ids", "warn"), _one(found, "ids", "refuse")
    assert (
        "2 case_id(s) are not valid file names on Windows: 'aux' (a device there), 'scan:1' (no ':'"
        in first.message
    )
    assert first.cases == ("aux", "scan:1")
    assert "in accent encoding: Scan/scan" in second.message
    assert second.cases == ("Scan", "scan")


def test_memory_that_runs_out_at_one_case_ends_no_other(
    make_cohort: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, digest, seen = make_cohort(), voxel_checks._digest, []

    def hungry(array: Any) -> str:
        seen.append(1)
        if len(seen) == 2:
            raise MemoryError("Unable to allocate 9 TiB")
        return digest(array)

    monkeypatch.setattr(voxel_checks, "_digest", hungry)
    found = _one(audit(cohort), "files", "refuse")
    assert found.cases == ("p00-1",)
    assert "not enough memory (Unable to allocate 9 TiB)" in found.message
    assert len(seen) == len(cohort.cases)


@pytest.mark.parametrize("headers_only", [False, True])
@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_missing_file(make_cohort: Make, column: str, headers_only: bool) -> None:
    cohort = make_cohort()
    getattr(cohort.cases[3], column).unlink()
    finding = _one(audit(cohort, read_voxels=not headers_only), "files", "refuse")
    assert finding.cases == ("p01-1",)
    assert f"the {column} can't be used" in finding.message
    assert getattr(cohort.cases[3], column).name in finding.message


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".png", ".jpg"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6, 0.95])
def test_an_empty_or_truncated_file(make_cohort: Make, ending: str, keep: float) -> None:
    def change(rows: Rows, folder: Path) -> None:
        path = folder / f"cut{ending}"
        voxels = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
        if ending.startswith(".nii"):
            write_nifti(path, voxels, np.eye(4))
        elif ending == ".png":
            write_png(path, voxels)
        else:
            PIL.Image.fromarray(voxels).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data))])
        rows[5] |= {"image": path.name, "mask": None}

    finding = _one(audit(make_cohort(change)), "files", "refuse")
    assert finding.cases == ("p02-1",)
    assert f"cut{ending}" in finding.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers(make_cohort: Make, value: float) -> None:
    def change(rows: Rows, folder: Path) -> None:
        voxels = np.zeros((8, 6), np.float32)
        voxels[2, 3] = value
        write_nifti(folder / rows[0]["image"], voxels, AFFINE)

    cohort = make_cohort(change)
    finding = _one(audit(cohort), "files", "refuse")
    assert finding.cases == ("p00-0",)
    assert "(2, 3)" in finding.message
    assert not audit(cohort, read_voxels=False).refused


@pytest.mark.parametrize(
    ("shape", "affine", "said"),
    [
        ((6, 8), None, "p00-0: shape 6 x 8 instead of 8 x 6"),
        ((8, 6), np.diag([-0.6, -0.5, 5, 1]), "spacing 0.6 x 0.5 mm instead of 0.5 x 0.5 mm"),
        ((8, 6), np.diag([0.5, -0.5, 5, 1]), "axes turned by 180.00, 0.00 degrees"),
        ((8, 6), AFFINE + np.eye(4, k=3) * 7, "origin shifted by 7 x 0 x 0 mm"),
    ],
)
@pytest.mark.parametrize("headers_only", [False, True])
def test_a_mask_on_another_grid(
    make_cohort: Make, shape: tuple[int, int], affine: Any, said: str, headers_only: bool
) -> None:
    def change(rows: Rows, folder: Path) -> None:
        grid = AFFINE if affine is None else affine
        write_nifti(folder / rows[0]["mask"], np.ones(shape, np.uint8), grid)

    finding = _one(audit(make_cohort(change), read_voxels=not headers_only), "geometry", "refuse")
    assert said in finding.message
    assert finding.cases == ("p00-0",)


def test_alike_defects_are_one_finding(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        for row in rows[:10]:
            write_nifti(folder / row["mask"], np.ones((3, 3), np.uint8), AFFINE)

    finding = _one(audit(make_cohort(change)), "geometry", "refuse")
    assert len(finding.cases) == 10
    assert "and 7 more" in finding.message


def test_a_volume_without_a_slice(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        write_nifti(folder / "volume.nii", np.zeros((8, 6, 3), np.float32), AFFINE)
        rows[0] |= {"image": "volume.nii"}
        rows[1] |= {"image": "volume.nii", "slice": 3}

    result = audit(make_cohort(change))
    assert "volume.nii is 8 x 6 x 3" in _one(result, "geometry", "refuse").message
    assert "there is no slice 3" in _one(result, "files", "refuse").message


@pytest.mark.parametrize(("values", "refused"), [((0, 1, 2), True), ((0, 255), True), ((0, 1), False)])
def test_mask_values(make_cohort: Make, values: tuple[int, ...], refused: bool) -> None:
    def change(rows: Rows, folder: Path) -> None:
        write_nifti(folder / rows[0]["mask"], np.resize(values, (8, 6)).astype(np.int16), AFFINE)

    result = audit(make_cohort(change))
    assert result.refused == refused
    if refused:
        finding = _one(result, "label values", "refuse")
        assert f"p00-0: {values[-1]}; expected 0, 1" in finding.message
        assert finding.cases == ("p00-0",)


def test_structures_beyond_their_names(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        write_nifti(folder / "s.nii", np.resize([0, 1, 2, 3], (8, 6)).astype(np.uint8), AFFINE)
        rows[0]["structures"] = "s.nii"

    result = audit(make_cohort(change, structures=("aorta", "duct")))
    assert "3; expected 0, 1, 2" in _one(result, "label values", "refuse").message
    assert [site.structures for site in result.sites] == [1, 0]


def test_a_mask_of_fractions_and_an_empty_one(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        write_nifti(folder / rows[0]["mask"], np.full((8, 6), 0.5, np.float32), AFFINE)
        write_nifti(folder / rows[1]["mask"], np.zeros((8, 6), np.uint8), AFFINE)

    result = audit(make_cohort(change))
    assert "whole numbers" in _one(result, "files", "refuse").message
    assert _one(result, "label values", "note").cases == ("p00-1",)


@pytest.mark.parametrize("headers_only", [False, True])
@pytest.mark.parametrize("picture", ["image", "mask"])
def test_a_picture_beside_a_nifti_is_refused_as_by_reading(
    make_cohort: Make, picture: str, headers_only: bool
) -> None:
    def change(rows: Rows, folder: Path) -> None:
        write_png(folder / "one.png", np.eye(8, 6, dtype=np.uint8))
        rows[0][picture] = "one.png"

    cohort = make_cohort(change)
    with pytest.raises(ImageError, match="not on the grid of its image"):
        read_sample(cohort.cases[0], cohort.spec, PreprocessingSpec(size=(16, 16)))
    found = [f for f in audit(cohort, read_voxels=not headers_only).findings if f.check == "geometry"]
    assert [(f.severity, f.cases) for f in found] == [("refuse", ("p00-0",))]


def test_slices_of_one_volume_are_told_apart(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        voxels = np.random.default_rng(5).normal(0, 300, (8, 6, 4)).astype(np.float32)
        voxels[..., 2] = voxels[..., 0]
        write_nifti(folder / "volume.nii.gz", voxels, AFFINE)
        write_nifti(folder / "volume-mask.nii.gz", (voxels > 0).astype(np.uint8), AFFINE)
        for number in range(4):
            rows[number] |= {
                "patient_id": "p00",
                "image": "volume.nii.gz",
                "mask": "volume-mask.nii.gz",
                "slice": number,
            }

    result = audit(make_cohort(change))
    assert not result.refused
    finding = _one(result, "duplicates", "warn")
    assert finding.cases == ("p00-0", "p01-0")
    assert "slices of one file with the same voxels" in finding.message


def test_one_image_under_two_ids(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        # The same file; a copy of it; its voxels in another file; all of different patients.
        rows[2]["image"], rows[2]["mask"] = rows[0]["image"], rows[0]["mask"]
        shutil.copy(folder / rows[4]["image"], folder / rows[6]["image"])
        raw = gzip.decompress((folder / rows[8]["image"]).read_bytes())
        (folder / rows[10]["image"]).write_bytes(gzip.compress(raw, 1))
        rows[8]["label"], rows[10]["label"] = "absent", "present"

    findings = _found(audit(make_cohort(change)), "duplicates", "refuse")
    assert [finding.cases for finding in findings] == [
        ("p00-0", "p01-0"),
        ("p02-0", "p03-0"),
        ("p04-0", "p05-0"),
    ]
    for finding, said in zip(
        findings, ("the same file", "files with the same content", "different files"), strict=True
    ):
        assert said in finding.message
        assert "different patients" in finding.message
    assert ["labels contradict" in finding.message for finding in findings] == [False, False, True]


def test_one_image_twice_of_one_patient_counts_twice(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        shutil.copy(folder / rows[0]["image"], folder / rows[1]["image"])

    cohort = make_cohort(change)
    assert "counts 2 times" in _one(audit(cohort), "duplicates", "warn").message
    parts = make_split(cohort, SplitSpec(kind="slice")).parts
    apart = Split("slice", {**parts, "p00-0": "train", "p00-1": "test"})
    assert "different parts" in _one(audit(cohort, split=apart), "duplicates", "refuse").message


def test_a_patient_on_two_sides(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        for number, row in enumerate(rows):
            row["split"] = ("train", "validation", "test")[number // 2 % 3]
        rows[1]["split"] = "test"

    cohort = make_cohort(change)
    finding = _one(audit(cohort), "patients", "refuse")
    assert finding.cases == ("p00-0", "p00-1")
    assert "p00" in finding.message
    by_column = audit(cohort, split=SplitSpec(kind="column"))
    assert "p00: p00-0 in train, p00-1 in test" in _one(by_column, "split", "refuse").message
    # Another split does not use the column: its fault does not stop a training.
    assert _one(audit(cohort, split=SplitSpec()), "patients", "warn").cases == ("p00-0", "p00-1")
    leaking = Split("patient", {case.case_id: case.split or "train" for case in cohort.cases}, ("p00",))
    assert _found(audit(cohort, split=leaking), "patients", "refuse")


def test_a_patient_at_two_sites_may_be_two_people(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        rows[0]["patient_id"] = next(row["patient_id"] for row in rows if row["site"] != rows[0]["site"])

    finding = _one(audit(make_cohort(change)), "patients", "warn")
    assert "1 patient(s) at more than one site" in finding.message
    assert "add the site to patient_id" in finding.message
    assert len(finding.cases) == 3


def test_a_slice_split_is_marked_not_refused(make_cohort: Make) -> None:
    result = audit(make_cohort(), split=SplitSpec(kind="slice"))
    assert not result.refused
    assert "every number of it carries that mark" in _one(result, "patients", "warn").message


def test_classes(make_cohort: Make) -> None:
    def one_class(rows: Rows, folder: Path) -> None:
        for row in rows:
            row["label"] = "present"

    cohort = make_cohort(one_class)
    finding = _one(audit(cohort), "classes", "refuse")
    assert "Every labelled case is 'present'" in finding.message
    assert "'absent'" in finding.message
    assert not audit(cohort, targets=["mask"]).refused


def test_an_empty_and_a_rare_class(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        rows[0]["label"] = rows[1]["label"] = "rare"

    result = audit(make_cohort(change, classes=("absent", "present", "rare", "never")))
    messages = [finding.message for finding in _found(result, "classes", "warn")]
    assert any("No case of class 'never'" in message for message in messages)
    assert any("'rare' has 1 patient(s)" in message for message in messages)
    assert not result.refused


def test_absent_targets(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        for row in rows:
            row["label"] = None
            if row["site"] == "b":
                row["mask"] = None

    cohort = make_cohort(change)
    result = audit(cohort)
    assert any(
        "No case has a label" in f.message for f in _found(result, "targets", "note")
    )  # declared alone
    assert "No case has a label" in _one(audit(cohort, targets=["label"]), "targets", "refuse").message
    assert any("No mask at b" in f.message for f in _found(result, "targets", "note"))
    assert [site.masks for site in result.sites] == [12, 0]
    assert not audit(cohort, targets=["mask"]).refused


def test_a_train_part_without_the_target(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        for row in rows:
            if row["site"] == "a":
                row["mask"] = None

    result = audit(make_cohort(change), split=SplitSpec(kind="site", hold_out=("b",)))
    assert "No train case of the site split has a mask" in _one(result, "split", "refuse").message


def test_a_single_case(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        del rows[1:]

    cohort = make_cohort(change)
    assert "1 case(s) of 1 patient" in _one(audit(cohort), "size", "refuse").message
    assert "needs at least 3" in _one(audit(cohort, split=SplitSpec()), "split", "refuse").message


def test_site_groups(make_cohort: Make) -> None:
    result = audit(make_cohort(site_groups={"internal": ("a", "aa")}))
    messages = [finding.message for finding in _found(result, "sites", "warn")]
    assert any("contains 'aa', which has no cases. Did you mean 'a'?" in message for message in messages)
    assert any("In no site group: b" in message for message in messages)


def test_a_confounded_site_is_warned_of(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        for row in rows:
            row["label"] = {"a": "absent", "b": "present"}[row["site"]]

    finding = _one(audit(make_cohort(change)), "site and label", "warn")
    assert "AUC 1.00" in finding.message


@pytest.mark.parametrize(
    ("unit", "low", "high", "severity", "said"),
    [
        ("HU", -1000, 900, None, ""),
        ("HU", 0, 255, "refuse", "8-bit"),
        ("HU", -3024, 1500, "warn", "HU that CT can give"),
        ("HU", -1000, 40000, "warn", "HU that CT can give"),
        ("HU", 0, 80, "note", "cut to a window"),
        ("HU", 30, 30, "warn", "constant"),
        ("grey", 0, 255, None, ""),
        ("grey", -20, 100, "refuse", "unit: grey"),
        ("arbitrary", 0, 5000, None, ""),
        ("arbitrary", 7, 7, "warn", "constant"),
    ],
)
def test_intensity(
    make_cohort: Make, unit: Any, low: float, high: float, severity: str | None, said: str
) -> None:
    def change(rows: Rows, folder: Path) -> None:
        for number, row in enumerate(rows):
            voxels = np.full((8, 6), low, np.float32)
            voxels[number // 6, number % 6] = high
            write_nifti(folder / row["image"], voxels, AFFINE)

    findings = _found(audit(make_cohort(change, intensity=IntensitySpec(unit=unit))), "intensity")
    assert [finding.severity for finding in findings] == ([] if severity is None else [severity])
    if severity is not None:
        assert said in findings[0].message
        assert len(findings[0].cases) == 24


def test_constant_images_are_no_duplicates(make_cohort: Make) -> None:
    def change(rows: Rows, folder: Path) -> None:
        for row in rows:
            write_nifti(folder / row["image"], np.zeros((8, 6), np.float32), AFFINE)

    assert not _found(audit(make_cohort(change)), "duplicates")


def test_the_audit_changes_nothing(make_cohort: Make) -> None:
    cohort = make_cohort()
    before = {path: path.read_bytes() for path in cohort.folder.iterdir()}
    audit(cohort, split=SplitSpec())
    assert {path: path.read_bytes() for path in cohort.folder.iterdir()} == before
    assert read_image(cohort.cases[0].image).array.shape == (8, 6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_findings_never_another_exception(template: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["x.nii", "x.nii.gz", "x.png"]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = (template / "p00-0.nii.gz").read_bytes()
        if name == "x.nii":
            source = gzip.decompress(source)
        elif name == "x.png":
            stream = io.BytesIO()
            PIL.Image.fromarray(np.arange(48, dtype=np.uint8).reshape(8, 6)).save(stream, format="PNG")
            source = stream.getvalue()
        damaged = bytearray(source[: data.draw(st.integers(0, len(source)))])
        for _ in range(data.draw(st.integers(0, 4))):
            if damaged:
                damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        (folder / name).write_bytes(damaged)
        spec = CohortSpec(name="x", modality="ct", dimensions=2, mask=MaskSpec())
        case = Case("c", "p", "s", folder / name, targets={"mask": folder / name})
        result = audit(Cohort(folder, spec, (case,)))
    if len(damaged) < len(source) // 2:
        assert _found(result, "files", "refuse")
