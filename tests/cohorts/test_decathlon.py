"""The published implementation's data.json: to a cohort, from one, and through MONAI's reader."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from monai.data import DataLoader, Dataset, load_decathlon_datalist
from monai.transforms import EnsureChannelFirstd, LoadImaged
from typer import Typer
from typer.testing import CliRunner

from threefold.cli.app import app
from threefold.cli.exporting import exporting
from threefold.cohorts.cohort import Cohort, CohortSpec, fingerprint, read_cohort, write_cohort
from threefold.cohorts.decathlon import import_decathlon
from threefold.cohorts.decathlon_export import export_decathlon
from threefold.cohorts.importers import import_table
from threefold.cohorts.merging import merge_cohorts
from threefold.cohorts.splits import Split
from threefold.errors import CohortError
from threefold.images.writing import write_nifti

CLASSES = ("CoA", "RAA", "DAA")
SHAPE = (5, 6, 4)
SPEC = CohortSpec.model_validate(
    {
        "name": "arches",
        "modality": "mri",
        "dimensions": 3,
        "classes": CLASSES,
        "mask": {"name": "vessels"},
        "structures": ["AO", "DAO"],
        "site_groups": {"external": ["south"]},
        "atlases": [
            {
                "name": "coa",
                "image": "atlas/coa.nii.gz",
                "structures": "atlas/coa_labels.nii.gz",
                "label": "CoA",
            }
        ],
        "columns": {"weeks": "gestational age", "note": "free text"},
    }
)


def write_volume(path: Path, values: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, values, SHAPE)
    array.flat[0] = values - 1
    write_nifti(path, array.astype(np.int16), np.diag([0.8, 0.8, 1.0, 1.0]))


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Seven cases that differ in what is known of them."""
    folder = tmp_path / "cohort"
    known = {
        "mask": (2, "m"),
        "structures": (3, "s"),
        "reference": (3, "r"),
    }
    plan: list[tuple[str, str | None, str | None, tuple[str, ...]]] = [
        ("a", "train", "CoA", ("mask", "structures", "reference")),
        ("b", "train", "DAA", ("mask",)),
        ("c", "validation", None, ("structures",)),
        ("d", "test", "RAA", ("mask", "structures", "reference")),
        ("e", "test", "CoA", ("mask",)),
        ("f", "test", "DAA", ("mask", "structures")),
        ("g", None, "CoA", ()),
    ]
    rows: list[dict[str, Any]] = []
    for number, (name, split, label, targets) in enumerate(plan):
        write_volume(folder / "images" / f"{name}.nii.gz", 500, number)
        row: dict[str, Any] = {
            "case_id": f"case {name}",
            "patient_id": f"p{number // 2}",
            "site": "north" if number < 4 else "south",
            "image": f"images/{name}.nii.gz",
            "split": split,
            "label": label,
            "weeks": f"{28 + number}.5",
            "note": "grün, leise" if number == 2 else "",
        }
        for target in targets:
            values, letter = known[target]
            row[target] = f"{target}/{name}_{letter}.nii.gz"
            write_volume(folder / row[target], values, 10 * number + values)
        rows.append(row)
    write_volume(folder / "atlas" / "coa.nii.gz", 500, 90)
    write_volume(folder / "atlas" / "coa_labels.nii.gz", 3, 91)
    return write_cohort(folder, SPEC, rows)


def voxels(path: Path | None) -> bytes | None:
    return None if path is None else np.asarray(nibabel.load(path).dataobj).tobytes()


def assert_same(a: Cohort, b: Cohort) -> None:
    """The same cases and meaning; files may lie elsewhere but hold the same."""
    assert a.spec.model_copy(update={"atlases": ()}) == b.spec.model_copy(update={"atlases": ()})
    for mine, theirs in zip(a.spec.atlases, b.spec.atlases, strict=True):
        assert (mine.name, mine.label) == (theirs.name, theirs.label)
        for key in ("image", "structures"):
            assert voxels(a.folder / getattr(mine, key)) == voxels(b.folder / getattr(theirs, key))
    first, second = ({case.case_id: case for case in one.cases} for one in (a, b))
    assert set(first) == set(second)
    for case_id, case in first.items():
        other = second[case_id]
        for name in ("patient_id", "site", "label", "split", "slice_index", "extra"):
            assert getattr(case, name) == getattr(other, name), name
        for name in ("image", "mask", "structures", "reference"):
            assert voxels(getattr(case, name)) == voxels(getattr(other, name)), name


# --- round trips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("where", ["data.json", "cohort/data.json", "elsewhere/deep/set.json"])
def test_a_round_trip_loses_nothing(cohort: Cohort, tmp_path: Path, where: str, copy: bool) -> None:
    file = tmp_path / where
    file.parent.mkdir(parents=True, exist_ok=True)
    export_decathlon(cohort, file)
    again = import_decathlon(file, tmp_path / "again", copy=copy, allow_outside=True)
    assert_same(cohort, again)
    assert (again.cases[0].image.parent == tmp_path / "again" / "images") == copy
    file2 = tmp_path / "second.json"
    export_decathlon(again, file2)
    assert fingerprint(import_decathlon(file2, tmp_path / "third", allow_outside=True)) == fingerprint(
        import_decathlon(file, tmp_path / "fourth", allow_outside=True)
    )


def test_files_may_move_together(cohort: Cohort, tmp_path: Path) -> None:
    export_decathlon(cohort, cohort.folder / "data.json")
    moved = cohort.folder.rename(tmp_path / "moved")
    assert len(import_decathlon(moved, tmp_path / "again").cases) == 7


def test_a_split_decides_the_lists(cohort: Cohort, tmp_path: Path) -> None:
    parts = dict.fromkeys([case.case_id for case in cohort.cases], "train") | {"case a": "test"}
    split = Split("patient", parts)  # type: ignore[arg-type]
    lacking = export_decathlon(cohort, tmp_path / "data.json", parts=split.parts)
    content = json.loads((tmp_path / "data.json").read_text())
    assert {name: len(content[name]) for name in ("training", "validation", "testing", "inference")} == {
        "training": 6,
        "validation": 0,
        "testing": 1,
        "inference": 0,
    }
    assert lacking == {
        "LP": ["case b", "case e", "case g"],
        "mask": ["case c", "case g"],
        "label": ["case c"],
    }
    again = import_decathlon(tmp_path, tmp_path / "again")
    assert {case.case_id: case.split for case in again.cases} == parts


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries every reader
def test_the_published_reader_reads_it(cohort: Cohort, tmp_path: Path) -> None:
    """As data/dataloaders.py of the published implementation does, with its keys."""
    file = tmp_path / "data.json"
    export_decathlon(cohort, file)
    load = LoadImaged(keys=["image", "mask", "LP"], allow_missing_keys=True)
    channel = EnsureChannelFirstd(keys=["image", "mask", "LP"], allow_missing_keys=True)
    lists = {name: load_decathlon_datalist(file, True, name) for name in ("training", "testing", "inference")}
    assert [len(entries) for entries in lists.values()] == [2, 3, 1]
    for name, entries in lists.items():
        for batch in DataLoader(Dataset(entries, lambda item: channel(load(item))), batch_size=1):
            assert batch["image"].shape == (1, 1, *SHAPE)
            assert int(batch["label"][0]) in (0, 1, 2)
            values = 3 if name == "testing" and batch["threefold"]["case_id"] != ["case e"] else 2
            if "mask" in batch:
                assert int(batch["mask"].max()) == values - 1
            if "LP" in batch:
                assert int(batch["LP"].max()) == 2
    assert [entry["label"] for entry in lists["training"]] == [0.0, 2.0]
    content = json.loads(file.read_text())
    assert content["labels"] == {"0": "background", "1": "AO", "2": "DAO"}
    assert content["modality"] == {"0": "MRI"}


# --- foreign files ------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Path]:
    """A file as the published README shows one, with volumes; `change` alters its content."""

    def make(change: Callable[[dict[str, Any]], None] | None = None) -> Path:
        for name in ("train/one", "train/two", "train/valid", "test/one", "test/two"):
            write_volume(tmp_path / "data" / f"{name}.nii.gz", 400, 1)
            write_volume(tmp_path / "data" / f"{name}_mask.nii.gz", 3 if name == "test/one" else 2, 2)
            write_volume(tmp_path / "data" / f"{name}_LP.nii.gz", 3, 3)

        def entry(name: str, label: float | None, *keys: str) -> dict[str, Any]:
            found: dict[str, Any] = {"image": f"data/{name}.nii.gz"}
            found |= {key: f"data/{name}_{key}.nii.gz" for key in keys}
            return found if label is None else {**found, "label": label}

        content: dict[str, Any] = {
            "description": "example-dataset",
            "labels": {"0": "background", "1": "SVC", "2": "Pvs"},
            "licence": "yt",
            "modality": {"0": "MRI"},
            "name": "cmr",
            "reference": "KCL",
            "tensorImageSize": "3D",
            "testing": [entry("test/one", 1.0, "mask"), entry("test/two", 0.0, "mask")],
            "training": [
                entry("train/one", 0.0, "mask", "LP") | {"weeks": 31.5, "patient_id": 7},
                entry("train/two", 2.0, "mask", "LP"),
            ],
            "validation": [entry("train/valid", 2.0, "mask", "LP")],
            "inference": [entry("train/valid", None)],
        }
        if change is not None:
            change(content)
        path = tmp_path / "data.json"
        path.write_text(json.dumps(content))
        return path

    return make


def test_a_published_file_becomes_a_cohort(published: Callable[..., Path], tmp_path: Path) -> None:
    cohort = import_decathlon(published(), tmp_path / "out", classes=CLASSES, patient_per_image=True)
    assert (cohort.spec.name, cohort.spec.modality, cohort.spec.dimensions) == ("cmr", "mri", 3)
    assert cohort.spec.structures == ("SVC", "Pvs")
    cases = {case.case_id: case for case in cohort.cases}
    # two images are called one: their folders tell them apart
    assert list(cases) == ["data-test-one", "data-test-two", "data-train-one", "data-train-two", "valid"]
    assert [case.split for case in cohort.cases] == ["test", "test", "train", "train", "validation"]
    assert [case.label for case in cohort.cases] == [1, 0, 0, 2, 2]
    assert cases["data-train-one"].patient_id == "7"
    assert cases["valid"].patient_id == "valid"
    assert cases["data-train-one"].extra == {"weeks": "31.5"}
    assert {case.site for case in cohort.cases} == {"cmr"}
    one, two, train = cases["data-test-one"], cases["data-test-two"], cases["data-train-one"]
    assert (one.reference is not None, one.mask, one.structures) == (True, None, None)
    assert (two.mask is not None, two.reference) == (True, None)
    assert train.mask is not None
    assert voxels(train.structures) == voxels(tmp_path / "data/train/one_LP.nii.gz")
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["left out"] == ["inference[0] (the image of validation[0])"]
    assert provenance["says"]["licence"] == "yt"


def test_the_decathlons_own_keys_are_read(published: Callable[..., Path], tmp_path: Path) -> None:
    def own(content: dict[str, Any]) -> None:
        for entry in content["training"]:
            entry["label"] = entry.pop("LP")
            del entry["mask"]
        content["test"] = [entry["image"] for entry in content.pop("testing")]
        del content["validation"], content["inference"]

    cohort = import_decathlon(published(own), tmp_path / "out", patient_per_image=True, site="KCL")
    assert [(case.split, case.label) for case in cohort.cases] == [("train", None)] * 2 + [("test", None)] * 2
    assert all((case.structures is None) == (case.split == "test") for case in cohort.cases)
    assert {case.site for case in cohort.cases} == {"KCL"}


def _set(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *path, last = keys
        target: Any = content
        for key in path:
            target = target[key]
        if value is None:
            del target[last]
        else:
            target[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _set("training", 1, "image", value=None),
            r"training\[1\], key image: expected a path, found nothing",
        ),
        (
            _set("training", 1, "image", value=["a", "b"]),
            r"training\[1\], key image: expected a path, found \[",
        ),
        (
            _set("validation", 0, "label", value=1.5),
            r"validation\[0\], key label: expected the number .* 1\.5",
        ),
        (_set("validation", 0, "label", value=True), r"validation\[0\], key label: .* found true"),
        (_set("validation", 0, "label", value=3), r"key label: diagnosis 3, but only 3 are named \(CoA, RAA"),
        (_set("training", 1, value=5), r"training\[1\]: expected keys and values, found 5"),
        (_set("training", value={}), r"training: expected a list of entries, found \{\}"),
        (_set("training", 0, "split", value="train"), r"training\[0\], key split: a key of this name"),
        (_set("training", 0, "info", value={"a": 1}), r"training\[0\], key info: expected text or a number"),
        (
            _set("training", 0, "image", value="data/test/one.nii.gz"),
            r"training\[0\], key image: .* is the image of testing\[0\] already",
        ),
        (_set("labels", "4", value="AO"), r'key labels: expected names of "0" \(background\), "1"'),
        (_set("labels", value=None), r"entries have LP, but there is no table 'labels'"),
        (_set("modality", value={"0": "US"}), r"key modality: expected MRI or CT, found"),
        (
            lambda content: [
                content.pop(name) for name in ("training", "validation", "testing", "inference")
            ],
            "expected the lists training, validation, testing, inference, found none",
        ),
        (_set("training", 0, "case_id", value="valid"), r"would be named 'valid' as that of training\[0\]"),
    ],
)
def test_mistakes_name_the_entry_and_the_key(
    published: Callable[..., Path], tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = published(change)
    with pytest.raises(CohortError, match=message) as raised:
        import_decathlon(path, tmp_path / "out", classes=CLASSES, patient_per_image=True)
    assert str(path) in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_an_entry_whose_file_is_missing_is_left_out_and_named(
    published: Callable[..., Path], tmp_path: Path
) -> None:
    whole = import_decathlon(published(), tmp_path / "whole", classes=CLASSES, patient_per_image=True)
    path = published(_set("training", 0, "LP", value="data/no.nii.gz"))
    made = import_decathlon(path, tmp_path / "out", classes=CLASSES, patient_per_image=True)
    failed = json.loads((tmp_path / "out" / "provenance.json").read_text())["failed"]
    assert len(failed) == 1
    assert "training[0], key LP: " in next(iter(failed.values()))
    assert {case.case_id for case in whole.cases} - {case.case_id for case in made.cases} == {*failed}


def test_a_first_image_that_can_not_be_read_harms_only_itself(
    published: Callable[..., Path], tmp_path: Path
) -> None:
    path = published(_set("testing", 0, "image", value="data/no.nii.gz"))
    made = import_decathlon(path, tmp_path / "out", classes=CLASSES, patient_per_image=True)
    assert made.spec.dimensions == 3
    failed = json.loads((tmp_path / "out" / "provenance.json").read_text())["failed"]
    assert len(failed) == 1
    assert "testing[0], key image: " in next(iter(failed.values()))


def test_what_the_file_does_not_say_has_to_be_said(published: Callable[..., Path], tmp_path: Path) -> None:
    path = published()
    with pytest.raises(CohortError, match=r"testing\[0\]: no key patient_id\. .* \(--patient-per-image\)"):
        import_decathlon(path, tmp_path / "out", classes=CLASSES)
    with pytest.raises(CohortError, match=r"testing\[0\], key label: diagnosis 1, but none\. Name them"):
        import_decathlon(path, tmp_path / "out", patient_per_image=True)
    path.write_text(path.read_text()[:-1] + "}}")
    with pytest.raises(CohortError, match=r"can't be read \(Extra data: line 1 column"):
        import_decathlon(path, tmp_path / "out")
    with pytest.raises(CohortError, match=r"nowhere\.json: no such file"):
        import_decathlon(tmp_path / "nowhere.json", tmp_path / "out")


# --- what can't be exported ---------------------------------------------------------------------------


def test_what_the_format_cannot_say_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("{}")
    with pytest.raises(CohortError, match=r"there\.json: exists already"):
        export_decathlon(cohort, tmp_path / "there.json")
    table = (cohort.folder / "cases.csv").read_text().splitlines()
    (cohort.folder / "cases.csv").write_text("\n".join([f"{table[0]},slice", *(f"{r},1" for r in table[1:])]))
    meaning = yaml.safe_load((cohort.folder / "cohort.yaml").read_text())
    (cohort.folder / "cohort.yaml").write_text(yaml.safe_dump(meaning | {"dimensions": 2}))
    with pytest.raises(CohortError, match=r"cases are slices of volumes.*: case a, "):
        export_decathlon(read_cohort(cohort.folder), tmp_path / "data.json")
    meaning["mask"] = {"name": "vessels", "values": [2]}
    (cohort.folder / "cohort.yaml").write_text(yaml.safe_dump(meaning | {"dimensions": 2}))
    with pytest.raises(CohortError, match=r"the mask's inside is \[2\]"):
        export_decathlon(read_cohort(cohort.folder), tmp_path / "data.json")
    assert not (tmp_path / "data.json").exists()


# --- commands -----------------------------------------------------------------------------------------


def test_commands(cohort: Cohort, published: Callable[..., Path], tmp_path: Path) -> None:
    program = Typer()
    program.add_typer(exporting, name="export")
    run = CliRunner()
    file = tmp_path / "set.json"
    result = run.invoke(program, ["export", "decathlon", str(cohort.folder), "--out", str(file)])
    assert result.exit_code == 0, result.output
    assert "7 cases (2 training, 1 validation, 3 testing, 1 inference)" in result.stdout
    assert "note: 1 cases of training and validation have no LP, for example case b" in result.stdout
    result = run.invoke(
        program,
        [
            *("export", "decathlon", str(cohort.folder), "--out", str(tmp_path / "by-site.json")),
            "--split",
            "site",
        ],
    )
    assert result.exit_code == 0, result.output
    assert "3 testing" in result.stdout
    result = run.invoke(app, ["import", "decathlon", str(file), "--out", str(tmp_path / "again")])
    assert result.exit_code == 0, result.output
    assert "again: 7 cases of 4 patients" in result.stdout
    classes = [part for name in CLASSES for part in ("--class", name)]
    result = run.invoke(
        app,
        [
            *("import", "decathlon", str(published()), "--out", str(tmp_path / "foreign")),
            *classes,
            "--patient-per-image",
        ],
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"foreign: 5 cases of 5 patients", result.stdout)


# --- atlases come along -------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", [True, False])
def test_a_merged_cohort_has_the_atlases_of_its_parts(cohort: Cohort, tmp_path: Path, copy: bool) -> None:
    export_decathlon(cohort, tmp_path / "data.json")
    other = import_decathlon(tmp_path / "data.json", tmp_path / "other")
    other = replace(other, spec=other.spec.model_copy(update={"name": "second"}))
    merged = merge_cohorts([cohort, other], tmp_path / "merged", prefix=True, copy=copy)
    assert [atlas.name for atlas in merged.spec.atlases] == ["arches-coa", "second-coa"]
    for atlas in merged.spec.atlases:
        assert voxels(merged.folder / atlas.structures) == voxels(
            cohort.folder / cohort.spec.atlases[0].structures
        )
    ids = {"case_id": lambda case: f"x{case.case_id}", "patient_id": lambda case: f"x{case.patient_id}"}
    renamed = [replace(case, **{key: new(case) for key, new in ids.items()}) for case in other.cases]
    with pytest.raises(CohortError, match="have an atlas 'coa'"):
        merge_cohorts([cohort, replace(other, cases=tuple(renamed))], tmp_path / "again")


def test_a_table_brings_its_atlases(cohort: Cohort, tmp_path: Path) -> None:
    imported = import_table(cohort.folder / "cases.csv", tmp_path / "out", cohort.spec)
    assert_same(cohort, imported)
    gone = cohort.spec.atlases[0].model_copy(update={"image": "atlas/none.nii.gz"})
    spec = cohort.spec.model_copy(update={"atlases": (gone,)})
    with pytest.raises(CohortError, match=r"atlas 'coa', image: .*none\.nii\.gz: no such file"):
        import_table(cohort.folder / "cases.csv", tmp_path / "again", spec)
