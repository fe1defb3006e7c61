"""Importers: tables with columns of their own, merging, and nothing half-made."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec, read_cohort, write_cohort
from threefold.cohorts.importers import import_table
from threefold.cohorts.merging import merge_cohorts
from threefold.cohorts.public.ct_ich import import_ct_ich
from threefold.core.targets import MaskSpec
from threefold.errors import CohortError
from threefold.file_names import case_stem
from threefold.images.reading import read_image
from threefold.images.writing import write_nifti, write_png

Make = Callable[..., Cohort]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    (folder / "ct").mkdir(parents=True)
    for name in ("one", "two", "m"):
        write_nifti(folder / "ct" / f"{name}.nii.gz", np.full((4, 4), 7, np.int16), np.eye(4))
    write_nifti(folder / "volume.nii", np.zeros((4, 4, 3), np.int16), np.eye(4))
    (folder / "scans.csv").write_text(
        "file,person,bleeding,mask,age,slice\n"
        "ct/one.nii.gz,A,1,ct/m.nii.gz,71,\n"
        "ct/two.nii.gz,B,0,,64,\n"
        "volume.nii,C,,,50,0\n"
        "volume.nii,C,,,50,2\n"
    )
    return folder


OPTIONS: dict[str, Any] = {
    "columns": {"image": "file", "patient_id": "person", "label": "bleeding"},
    "constants": {"site": "north"},
    "labels": {"0": "absent", "1": "present"},
}


def test_a_table_with_columns_of_its_own(scans: Path, tmp_path: Path, spec: CohortSpec) -> None:
    cohort = import_table(scans / "scans.csv", tmp_path / "out", spec, **OPTIONS)
    assert read_cohort(tmp_path / "out") == cohort
    assert [case.case_id for case in cohort.cases] == ["one", "two", "volume-0", "volume-2"]
    assert [case.patient_id for case in cohort.cases] == ["A", "B", "C", "C"]
    assert [case.label for case in cohort.cases] == [1, 0, None, None]
    assert {case.site for case in cohort.cases} == {"north"}
    assert cohort.cases[0].extra == {"age": "71"}
    assert cohort.cases[0].image.read_bytes() == (scans / "ct" / "one.nii.gz").read_bytes()
    assert cohort.cases[0].mask is not None
    assert cohort.cases[0].mask.is_relative_to(tmp_path / "out")
    # A volume that several cases are slices of is copied once.
    assert cohort.cases[2].image == cohort.cases[3].image
    assert len(list((tmp_path / "out").rglob("*.nii*"))) == 4
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["table"] == "scans.csv"


def test_files_may_stay_where_they_are(scans: Path, tmp_path: Path, spec: CohortSpec) -> None:
    cohort = import_table(scans / "scans.csv", tmp_path / "out", spec, copy=False, **OPTIONS)
    assert cohort.cases[0].image == scans / "ct" / "one.nii.gz"
    assert not list((tmp_path / "out").rglob("*.nii*"))
    with pytest.raises(CohortError, match="leaves the cohort's folder"):
        read_cohort(tmp_path / "out")
    assert read_cohort(tmp_path / "out", allow_outside=True) == cohort


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"columns": {"image": "fil"}}, "no column 'fil' for image. Did you mean 'file'?"),
        ({"columns": {"imag": "file"}}, "'imag' is no column of cases.csv. Did you mean 'image'?"),
        ({"constants": {}}, "no column for site; found file, person"),
        ({"labels": {}}, "row 2, column label: '1' is not a class"),
        ({"columns": {**OPTIONS["columns"], "case_id": "person"}}, "'C' is already the case of row 4"),
    ],
)
def test_a_wrong_import_leaves_nothing(
    scans: Path, tmp_path: Path, spec: CohortSpec, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(CohortError) as error:
        import_table(scans / "scans.csv", tmp_path / "out", spec, **{**OPTIONS, **change})
    assert said in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans"]


def test_a_row_whose_file_is_missing_is_left_out_and_named(
    scans: Path, tmp_path: Path, spec: CohortSpec
) -> None:
    (scans / "ct" / "m.nii.gz").unlink()
    cohort = import_table(scans / "scans.csv", tmp_path / "out", spec, **OPTIONS)
    assert [case.case_id for case in cohort.cases] == ["two", "volume-0", "volume-2"]
    failed = json.loads((tmp_path / "out" / "provenance.json").read_text())["failed"]
    assert list(failed) == ["one"]
    assert re.search(r"scans\.csv: row 2, column mask: .*m\.nii\.gz: no such file", failed["one"])
    # nor does its image stay, which no row names
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {"two.nii.gz", "volume-0.nii"}
    for path in (*(scans / "ct").iterdir(), scans / "volume.nii"):
        path.unlink()
    with pytest.raises(CohortError, match=r"no case could be made.\n  failed: one: .*no such file"):
        import_table(scans / "scans.csv", tmp_path / "none", spec, **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scans"]


def test_what_is_no_file_is_passed_over_and_named(scans: Path, tmp_path: Path, spec: CohortSpec) -> None:
    os.mkfifo(scans / "fifo.nii")
    (scans / "loop.nii").symlink_to(scans / "loop.nii")
    (scans / "dangling.nii").symlink_to(scans / "nowhere.nii")
    (scans / "outside.nii").symlink_to("/dev/null")
    latin = os.fsdecode(b"caf\xe9.nii")
    (scans / "ct" / "two.nii.gz").rename(scans / "caf\u00e9.nii")
    (scans / latin).write_bytes((scans / "ct" / "one.nii.gz").read_bytes())
    names = [
        "ct/one.nii.gz",
        "fifo.nii",
        "loop.nii",
        "dangling.nii",
        "outside.nii",
        "/dev/zero",
        "caf\u00e9.nii",
    ]
    rows = [f"c{number},p,s,{name}" for number, name in enumerate(names)]
    (scans / "scans.csv").write_text("\n".join(["case_id,patient_id,site,image", *rows]), encoding="utf-8")
    cohort = import_table(scans / "scans.csv", tmp_path / "out", spec)
    assert [case.case_id for case in cohort.cases] == ["c0", "c6"]
    failed = json.loads((tmp_path / "out" / "provenance.json").read_text())["failed"]
    assert list(failed) == ["c1", "c2", "c3", "c4", "c5"]
    assert "is neither a file nor a folder" in failed["c1"]
    assert "no such file" in failed["c3"]


def test_files_outside_the_table_s_folder_are_taken_where_asked_for(
    scans: Path, tmp_path: Path, spec: CohortSpec
) -> None:
    (scans / "ct" / "scans.csv").write_text(
        "case_id,patient_id,site,image\na,p,s,one.nii.gz\nb,p,s,../volume.nii\n"
    )
    near = import_table(scans / "ct" / "scans.csv", tmp_path / "near", spec)
    assert [case.case_id for case in near.cases] == ["a"]
    reason = json.loads((tmp_path / "near" / "provenance.json").read_text())["failed"]["b"]
    assert "leaves the folder" in reason
    assert "--allow-outside" in reason
    far = import_table(scans / "ct" / "scans.csv", tmp_path / "far", spec, allow_outside=True)
    assert [case.case_id for case in far.cases] == ["a", "b"]


def test_ids_that_differ_in_case_alone_have_no_files_of_their_own(
    scans: Path, tmp_path: Path, spec: CohortSpec
) -> None:
    (scans / "scans.csv").write_text(
        "case_id,patient_id,site,image\na,p,s,ct/one.nii.gz\nA,q,s,ct/two.nii.gz\nb,p,s,ct/m.nii.gz\n"
    )
    cohort = import_table(scans / "scans.csv", tmp_path / "out", spec)
    assert [case.case_id for case in cohort.cases] == ["a", "b"]
    failed = json.loads((tmp_path / "out" / "provenance.json").read_text())["failed"]
    assert "'A' and 'a' differ in case alone" in failed["A"]


def test_a_name_can_not_climb_out_of_the_folder(scans: Path, tmp_path: Path, spec: CohortSpec) -> None:
    (scans / "scans.csv").write_text("case_id,patient_id,site,image\n../../x,p,s,ct/one.nii.gz\n")
    with pytest.raises(CohortError, match="can't name a file"):
        import_table(scans / "scans.csv", tmp_path / "out", spec)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans"]


def test_nothing_is_overwritten(scans: Path, tmp_path: Path, spec: CohortSpec) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(CohortError, match=r"is not empty. Nothing was overwritten"):
        import_table(scans / "scans.csv", tmp_path / "out", spec, **OPTIONS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert import_table(scans / "scans.csv", tmp_path / "empty", spec, **OPTIONS).cases


def _ct_ich(folder: Path, mask_value: int = 255) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_png(folder / "images" / "1.png", ramp)
    write_png(folder / "masks" / "1.png", np.where(ramp > 200, mask_value, 0).astype(np.uint8))
    (folder / "slices.csv").write_text(
        "slice,patient,slice_number,image,mask,hemorrhage,subtypes\n1,077,20,images/1.png,masks/1.png,1,Epidural\n"
    )
    return folder


def test_ct_ich_greys_become_hu(tmp_path: Path) -> None:
    (case,) = import_ct_ich(_ct_ich(tmp_path / "in"), tmp_path / "out").cases
    image = read_image(case.image)
    expected = -20 + 120 * np.arange(256) / 255
    np.testing.assert_allclose(image.array.ravel(), expected, atol=1e-4)
    assert image.spacing == pytest.approx((250 / 16, 250 / 16))
    assert case.mask is not None
    mask = read_image(case.mask)
    np.testing.assert_array_equal(mask.array, (np.arange(256) > 200).reshape(16, 16))
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert (case.case_id, case.patient_id, case.label) == ("ct-ich-1", "ct-ich-077", 1)
    assert "-20..100 HU" in case.extra["origin"]
    assert "-20..100 HU" in json.loads((tmp_path / "out" / "provenance.json").read_text())["assumed"]


def test_ct_ich_pictures_on_another_disk(tmp_path: Path) -> None:
    folder = _ct_ich(tmp_path / "in")
    (tmp_path / "disk").mkdir()
    for part in ("images", "masks"):
        (folder / part).rename(tmp_path / "disk" / part)
        (folder / part).symlink_to(tmp_path / "disk" / part)
    assert len(import_ct_ich(folder, tmp_path / "out").cases) == 1
    (tmp_path / "link").symlink_to(folder)
    assert len(import_ct_ich(tmp_path / "link", tmp_path / "linked").cases) == 1
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes((folder / "images" / "1.png").read_bytes())
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    table = folder / "slices.csv"
    table.write_text(table.read_text() + "2,078,20,more/1.png,,0,\n3,079,1,../elsewhere/1.png,,0,\n")
    assert len(import_ct_ich(folder, tmp_path / "again").cases) == 1
    failed = json.loads((tmp_path / "again" / "provenance.json").read_text())["failed"]
    assert "leaves the folder through a link" in failed["ct-ich-2"]
    assert "leaves the folder" in failed["ct-ich-3"]


def test_ct_ich_leaves_nothing_of_a_picture_whose_mask_is_wrong(tmp_path: Path) -> None:
    folder = _ct_ich(tmp_path / "in")
    table = folder / "slices.csv"
    table.write_text(
        table.read_text() + "con,077,21,images/1.png,masks/2.png,0,\nA:b,078,1,images/1.png,,0,\n"
    )
    write_png(folder / "masks" / "2.png", np.full((16, 16), 7, np.uint8))
    cohort = import_ct_ich(folder, tmp_path / "out", site="s")
    assert [case.case_id for case in cohort.cases] == ["s-1", "s-A:b"]
    assert {path.stem.removesuffix(".nii") for path in (tmp_path / "out" / "images").iterdir()} == {
        "s-1",
        case_stem("s-A:b"),
    }
    assert ":" not in cohort.cases[1].image.name


def test_ct_ich_pictures_are_not_referred_to(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"holds pictures.*Leave out --reference"):
        import_ct_ich(_ct_ich(tmp_path / "in"), tmp_path / "out", copy=False)


def test_ct_ich_refuses_another_mask(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"expected 0 and 255 .* found values \[128\]"):
        import_ct_ich(_ct_ich(tmp_path / "in", mask_value=128), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "in" / "slices.csv").write_text("slice,patient\n")
    with pytest.raises(CohortError, match="no column 'slice_number'"):
        import_ct_ich(tmp_path / "in", tmp_path / "out")


def _plain(folder: Path, name: str, patients: str, **update: Any) -> Cohort:
    spec = CohortSpec.model_validate({"name": name, "modality": "ct", "dimensions": 2, **update})
    folder.mkdir()
    rows = []
    for patient in patients:
        write_nifti(folder / f"{patient}.nii", np.full((2, 2), ord(patient), np.int16), np.eye(4))
        rows.append({"case_id": patient, "patient_id": patient, "site": name, "image": f"{patient}.nii"})
    return write_cohort(folder, spec, rows)


def test_hospitals_become_one_cohort(tmp_path: Path) -> None:
    a = _plain(tmp_path / "a", "north", "ab", classes=("x", "y"), site_groups={"internal": ("north",)})
    b = _plain(tmp_path / "b", "south", "cd", mask=MaskSpec(), site_groups={"external": ("south",)})
    merged = merge_cohorts([a, b], tmp_path / "out")
    assert merged == read_cohort(tmp_path / "out")
    assert merged.spec.name == "north+south"
    assert merged.spec.classes == ("x", "y")
    assert merged.spec.mask == MaskSpec()
    assert merged.spec.site_groups == {"internal": ("north",), "external": ("south",)}
    assert merged.sites == ("north", "south")
    for case in merged.cases:
        assert read_image(case.image).array.max() == ord(case.case_id)
    referring = merge_cohorts([a, b], tmp_path / "refers", copy=False)
    assert [case.image for case in referring.cases] == [case.image for case in (*a.cases, *b.cases)]


def test_shared_ids_need_a_prefix(tmp_path: Path) -> None:
    a, b = _plain(tmp_path / "a", "north", "ab"), _plain(tmp_path / "b", "south", "bc")
    with pytest.raises(CohortError, match=r"case_id 'b' is in .*--prefix"):
        merge_cohorts([a, b], tmp_path / "out")
    merged = merge_cohorts([a, b], tmp_path / "out", prefix=True)
    assert [case.patient_id for case in merged.cases] == ["north-a", "north-b", "south-b", "south-c"]


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"modality": "mri"}, "modality is ct"),
        ({"intensity": IntensitySpec(unit="HU")}, "intensity"),
        ({"classes": ("x", "z")}, "classes"),
        ({"spacing": (1.0, 1.0)}, "spacing"),
        ({"site_groups": {"external": ("north",)}}, "north would be in more than one site group"),
    ],
)
def test_what_can_not_be_merged(tmp_path: Path, update: dict[str, Any], said: str) -> None:
    common: dict[str, Any] = {"classes": ("x", "y"), "site_groups": {"internal": ("north",)}}
    a = _plain(tmp_path / "a", "north", "ab", **common)
    b = _plain(tmp_path / "b", "south", "cd", **{"classes": ("x", "y"), **update})
    with pytest.raises(CohortError) as error:
        merge_cohorts([a, b], tmp_path / "out")
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()
