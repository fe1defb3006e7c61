"""The Brain Imaging Data Structure: as others write it, and a cohort there and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from threefold.cli.app import app
from threefold.cohorts.bids import export_bids, import_bids
from threefold.cohorts.cohort import CohortSpec, read_cohort, write_cohort
from threefold.cohorts.targets import read_label_map_of
from threefold.errors import CohortError
from threefold.images.reading import read_image
from threefold.images.writing import write_nifti

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (6, 5, 4)


def study(folder: Path) -> Path:
    """Write three participants, one with two sessions, as the specification's examples have them."""
    rng = np.random.default_rng(0)

    def image(name: str, *, labels: int = 0) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = rng.integers(0, labels, SHAPE).astype(np.uint8) if labels else rng.random(SHAPE, np.float32)
        write_nifti(path, made, AFFINE)

    for stem in ("sub-01/ses-a/anat/sub-01_ses-a", "sub-01/ses-b/anat/sub-01_ses-b", "sub-02/anat/sub-02"):
        for suffix in ("T1w", "FLAIR"):
            image(f"{stem}_{suffix}.nii.gz")
    image("sub-03/anat/sub-03_T1w.nii.gz")
    image("derivatives/hand/sub-01/ses-b/anat/sub-01_ses-b_desc-lesion_mask.nii.gz", labels=2)
    image("derivatives/hand/sub-02/anat/sub-02_space-T1w_desc-lesion_mask.nii.gz", labels=2)
    image("derivatives/fast/sub-02/anat/sub-02_dseg.nii.gz", labels=3)
    (folder / "derivatives/fast/dseg.tsv").write_text("index\tname\n0\tbackground\n2\twhite\n1\tgrey\n")
    (folder / "dataset_description.json").write_text('{"Name": "Heads", "BIDSVersion": "1.8.0"}')
    (folder / "participants.tsv").write_text(
        "participant_id\tage\tgroup\tsite\nsub-01\t34\tpatient\tnorth\nsub-02\tn/a\tcontrol\tsouth\n"
    )
    told = {"Manufacturer": "=Acme", "MagneticFieldStrength": 1.5, "EchoTime": 0.1}
    (folder / "sub-01/ses-a/anat/sub-01_ses-a_T1w.json").write_text(json.dumps(told))
    return folder


def test_participants_scanners_and_masks(tmp_path: Path) -> None:
    arguments = ["import", "bids", str(study(tmp_path / "in")), "--out", str(tmp_path / "out")]
    options = ["--suffix", "T1w", "--masks", "desc-lesion", "--label", "group"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0, result.output
    cohort = read_cohort(tmp_path / "out")
    assert (cohort.spec.name, cohort.spec.modality, cohort.spec.dimensions) == ("Heads", "mri", 3)
    assert cohort.spec.classes == ("control", "patient")
    assert cohort.spec.mask is not None
    assert cohort.spec.mask.name == "lesion"
    found = {case.case_id: case for case in cohort.cases}
    assert [*found] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02", "sub-03"]
    first, second, third, unknown = found.values()
    assert [case.patient_id for case in found.values()] == ["sub-01", "sub-01", "sub-02", "sub-03"]
    assert [case.site for case in found.values()] == ["north", "north", "south", "unknown"]
    assert [case.label for case in found.values()] == [1, 1, 0, None]
    assert [case.mask is not None for case in found.values()] == [False, True, True, False]
    assert first.extra["field_strength"] == "1.5"
    assert first.extra["manufacturer"] == "=Acme"
    assert (second.extra["age"], third.extra.get("age", ""), unknown.extra.get("age", "")) == ("34", "", "")


def test_suffixes_are_channels_and_label_maps_have_names(tmp_path: Path) -> None:
    source = study(tmp_path / "in")
    for mask in (source / "derivatives" / "hand").rglob("*.nii.gz"):
        mask.unlink()
    cohort = import_bids(source, tmp_path / "out", suffixes=["FLAIR", "T1w"], copy=False)
    assert [*cohort.spec.channels] == ["FLAIR", "T1w"]
    assert [case.case_id for case in cohort.cases] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02"]
    assert cohort.cases[0].channels["FLAIR"].name == "sub-01_ses-a_FLAIR.nii.gz"
    assert cohort.spec.structures == ("grey", "white")
    assert [case.structures is not None for case in cohort.cases] == [False, False, True]


def test_what_is_one_of_several_is_asked_for(tmp_path: Path) -> None:
    source = study(tmp_path / "in")
    with pytest.raises(CohortError, match=r"found T1w \(4\), FLAIR \(3\)\. Say which"):
        import_bids(source, tmp_path / "out")
    with pytest.raises(
        CohortError, match=r"several kinds of masks: without desc _dseg \(1\), desc-lesion _mask"
    ):
        import_bids(source, tmp_path / "out", suffixes=["T1w"])
    with pytest.raises(CohortError, match=r"no masks desc-tumour\. There are: desc-lesion"):
        import_bids(source, tmp_path / "out", suffixes=["T1w"], masks="desc-tumour")
    with pytest.raises(CohortError, match="no case has an image of T1w and bold"):
        import_bids(source, tmp_path / "out", suffixes=["T1w", "bold"])
    with pytest.raises(CohortError, match=r"participants\.tsv: column sex: expected two classes"):
        import_bids(source, tmp_path / "out", suffixes=["T1w"], masks="desc-lesion", label="sex")
    (source / "derivatives/fast/dseg.tsv").unlink()
    with pytest.raises(CohortError, match=r"no table of its labels\. Expected sub-02_dseg\.tsv"):
        import_bids(source, tmp_path / "out", suffixes=["T1w"], masks="")
    (source / "dataset_description.json").unlink()
    with pytest.raises(CohortError, match=r"no dataset_description\.json"):
        import_bids(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_there_and_back_loses_nothing(tmp_path: Path) -> None:
    spec = CohortSpec.model_validate(
        {
            "name": "hearts",
            "modality": "mri",
            "dimensions": 3,
            "classes": ["CoA", "RAA"],
            "mask": {"name": "vessels", "values": [255], "outside": [0, 7]},
            "structures": ["AO", "DAO"],
            "targets": {
                "age": {"kind": "number", "unit": "weeks"},
                "scar": {"kind": "mask", "name": "scar", "values": [3]},
            },
            "channels": {"T1w": "image_t1", "T2w": "image_t2"},
            "missing_channels": "zeros",
            "columns": {"scanner": "maker"},
        }
    )
    rng = np.random.default_rng(1)
    folder = tmp_path / "hearts"
    folder.mkdir()
    values = {"mask": [0, 7, 255], "structures": [0, 1, 2], "scar": [0, 3], "reference": [0, 1, 2]}
    rows = []
    for number, patient in enumerate(("p-1", "p1", "p1", "sub-P1")):
        row = {"case_id": f"h {number}", "patient_id": patient, "site": f"s{number % 2}", "scanner": "a\tb"}
        for name in ("image_t1", "image_t2"):
            write_nifti(folder / f"{name}-{number}.nii", rng.random(SHAPE, np.float32), AFFINE)
            row[name] = f"{name}-{number}.nii"
        for name, voxels in values.items():
            write_nifti(
                folder / f"{name}-{number}.nii.gz", rng.choice(voxels, SHAPE).astype(np.uint8), AFFINE
            )
            row[name] = f"{name}-{number}.nii.gz"
        rows.append({**row, "label": "RAA", "split": "test", "age": str(20.5 + number)})
    del rows[1]["structures"], rows[2]["image_t2"]
    write_cohort(folder, spec, rows)
    cohort = read_cohort(folder)

    made = export_bids(cohort, tmp_path / "bids")
    assert (made.cases, made.participants, made.failed) == (4, 3, {})
    participants = (tmp_path / "bids" / "participants.tsv").read_text().splitlines()
    assert participants[0].split("\t")[:3] == ["participant_id", "patient_id", "site"]
    assert len({line.split("\t")[0].lower() for line in participants[1:]}) == 3
    lesion = next((tmp_path / "bids" / "derivatives").rglob("*desc-mask_mask.nii.gz"))
    assert {*np.unique(read_image(lesion).array)} == {0, 1}

    (tmp_path / "bids").rename(tmp_path / "moved")
    back = import_bids(tmp_path / "moved", tmp_path / "back")
    assert len(back.cases) == len(cohort.cases)
    for case, was in zip(back.cases, cohort.cases, strict=True):
        same = ("case_id", "patient_id", "site", "label", "split", "extra")
        assert [getattr(case, name) for name in same] == [getattr(was, name) for name in same]
        assert case.targets["age"] == was.targets["age"]
        assert case.channels.keys() == was.channels.keys()
        for name, path in was.channels.items():
            assert np.array_equal(read_image(case.channels[name]).array, read_image(path).array)
        assert case.label_maps.keys() == was.label_maps.keys()
        image = read_image(was.image)
        for name in case.label_maps:
            found, known = (
                read_label_map_of(name, one.targets[name], None, image, meaning).array
                for one, meaning in ((case, back.spec), (was, cohort.spec))
            )
            assert np.array_equal(found, known)
        assert case.reference is not None
        assert was.reference is not None
        assert case.reference.read_bytes() == was.reference.read_bytes()
    assert back.spec.model_dump(exclude={"mask", "targets"}) == cohort.spec.model_dump(
        exclude={"mask", "targets"}
    )


def test_what_the_structure_cant_hold_is_refused(tmp_path: Path) -> None:
    spec = CohortSpec.model_validate({"name": "x", "modality": "mri", "dimensions": 3, "classes": ["a", "b"]})
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in" / "i.nii.gz", np.zeros(SHAPE, np.float32), AFFINE)
    row = {"case_id": "c", "patient_id": "p", "site": "s", "image": "i.nii.gz", "label": "a"}
    gone = {**row, "case_id": "gone", "image": "gone.nii.gz"}
    write_cohort(tmp_path / "in", spec, [row, gone])
    cohort = read_cohort(tmp_path / "in")
    with pytest.raises(CohortError, match=r"'' is no suffix of an image\. Say what the images are"):
        export_bids(cohort, tmp_path / "out")
    made = export_bids(cohort, tmp_path / "out", suffix="T2w")
    assert (made.cases, [*made.failed]) == (1, ["gone"])
