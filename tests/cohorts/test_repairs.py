"""Tables as they are downloaded: no patient, no site, tinted pictures, masks on another grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from threefold.audits.audit import Audit, audit
from threefold.cohorts.cohort import CohortSpec, IntensitySpec, read_cohort
from threefold.cohorts.importers import import_table
from threefold.cohorts.repairs import Repairs
from threefold.cohorts.splits import make_split, read_split, write_split
from threefold.cohorts.targets import read_mask
from threefold.core.targets import MaskSpec
from threefold.errors import CohortError
from threefold.experiment import SplitSpec
from threefold.images.reading import read_image
from threefold.images.writing import write_nifti, write_png

SPEC = CohortSpec(
    name="downloaded",
    modality="photo",
    dimensions=2,
    classes=("normal", "abnormal"),
    mask=MaskSpec(values=(255,)),
    spacing=(1.0, 1.0),
    intensity=IntensitySpec(),
)


def said(result: Audit, check: str) -> str:
    return " | ".join(f"{f.severity}: {f.message}" for f in result.findings if f.check == check)


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """Eight pictures: normal ones tinted and without masks, the others' masks at half the size."""
    folder, generator = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    lines = ["image,label,mask"]
    for number in range(8):
        grey = generator.integers(10, 240, (16, 12)).astype(np.uint8)
        positive = number % 2
        if positive:
            write_png(folder / f"{number}.png", grey)
            mask = np.zeros((8, 6), np.uint8)
            mask[2:4, 1:3] = 255
            write_png(folder / f"{number}-mask.png", mask)
        else:
            tinted = np.stack([grey, (grey * 0.9).astype(np.uint8), grey], axis=-1)
            PIL.Image.fromarray(tinted).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'abnormal' if positive else 'normal'},{f'{number}-mask.png' * positive}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


def imported(folder: Path, out: Path, **options: Any) -> Any:
    options = {"unknown": ("patient", "site"), "repairs": Repairs(grey=True, resample_masks=True)} | options
    return import_table(folder / "table.csv", out, SPEC, **options)


def test_unknown_patients_and_sites_have_to_be_said(downloaded: Path, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no column for patient_id.*--unknown patient"):
        imported(downloaded, tmp_path / "out", unknown=())


def test_what_is_not_known_is_marked_everywhere(downloaded: Path, tmp_path: Path) -> None:
    cohort = imported(downloaded, tmp_path / "out")
    assert cohort.spec.unknown == ("patient", "site")
    assert cohort.sites == ("unknown",)
    assert read_cohort(tmp_path / "out") == cohort
    split = make_split(cohort, SplitSpec())
    assert split.leaks  # every number of a run carries the mark
    write_split(tmp_path / "split.csv", split)
    assert read_split(tmp_path / "split.csv") == split
    result = audit(cohort, split=SplitSpec())
    assert not result.refused
    assert "warn: The patients are not known" in said(result, "patients")
    assert "warn: The sites are not known" in said(result, "sites")


def test_ids_made_of_case_ids_and_patients_of_one_case_are_said(downloaded: Path, tmp_path: Path) -> None:
    cohort = imported(downloaded, tmp_path / "out")
    from dataclasses import replace

    plain = replace(cohort, spec=cohort.spec.model_copy(update={"unknown": ()}))
    assert "warn: Every patient_id is its case_id" in said(audit(plain), "patients")
    named = replace(plain, cases=tuple(replace(c, patient_id=f"p{c.case_id}") for c in plain.cases))
    assert "note: Every patient has one case" in said(audit(named), "patients")
    pairs = tuple(replace(c, patient_id=f"p{n // 2}") for n, c in enumerate(plain.cases))
    assert said(audit(replace(plain, cases=pairs)), "patients") == ""


def test_colour_and_grids_are_repaired_and_recorded(downloaded: Path, tmp_path: Path) -> None:
    cohort = imported(downloaded, tmp_path / "out", empty_masks_for=["normal"])
    done = json.loads((tmp_path / "out/provenance.json").read_text())["repaired"]
    assert done["0"][0].startswith("image made grey: ")
    assert done["0"][1] == "empty mask: the label is normal"
    assert (
        done["1"] == ["mask resampled (nearest neighbour): 8 x 6 voxels, expected 16 x 12"]
        or "8" in done["1"][0]
    )
    for case in cohort.cases:
        image = read_image(case.image, spacing=(1.0, 1.0))
        mask = read_mask(case.mask, None, image, cohort.spec)
        assert int(mask.array.sum()) == (16 if case.label else 0)
    first = read_image(cohort.cases[1].image, spacing=(1.0, 1.0))
    assert np.array_equal(
        read_mask(cohort.cases[1].mask, None, first, cohort.spec).array[4:8, 2:6], np.ones((4, 4), np.uint8)
    )
    before = np.asarray(PIL.Image.open(downloaded / "0.png")).astype(float)
    after = np.asarray(read_image(cohort.cases[0].image).array, float)
    assert np.abs(before @ [0.299, 0.587, 0.114] - after).max() <= 0.51


def test_without_repairs_each_bad_file_costs_its_case_or_is_refused(downloaded: Path, tmp_path: Path) -> None:
    cohort = imported(downloaded, tmp_path / "out", repairs=Repairs())
    result = audit(cohort)
    assert "a colour image" in said(result, "files")
    assert "lies on another grid" in said(result, "geometry")
    assert "No case of 'normal' has a mask" in said(result, "masks")
    assert "--empty-masks-for normal" in said(result, "masks")


def test_a_mask_of_a_volume_is_resampled_by_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-3, 5, 7]
    fine = np.diag([1.0, 1, 1, 1])
    fine[:3, 3] = affine[:3, 3] - 0.5  # each coarse voxel is two fine ones
    labels = np.zeros((12, 12, 12), np.int16)
    labels[4:8, 2:6, 6:10] = 1
    write_nifti(
        folder / "i.nii.gz", np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32), affine
    )
    write_nifti(folder / "m.nii.gz", labels, fine)
    (folder / "table.csv").write_text("patient_id,site,image,mask\na,s,i.nii.gz,m.nii.gz\nb,s,i.nii.gz,\n")
    spec = CohortSpec(name="v", modality="mri", dimensions=3, mask=MaskSpec())
    cohort = import_table(
        folder / "table.csv",
        tmp_path / "out",
        spec,
        columns={"case_id": "patient_id"},
        constants={"patient_id": "p"},
        repairs=Repairs(resample_masks=True),
    )
    image = read_image(cohort.cases[0].image)
    assert cohort.cases[0].mask is not None
    mask = read_mask(cohort.cases[0].mask, None, image, cohort.spec).array
    assert mask.sum() == 8
    assert mask[2:4, 1:3, 3:5].all()


def test_what_can_not_be_repaired(downloaded: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"copy": False}, "leave --reference off"),
        ({"empty_masks_for": ["norml"]}, "Did you mean 'normal'"),
    ):
        with pytest.raises(CohortError, match=message):
            imported(downloaded, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_the_command_takes_them_too(downloaded: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from threefold.cli.importing import importing
    from threefold.cohorts.cohort import write_cohort

    write_cohort(tmp_path / "meaning", SPEC, [{"case_id": "a", "patient_id": "a", "site": "s", "image": "x"}])
    words = ["table", str(downloaded / "table.csv"), "--meaning", str(tmp_path / "meaning/cohort.yaml")]
    words += ["--out", str(tmp_path / "out"), "--unknown", "patient", "--unknown", "site", "--grey"]
    words += ["--resample-masks", "--outside", "-32768", "--empty-masks-for", "normal"]
    result = CliRunner().invoke(importing, words)
    assert result.exit_code == 0, result.output
    spec = read_cohort(tmp_path / "out").spec
    assert spec.mask is not None
    assert spec.mask.outside == (0, -32768)


def test_an_atlas_that_is_a_case_and_a_split_column_that_does_not_decide(tmp_path: Path) -> None:
    from threefold.cohorts.cohort import AtlasSpec, write_cohort

    generator = np.random.default_rng(0)
    rows = []
    for number in range(8):
        image = generator.normal(size=(8, 8, 8)).cumsum(0).astype(np.float32)
        write_nifti(tmp_path / f"{number}.nii.gz", image, np.eye(4))
        part = "test" if number < 4 else "train"
        rows.append({"case_id": f"c{number}", "patient_id": f"p{number}", "site": "s", "split": part})
        rows[-1]["image"] = f"{number}.nii.gz"
        if number == 2:
            write_nifti(tmp_path / "atlas.nii.gz", image, np.eye(4))
            write_nifti(tmp_path / "labels.nii.gz", np.ones((8, 8, 8), np.uint8), np.eye(4))
    spec = CohortSpec(
        name="c",
        modality="mri",
        dimensions=3,
        structures=("vessel",),
        atlases=(AtlasSpec(name="A", image="atlas.nii.gz", structures="labels.nii.gz"),),
    )
    result = audit(write_cohort(tmp_path, spec, rows), split=SplitSpec())
    assert "warn: Atlas A is a case too: c2" in said(result, "atlases")
    assert "The split column is filled for 8 case(s), and the patient split does not follow it" in said(
        result, "split"
    )


def test_a_declared_mask_that_no_case_has_is_no_reason_to_refuse(downloaded: Path, tmp_path: Path) -> None:
    cohort = imported(downloaded, tmp_path / "out")
    from dataclasses import replace

    unmasked = replace(
        cohort, cases=tuple(replace(c, targets={"label": c.targets["label"]}) for c in cohort.cases)
    )
    result = audit(unmasked)
    assert "note: No case has a mask" in said(result, "targets")
    assert not result.refused
    assert audit(unmasked, targets=["mask"]).refused
