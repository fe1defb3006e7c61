"""nnU-Net's raw data sets: as others write them, and a cohort there and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from threefold.cli.app import app
from threefold.cohorts.cohort import Cohort, CohortSpec, read_cohort, write_cohort
from threefold.cohorts.nnunet import export_nnunet, import_nnunet
from threefold.cohorts.targets import read_label_map_of
from threefold.errors import CohortError
from threefold.images.reading import read_image, read_label_map
from threefold.images.writing import write_nifti, write_png

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (6, 5, 4)


def dataset(folder: Path, content: dict[str, Any], *, channels: int = 1, labels: int = 3) -> Path:
    """Write a raw data set of three cases, the last for testing, as nnU-Net's documentation describes it."""
    rng = np.random.default_rng(0)
    for name, part in (("a", "Tr"), ("b", "Tr"), ("c", "Ts")):
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
        for number in range(channels):
            array = rng.normal(50, 20, SHAPE).astype(np.float32)
            write_nifti(folder / f"images{part}" / f"{name}_{number:04d}.nii.gz", array, AFFINE)
        if part == "Tr":
            made = rng.integers(0, labels, SHAPE).astype(np.uint8)
            write_nifti(folder / f"labels{part}" / f"{name}.nii.gz", made, AFFINE)
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", **content}))
    return folder


def test_structures_and_what_nnu_net_does_not_know(tmp_path: Path) -> None:
    labels = {"background": 0, "kidney": 1, "tumour": 2}
    source = dataset(tmp_path / "Dataset001_Kidneys", {"channel_names": {"0": "CT"}, "labels": labels})
    result = CliRunner().invoke(app, ["import", "nnunet", str(source), "--out", str(tmp_path / "kidneys")])
    assert result.exit_code == 0, result.output
    cohort = read_cohort(tmp_path / "kidneys")
    assert cohort.spec.name == "Dataset001_Kidneys"
    assert (cohort.spec.modality, cohort.spec.intensity.unit, cohort.spec.dimensions) == ("ct", "HU", 3)
    assert cohort.spec.structures == ("kidney", "tumour")
    assert cohort.spec.unknown == ("patient", "site")
    assert [case.case_id for case in cohort.cases] == ["a", "b", "c"]
    assert [case.extra["nnunet_part"] for case in cohort.cases] == ["training", "training", "test"]
    assert [case.structures is not None for case in cohort.cases] == [True, True, False]


def test_the_first_versions_file_and_a_hospital(tmp_path: Path) -> None:
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "hippocampus"}}
    source = dataset(tmp_path / "Task004", content, labels=2)
    cohort = import_nnunet(source, tmp_path / "out", site="north", copy=False)
    assert cohort.spec.mask is not None
    assert (cohort.spec.mask.name, cohort.spec.mask.values) == ("hippocampus", (1,))
    assert (cohort.spec.modality, cohort.spec.unknown) == ("mri", ("patient",))
    assert {case.site for case in cohort.cases} == {"north"}
    assert cohort.cases[0].image == source / "imagesTr" / "a_0000.nii.gz"


def test_regions_are_a_mask_each_and_channels_keep_their_names(tmp_path: Path) -> None:
    content = {
        "channel_names": {"1": "T1ce", "0": "FLAIR"},
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
        "regions_class_order": [1, 2, 3],
    }
    source = dataset(tmp_path / "Dataset002_Brains", content, channels=2, labels=4)
    cohort = import_nnunet(source, tmp_path / "out")
    assert [*cohort.spec.channels] == ["FLAIR", "T1ce"]
    case = cohort.cases[0]
    image = read_image(case.image)
    assert np.array_equal(image.array, read_image(source / "imagesTr" / "a_0000.nii.gz").array)
    label = read_label_map(source / "labelsTr" / "a.nii.gz").array
    for name, least in (("whole", 1), ("core", 2), ("enhancing", 3)):
        found = read_label_map_of(name, case.targets[name], None, image, cohort.spec)
        assert np.array_equal(found.array, label >= least)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"channel_names": {"0": "noNorm"}, "labels": {"x": 1}}, "--modality ct, mri or photo"),
        ({"channel_names": {"1": "CT"}, "labels": {"x": 1}}, 'expected names of "0", "1"'),
        ({"channel_names": {"0": "CT"}, "labels": {"x": 1, "ignore": 2}}, "'ignore' has no counterpart"),
        ({"channel_names": {"0": "CT"}, "labels": {"x": 1, "y": 3}}, "without a gap, found \\[1, 3\\]"),
        ({"channel_names": {"0": "CT"}, "labels": {"x": "one", "y": 1}}, "expected whole numbers"),
        ({"channel_names": {"0": "CT"}}, "key labels: expected a number for each name"),
    ],
)
def test_what_cant_be_a_cohort_is_refused(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = dataset(tmp_path / "in", content)
    with pytest.raises(CohortError, match=message):
        import_nnunet(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_case_without_its_second_channel_costs_itself_alone(tmp_path: Path) -> None:
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "x": 1, "y": 2}}
    source = dataset(tmp_path / "in", content, channels=2)
    (source / "imagesTr" / "b_0001.nii.gz").unlink()
    cohort = import_nnunet(source, tmp_path / "out")
    assert [case.case_id for case in cohort.cases] == ["a", "c"]
    assert "b_0001.nii.gz: no such file" in (tmp_path / "out" / "provenance.json").read_text()


def test_a_damaged_first_image_or_a_missing_channel_costs_its_case_alone(tmp_path: Path) -> None:
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "x": 1, "y": 2}}
    source = dataset(tmp_path / "in", content, channels=2)
    (source / "imagesTr" / "a_0000.nii.gz").write_bytes(b"damaged")
    cohort = import_nnunet(source, tmp_path / "out", copy=False)
    assert cohort.spec.dimensions == 3
    lacking = replace(cohort.cases[1], channels={"T1": cohort.cases[1].channels["T1"]})
    cohort = replace(cohort, cases=(lacking, cohort.cases[2]))
    made = export_nnunet(cohort, tmp_path / "Dataset503_Brains")
    assert {*made.failed} == {"b"}
    assert "channel T2 is missing" in made.failed["b"]


def hearts(folder: Path) -> Cohort:
    """A cohort with all that nnU-Net does not know: patients, sites, labels, a second mask, odd values."""
    spec = CohortSpec.model_validate(
        {
            "name": "hearts",
            "modality": "mri",
            "dimensions": 3,
            "classes": ["CoA", "RAA"],
            "mask": {"name": "vessels", "values": [255], "outside": [0, 7]},
            "structures": ["AO", "DAO"],
            "targets": {"age": {"kind": "number", "unit": "weeks"}},
            "site_groups": {"external": ["south"]},
            "columns": {"scanner": "maker"},
        }
    )
    rng = np.random.default_rng(1)
    rows = []
    for number in range(8):
        name = f"heart {number} é" if number == 1 else f"heart-{number}"
        image, mask, labels = (folder / f"{kind}-{number}.nii" for kind in ("image", "mask", "labels"))
        folder.mkdir(exist_ok=True)
        write_nifti(image, rng.normal(0, 1, SHAPE).astype(np.float32), AFFINE)
        write_nifti(mask, rng.choice([0, 7, 255], SHAPE).astype(np.uint8), AFFINE)
        write_nifti(labels, rng.integers(0, 3, SHAPE).astype(np.uint8), AFFINE)
        rows.append(
            {
                "case_id": name,
                "patient_id": f"p{number // 2}",
                "site": "south" if number > 5 else "north",
                "image": image.name,
                "mask": mask.name,
                "structures": labels.name if number != 3 else None,
                "label": "RAA" if number % 2 else "CoA",
                "split": "test" if number > 5 else "train",
                "age": 20.5 + number,
                "scanner": "=1.5 T",
            }
        )
    write_cohort(folder, spec, rows)
    return read_cohort(folder)


@pytest.mark.parametrize("target", ["mask", "structures"])
def test_there_and_back_loses_nothing(target: str, tmp_path: Path) -> None:
    cohort = hearts(tmp_path / "hearts")
    out = tmp_path / "Dataset501_Hearts"
    made = export_nnunet(cohort, out, target=target, folds=3)
    assert (made.training, made.test, made.folds, made.failed) == (
        (6, 2, 3, {}) if target == "mask" else (5, 3, 3, {})
    )
    said = json.loads((out / "dataset.json").read_text())
    assert said["channel_names"] == {"0": "MRI"}
    assert said["numTraining"] == made.training == len([*(out / "imagesTr").iterdir()])
    foreground = ["vessels"] if target == "mask" else ["AO", "DAO"]
    assert said["labels"] == {"background": 0} | {name: n for n, name in enumerate(foreground, start=1)}
    assert {*np.unique(read_label_map(out / "labelsTr" / "heart-0.nii.gz").array)} == {
        *range(len(foreground) + 1)
    }

    out.rename(tmp_path / "moved")
    back = import_nnunet(tmp_path / "moved", tmp_path / "back")
    assert {case.case_id for case in back.cases} == {case.case_id for case in cohort.cases}
    before = {case.case_id: case for case in cohort.cases}
    for case in back.cases:
        was = before[case.case_id]
        assert (case.patient_id, case.site, case.label, case.split, case.extra) == (
            was.patient_id, was.site, was.label, was.split, was.extra,
        )  # fmt: skip
        assert case.targets["age"] == was.targets["age"]
        assert case.label_maps.keys() == was.label_maps.keys()
        image, then = read_image(case.image), read_image(was.image)
        assert np.array_equal(image.array, then.array)
        for name in case.label_maps:
            found, known = (
                read_label_map_of(name, one.targets[name], None, image, spec).array
                for one, spec in ((case, back.spec), (was, cohort.spec))
            )
            assert np.array_equal(found, known)
    left = {"mask"} if target == "mask" else set()
    assert back.spec.model_dump(exclude=left) == cohort.spec.model_dump(exclude=left)


def test_folds_keep_a_patients_cases_together(tmp_path: Path) -> None:
    cohort = hearts(tmp_path / "hearts")
    out = tmp_path / "Dataset501_Hearts"
    arguments = ["export", str(tmp_path / "hearts"), "nnunet", "--out", str(out), "--target", "mask"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "6 cases for training in 3 folds by patient, 2 others" in result.output
    folds = json.loads((out / "splits_final.json").read_text())
    stems = {path.name.removesuffix("_0000.nii.gz") for path in (out / "imagesTr").iterdir()}
    patients = {case.case_id: case.patient_id for case in cohort.cases}
    for fold in folds:
        assert {*fold["train"]} | {*fold["val"]} == stems
        train, validated = ({patients[name] for name in fold[side]} for side in ("train", "val"))
        assert not train & validated
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(stems)


def test_pictures_stay_png(tmp_path: Path) -> None:
    spec = CohortSpec.model_validate(
        {
            "name": "skin",
            "modality": "photo",
            "dimensions": 2,
            "mask": {"values": [255]},
            "intensity": {"unit": "grey"},
        }
    )
    rng = np.random.default_rng(0)
    mask = (rng.random((8, 6)) > 0.5).astype(np.uint8)
    (tmp_path / "skin").mkdir()
    for number in range(2):
        write_png(tmp_path / "skin" / f"i{number}.png", rng.integers(0, 255, (8, 6)).astype(np.uint8))
        write_png(tmp_path / "skin" / f"m{number}.png", mask * np.uint8(255))
    rows = [
        {"case_id": f"s{n}", "patient_id": f"p{n}", "site": "x", "image": f"i{n}.png", "mask": f"m{n}.png"}
        for n in range(2)
    ]
    write_cohort(tmp_path / "skin", spec, rows)
    export_nnunet(read_cohort(tmp_path / "skin"), tmp_path / "Dataset502_Skin")
    assert np.array_equal(read_label_map(tmp_path / "Dataset502_Skin" / "labelsTr" / "s0.png").array, mask)
    assert json.loads((tmp_path / "Dataset502_Skin" / "dataset.json").read_text())["file_ending"] == ".png"
    assert len(import_nnunet(tmp_path / "Dataset502_Skin", tmp_path / "back").cases) == 2


def test_what_nnu_net_cant_take_is_refused(tmp_path: Path) -> None:
    cohort = hearts(tmp_path / "hearts")
    with pytest.raises(CohortError, match=r"takes names such as Dataset501_Hearts"):
        export_nnunet(cohort, tmp_path / "hearts-for-nnunet", target="mask")
    with pytest.raises(CohortError, match=r"found mask, structures\. Name one of mask, structures"):
        export_nnunet(cohort, tmp_path / "Dataset501_Hearts")
    sliced = replace(cohort, cases=(replace(cohort.cases[0], slice_index=1),))
    with pytest.raises(CohortError, match=r"1 cases are slices of volumes"):
        export_nnunet(sliced, tmp_path / "Dataset501_Hearts", target="mask")
    cohort.cases[0].image.unlink()
    made = export_nnunet(cohort, tmp_path / "Dataset501_Hearts", target="mask")
    assert [*made.failed] == ["heart-0"]
