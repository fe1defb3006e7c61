"""Targets that cohort.yaml declares by name: read, written back, refused, and carried through every tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.testing import assert_array_equal

from threefold.audits.audit import audit
from threefold.audits.site_label import site_label
from threefold.cohorts.cohort import (
    Case,
    Cohort,
    CohortSpec,
    columns_of,
    fingerprint,
    read_cohort,
    write_cohort,
)
from threefold.cohorts.decathlon import import_decathlon
from threefold.cohorts.decathlon_export import export_decathlon
from threefold.cohorts.degradation import DegradationSpec, degrade
from threefold.cohorts.importers import import_table
from threefold.cohorts.merging import merge_cohorts
from threefold.cohorts.sample_cache import SampleCache
from threefold.cohorts.samples import read_placed, read_sample
from threefold.cohorts.splits import make_split, require_targets
from threefold.cohorts.staging import row_of
from threefold.core.targets import LabelsTarget, MaskTarget
from threefold.errors import CohortError, ImageError
from threefold.experiment import PreprocessingSpec, SplitSpec
from threefold.images.writing import write_nifti, write_png

PLAIN = {"name": "trial", "modality": "ct", "dimensions": 2}
TARGETS: dict[str, Any] = {
    "stage": {"kind": "class", "classes": ["early", "late"], "positive": "early"},
    "findings": {"kind": "multilabel", "classes": ["any", "subdural", "epidural"]},
    "weeks": {"kind": "number", "unit": "weeks"},
    "oedema": {"kind": "mask", "values": [-1, 300], "outside": [0, 7]},
    "vessels": {"kind": "labels", "names": ["artery", "vein"]},
}
HEADER = (
    "case_id,patient_id,site,image,"
    "stage,findings_any,findings_subdural,findings_epidural,weeks,oedema,vessels,age"
)
FULL = "c1,p1,north,a.nii,late,1,0.0,,31.5,m/a.nii,v/a.nii,70"
BARE = "c2,p2,south,b.nii,,,,,,,,"


def folder_of(tmp_path: Path, table: str, **meaning: Any) -> Path:
    folder = tmp_path / "cohort"
    folder.mkdir(exist_ok=True)
    (folder / "cohort.yaml").write_text(
        yaml.safe_dump({**PLAIN, "targets": TARGETS, **meaning}, sort_keys=False)
    )
    (folder / "cases.csv").write_text(table)
    return folder


def problem_of(tmp_path: Path, table: str, **meaning: Any) -> str:
    with pytest.raises(CohortError) as error:
        read_cohort(folder_of(tmp_path, table, **meaning))
    return str(error.value)


# --- cohort.yaml and cases.csv ------------------------------------------------------------------------


def test_targets_of_every_kind_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, f"{HEADER}\n{FULL}\n{BARE}\n")
    cohort = read_cohort(folder)
    full, bare = cohort.cases
    assert full.targets == {
        "stage": 1,
        "findings": (True, False, None),
        "weeks": 31.5,
        "oedema": (folder / "m" / "a.nii").absolute(),
        "vessels": (folder / "v" / "a.nii").absolute(),
    }
    assert full.extra == {"age": "70"}  # columns of targets are none
    assert full.label_maps.keys() == {"oedema", "vessels"}
    assert (full.label, full.mask, full.structures) == (None, None, None)
    assert not bare.targets  # what is not known is not there
    assert [*cohort.spec.all_targets] == [*TARGETS]
    assert cohort.spec.all_targets["stage"].positive_class == 0


def test_a_finding_that_is_known_is_enough_and_numbers_may_be_negative(tmp_path: Path) -> None:
    row = "c1,p1,north,a.nii,,,,0,-2e-1,,,"
    (case,) = read_cohort(folder_of(tmp_path, f"{HEADER}\n{row}\n")).cases
    assert case.targets == {"findings": (None, None, False), "weeks": -0.2}


def test_targets_are_written_back(tmp_path: Path) -> None:
    cohort = read_cohort(folder_of(tmp_path, f"{HEADER}\n{FULL}\n{BARE}\n"))
    rows = [row_of(case, cohort.spec) for case in cohort.cases]
    columns = [column for name, one in cohort.spec.targets.items() for column in columns_of(name, one)]
    assert [rows[0][column] for column in columns[:5]] == ["late", 1, 0, None, 31.5]
    assert not {*columns} & {*rows[1]}
    for row in rows:
        for name in ("image", "oedema", "vessels"):
            if row.get(name) is not None:
                row[name] = row[name].relative_to(cohort.folder.absolute())
    again = write_cohort(tmp_path / "again", cohort.spec, rows)
    assert read_cohort(tmp_path / "again") == again
    assert again.spec == cohort.spec
    for before, after in zip(cohort.cases, again.cases, strict=True):
        assert {name: moved(value, cohort, again) for name, value in before.targets.items()} == after.targets
    assert fingerprint(again) == fingerprint(cohort)


def moved(value: Any, before: Cohort, after: Cohort) -> Any:
    """Return a target's value with a path that lies in another cohort's folder."""
    if not isinstance(value, Path):
        return value
    return after.folder.absolute() / value.relative_to(before.folder.absolute())


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("stage", "lat", "'lat' is not a class of cohort.yaml. Did you mean 'late'?"),
        ("findings_subdural", "yes", "expected 1, 0 or nothing, found 'yes'"),
        ("findings_any", "2", "expected 1, 0 or nothing, found '2'"),
        ("weeks", "31 weeks", "expected a number, found '31 weeks'"),
        ("weeks", "nan", "expected a number, found 'nan'"),
        ("weeks", "inf", "expected a number, found 'inf'"),
        ("weeks", "3_1", "expected a number, found '3_1'"),
        ("oedema", "../a.nii", "'../a.nii' leaves the cohort's folder"),
        ("vessels", "/etc/a.nii", "'/etc/a.nii' leaves"),
    ],
)
def test_a_wrong_value_names_row_and_column(tmp_path: Path, column: str, cell: str, said: str) -> None:
    cells = dict(zip(HEADER.split(","), FULL.split(","), strict=True))
    wrong = ",".join({**cells, "case_id": "c3", column: cell}.values())
    assert f"row 3, column {column}: {said}" in problem_of(tmp_path, f"{HEADER}\n{FULL}\n{wrong}\n")


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("weeks", "no column 'weeks' for the target 'weeks' of cohort.yaml"),
        ("vessels", "no column 'vessels' for the target 'vessels'"),
    ],
)
def test_a_target_without_a_column_is_told(tmp_path: Path, left_out: str, said: str) -> None:
    columns = [name for name in HEADER.split(",") if name != left_out]
    assert said in problem_of(tmp_path, ",".join(columns) + "\n")


def test_a_misspelt_column_of_a_target_is_told(tmp_path: Path) -> None:
    table = HEADER.replace("weeks", "week")
    assert "Rename column 'week'?" in problem_of(tmp_path, f"{table}\n")
    some = HEADER.replace("findings_subdural", "findings_subdurall")  # two of its columns are there
    assert "did you mean 'findings_subdural'?" in problem_of(tmp_path, f"{some}\n{FULL}\n")


NUMBER = {"kind": "number"}


@pytest.mark.parametrize(
    ("meaning", "said"),
    [
        ({"targets": {"mask": {"kind": "mask"}}, "mask": {}}, "'mask' is there twice"),
        (
            {"targets": {"label": {"kind": "class", "classes": ["a", "b"]}}, "classes": ["a", "b"]},
            "'label' is there twice",
        ),
        (
            {"targets": {"structures": {"kind": "labels", "names": ["a"]}}, "structures": ["a"]},
            "'structures' is there twice",
        ),
        ({"targets": {"mask": NUMBER}}, "'mask' is a target of kind mask, found number"),
        ({"targets": {"label": NUMBER}}, "'label' is a target of kind class, found number"),
        ({"targets": {"site": NUMBER}}, "the program's own tables use the name 'site'"),
        ({"targets": {"psnr": NUMBER}}, "the program's own tables use the name 'psnr'"),
        ({"targets": {"a b": NUMBER}}, "'a b' can't name a target"),
        ({"targets": {"a.b": NUMBER}}, "'a.b' can't name a target"),
        ({"targets": {"1st": NUMBER}}, "'1st' can't name a target"),
        (
            {"targets": {"f_a": NUMBER, "f": {"kind": "multilabel", "classes": ["a"]}}},
            "columns of cases.csv: f_a named more than once",
        ),
        ({"targets": {"f": {"kind": "multilabel", "classes": ["a", "a"]}}}, "a named more than once"),
        ({"targets": {"f": {"kind": "class", "classes": ["a"]}}}, "at least 2"),
        (
            {"targets": {"f": {"kind": "class", "classes": ["a", "b"], "positive": "c"}}},
            "positive is 'c', which is not one of classes",
        ),
        ({"targets": {"f": {"kind": "labels", "names": ["union"]}}}, "use the name 'union'"),
        ({"targets": {"f": {"kind": "labels", "names": []}}}, "at least 1"),
        ({"targets": {"f": {"kind": "mask", "values": [0]}}}, "the value 0 can't be inside"),
        ({"targets": {"f": {"kind": "masks"}}}, "masks"),
        ({"targets": {"f": {"classes": ["a", "b"]}}}, "kind"),
    ],
)
def test_targets_that_clash_are_refused(tmp_path: Path, meaning: dict[str, Any], said: str) -> None:
    text = problem_of(tmp_path, "case_id,patient_id,site,image\n", **meaning)
    assert "cohort.yaml" in text
    assert said in text


def test_the_short_form_stands_for_targets_and_either_may_be_written(tmp_path: Path) -> None:
    short = CohortSpec.model_validate(
        {**PLAIN, "classes": ["a", "b"], "mask": {"values": [255]}, "structures": ["x"]}
    )
    long = {
        "label": {"kind": "class", "classes": ["a", "b"]},
        "mask": {"kind": "mask", "values": [255]},
        "structures": {"kind": "labels", "names": ["x"]},
    }
    assert short.all_targets == CohortSpec.model_validate({**PLAIN, "targets": long}).all_targets
    row = "c1,p1,s,a.nii,b,m.nii,x.nii\n"
    cohort = read_cohort(
        folder_of(tmp_path, f"case_id,patient_id,site,image,label,mask,structures\n{row}", targets=long)
    )
    (case,) = cohort.cases
    assert (case.label, case.mask, case.structures) == (
        1,
        (cohort.folder / "m.nii").absolute(),
        (cohort.folder / "x.nii").absolute(),
    )
    assert not case.extra


def test_a_copy_with_other_targets_knows_them() -> None:
    spec = CohortSpec.model_validate({**PLAIN, "classes": ["a", "b"]})
    assert [*spec.all_targets] == ["label"]
    assert [*spec.model_copy(update={"structures": ("x",)}).all_targets] == ["label", "structures"]
    assert not spec.model_copy(update={"classes": ()}).all_targets


# --- fingerprints -------------------------------------------------------------------------------------

SHORT = {
    **PLAIN,
    "classes": ["none", "some"],
    "positive": "some",
    "mask": {"name": "bleed", "values": [1, 255]},
    "structures": ["artery", "vein"],
    "intensity": {"unit": "HU", "window": [0, 80]},
    "site_groups": {"internal": ["s"]},
    "columns": {"age": "years"},
}
BASE = (
    {"case_id": "a", "patient_id": "p", "site": "s", "image": "a.nii"},
    {"case_id": "b", "patient_id": "q", "site": "t", "image": "b.nii"},
)
ROWS = (
    {
        **BASE[0],
        "label": "some",
        "mask": "m/a.nii",
        "structures": "l/a.nii",
        "reference": "r/a.nii",
        "split": "train",
        "slice": 3,
        "age": "7",
    },
    {**BASE[1], "age": "71"},
)


@pytest.mark.parametrize(
    ("meaning", "rows", "expected"),
    [
        (SHORT, ROWS, "b76a3137ab56962a20009f97e90513a49019ea2b5573065a3080ea54815a2bb5"),
        (PLAIN, BASE, "ce3187d9cd5748e40a403a180ddf90102e129c478e6627adad6bcd7c901610b3"),
    ],
)
def test_fingerprints_of_the_short_form_are_those_of_earlier_versions(
    tmp_path: Path, meaning: dict[str, Any], rows: tuple[dict[str, Any], ...], expected: str
) -> None:
    cohort = write_cohort(tmp_path / "cohort", CohortSpec.model_validate(meaning), rows)
    assert fingerprint(cohort) == expected


def test_fingerprints_tell_further_targets_apart(tmp_path: Path) -> None:
    def of(name: str, row: dict[str, Any], targets: dict[str, Any]) -> str:
        spec = CohortSpec.model_validate({**PLAIN, "targets": targets})
        return fingerprint(write_cohort(tmp_path / name, spec, [{**BASE[0], **row}]))

    weeks = {"weeks": {"kind": "number", "unit": "weeks"}}
    days = {"weeks": {"kind": "number", "unit": "days"}}
    found = [
        fingerprint(write_cohort(tmp_path / "bare", CohortSpec.model_validate(PLAIN), BASE[:1])),
        of("empty", {"weeks": None}, weeks),
        of("one", {"weeks": 31.5}, weeks),
        of("other", {"weeks": 32}, weeks),
        of("unit", {"weeks": 31.5}, days),
    ]
    assert len({*found}) == len(found)
    outside = {"values": [1], "outside": [0, 2]}
    masks = [CohortSpec.model_validate({**PLAIN, "mask": mask}) for mask in ({}, outside)]
    assert len({fingerprint(Cohort(tmp_path, mask, ())) for mask in masks}) == 2


# --- masks of any values ------------------------------------------------------------------------------

GRID = np.array([[0, -1.0, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # as a picture is stored
PREPROCESSING = PreprocessingSpec(size=(8, 8))
FAR = {"values": [-32768, 5], "outside": [32767, 0]}


def masked(tmp_path: Path, found: list[int], meaning: dict[str, Any], name: str = "mask") -> Cohort:
    """One image of 8 x 8 whose int16 mask has `found` in its first row, and the first outside value else."""
    folder = tmp_path / "masked"
    folder.mkdir()
    mask = np.full((8, 8), meaning.get("outside", [0])[0], np.int16)
    mask[0, : len(found)] = found
    write_nifti(folder / "a.nii", np.arange(64, dtype=np.float32).reshape(8, 8), GRID)
    write_nifti(folder / "m.nii", mask, GRID)
    if name == "mask":
        spec = CohortSpec.model_validate({**PLAIN, "mask": meaning})
    else:
        spec = CohortSpec.model_validate({**PLAIN, "targets": {name: {"kind": "mask", **meaning}}})
    return write_cohort(folder, spec, [{**BASE[0], name: "m.nii"}])


@pytest.mark.parametrize("name", ["mask", "oedema"])
def test_masks_may_have_any_integers_inside_and_outside(tmp_path: Path, name: str) -> None:
    cohort = masked(tmp_path, [-32768, 5, 32767, 0], FAR, name)
    sample, _ = read_placed(cohort.cases[0], cohort.spec, PREPROCESSING)
    expected = np.zeros((8, 8), np.uint8)
    expected[0, :2] = 1
    assert_array_equal(sample.targets[name], expected)
    assert not [finding for finding in audit(cohort).findings if finding.check == "label values"]


@pytest.mark.parametrize(("name", "key"), [("mask", "mask: values"), ("oedema", "targets: oedema: values")])
def test_a_value_that_is_neither_inside_nor_outside_is_refused(tmp_path: Path, name: str, key: str) -> None:
    cohort = masked(tmp_path, [-32768, 1], FAR, name)
    with pytest.raises(
        ImageError,
        match=r"the values \[32767, 0\] and \[-32768, 5\], found 1 \(1 voxels\), the first at \(0, 1\)",
    ):
        read_sample(cohort.cases[0], cohort.spec, PREPROCESSING)
    (finding,) = [one for one in audit(cohort).findings if one.check == "label values"]
    assert finding.severity == "refuse"
    assert f"the {name} holds values that cohort.yaml does not name" in finding.message
    assert "1; expected -32768, 0, 5, 32767" in finding.message
    assert key in finding.message


def test_a_mask_of_outside_values_is_empty(tmp_path: Path) -> None:
    (finding,) = [one for one in audit(masked(tmp_path, [0], FAR)).findings if one.check == "label values"]
    assert finding.severity == "note"
    assert "the mask is empty" in finding.message


def test_zero_may_be_inside_where_outside_is_named(tmp_path: Path) -> None:
    cohort = masked(tmp_path, [0], {"values": [0], "outside": [255]})
    sample = read_sample(cohort.cases[0], cohort.spec, PREPROCESSING)
    assert_array_equal(np.argwhere(sample.targets["mask"]), [[0, 0]])


# --- further targets through every tool ---------------------------------------------------------------

STAGES = ("early", "late")
FURTHER = {
    **TARGETS,
    "oedema": {"kind": "mask", "values": [255], "outside": [0]},
    "vessels": {"kind": "labels", "names": ["artery", "vein"]},
}


@pytest.fixture
def further(tmp_path: Path) -> Callable[..., Cohort]:
    """Make cohorts of 12 patients of 2 sites with targets of every kind, each absent somewhere."""

    def make(name: str = "further", **meaning: Any) -> Cohort:
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for k in range(12):
            image = np.random.default_rng([k, *name.encode()]).normal(30, 10, (8, 6)).astype(np.float32)
            write_nifti(folder / f"{k}.nii", image, GRID)
            write_nifti(folder / f"{k}-o.nii", (image > 30) * np.uint8(255), GRID)
            write_nifti(folder / f"{k}-v.nii", np.digitize(image, [30, 40]).astype(np.uint8), GRID)
            rows.append(
                {
                    "case_id": f"{name}{k}",
                    "patient_id": f"{name}-p{k}",
                    "site": "ab"[k % 2],
                    "image": f"{k}.nii",
                    "stage": STAGES[k // 2 % 2],
                    "findings_any": k % 3 // 2,
                    "findings_subdural": None if k % 4 == 0 else int(k % 3 == 2),
                    "findings_epidural": 0,
                    "weeks": None if k == 3 else 20 + k / 2,
                    "oedema": f"{k}-o.nii" if k % 2 else None,
                    "vessels": f"{k}-v.nii" if k % 3 else None,
                }
            )
        spec = CohortSpec.model_validate({**PLAIN, "name": name, "targets": FURTHER, **meaning})
        return write_cohort(folder, spec, rows)

    return make


def told(case: Case) -> dict[str, Any]:
    """Return a case's targets, of label maps the bytes of the file."""
    return {
        name: value.read_bytes() if isinstance(value, Path) else value for name, value in case.targets.items()
    }


def test_the_audit_knows_further_targets(further: Callable[..., Cohort]) -> None:
    cohort = further()
    found = audit(cohort)
    assert not found.refused
    assert {site.site: site.targets for site in found.sites} == {
        "a": {"stage": 6, "findings": 6, "weeks": 6, "oedema": 0, "vessels": 4},
        "b": {"stage": 6, "findings": 6, "weeks": 5, "oedema": 6, "vessels": 4},
    }
    assert any("No oedema at a: its task is trained" in one.message for one in found.findings)
    none = replace(
        cohort,
        cases=tuple(replace(case, targets={"stage": 1, "weeks": 1.0}) for case in cohort.cases),
    )
    found = audit(none, read_voxels=False)  # which vessels are declared, and not asked for
    assert any("No case has a vessels" in one.message for one in found.findings if one.severity == "note")
    messages = [
        one.message
        for one in audit(none, read_voxels=False, targets=("stage", "vessels")).findings
        if one.severity == "refuse"
    ]
    assert any("No case has a vessels" in message for message in messages)
    assert any("Every labelled case is 'late' (stage)" in message for message in messages)
    by_site = replace(
        cohort,
        cases=tuple(
            replace(case, targets={**case.targets, "stage": "ab".index(case.site)}) for case in cohort.cases
        ),
    )
    confounded = [one.message for one in audit(by_site, read_voxels=False).findings]
    assert any("The site determines the stage" in message for message in confounded)
    measured = site_label(by_site, "stage")
    assert measured is not None
    assert measured.table == {"a": {"early": 6.0}, "b": {"late": 6.0}}
    assert site_label(by_site, "weeks") is None


def test_the_audit_looks_into_further_label_maps(further: Callable[..., Cohort]) -> None:
    cohort = further()
    write_nifti(cohort.folder / "1-o.nii", np.full((8, 6), 9, np.uint8), GRID)
    write_nifti(cohort.folder / "1-v.nii", np.full((8, 6), 3, np.uint8), GRID)
    write_nifti(cohort.folder / "2-v.nii", np.zeros((6, 8), np.uint8), GRID)
    (cohort.folder / "5-o.nii").unlink()
    messages = {(one.check, one.message) for one in audit(cohort).findings if one.severity == "refuse"}
    for check, text in (
        ("label values", "the oedema holds values that cohort.yaml does not name"),
        ("label values", "the vessels holds values that cohort.yaml does not name"),
        ("geometry", "the vessels lies on another grid than the image"),
        ("files", "the oedema can't be used"),
    ):
        assert any(check == one and text in message for one, message in messages), (check, text)


def test_an_image_twice_with_contradicting_findings_is_refused(further: Callable[..., Cohort]) -> None:
    cohort = further()
    first, *rest = cohort.cases
    twin = replace(first, case_id="twin", targets={**first.targets, "weeks": 39.0})
    alike = replace(twin, targets=first.targets)
    for other, severity in ((twin, "refuse"), (alike, "warn")):
        found = audit(replace(cohort, cases=(first, other, *rest)), read_voxels=False).findings
        (finding,) = [one for one in found if one.check == "duplicates"]
        assert finding.severity == severity
        assert ("their labels contradict each other" in finding.message) == (severity == "refuse")


def test_splits_spread_further_targets(further: Callable[..., Cohort]) -> None:
    small = further()
    cases = tuple(
        replace(case, case_id=f"{case.case_id}-{n}", patient_id=f"{case.patient_id}-{n}")
        for n in range(10)
        for case in small.cases
    )
    cohort = replace(small, cases=cases)
    for seed in range(3):
        split = make_split(cohort, SplitSpec(seed=seed))
        for value in (
            lambda case: case.targets["stage"],
            lambda case: case.targets["findings"][0],
            lambda case: "oedema" in case.targets,
        ):
            whole = Counter(map(value, cohort.cases))
            for part in ("train", "validation", "test"):
                inside = split.cases(cohort, part)
                here = Counter(map(value, inside))
                for key, count in whole.items():
                    assert abs(here[key] - count * len(inside) / len(cohort.cases)) <= 2
        require_targets(cohort, split, [*FURTHER])
    train = {case.case_id for case in split.cases(cohort, "train")}
    late = replace(
        cohort,
        cases=tuple(replace(case, targets={"stage": int(case.case_id in train)}) for case in cohort.cases),
    )
    with pytest.raises(CohortError, match=r"none of the \d+ train cases of the patient split has a weeks"):
        require_targets(late, split, ["weeks"])
    with pytest.raises(CohortError, match="labelled train cases of the patient split are 'late'"):
        require_targets(late, split, ["stage"])


def test_an_import_takes_further_targets(further: Callable[..., Cohort], tmp_path: Path) -> None:
    cohort = further()
    table = cohort.folder / "cases.csv"
    table.write_text(table.read_text().replace("findings_any", "blood", 1).replace("oedema", "swelling", 1))
    for copy in (True, False):
        made = import_table(
            table,
            tmp_path / f"imported-{copy}",
            cohort.spec,
            columns={"findings_any": "blood", "oedema": "swelling"},
            copy=copy,
        )
        assert made.spec == cohort.spec
        assert [told(case) for case in made.cases] == [told(case) for case in cohort.cases]
        assert not any(case.extra for case in made.cases)
        inside = [path.is_relative_to(made.folder.absolute()) for path in made.cases[1].label_maps.values()]
        assert inside == [copy, copy]
    with pytest.raises(CohortError, match=r"'swellin' is no column of cases\.csv"):
        import_table(table, tmp_path / "no", cohort.spec, columns={"swellin": "swelling"})


def test_label_maps_of_one_name_do_not_meet(tmp_path: Path) -> None:
    """Targets may be named as the folders of the program's own columns are."""
    folder = tmp_path / "named"
    folder.mkdir()
    names = {"images": 1, "masks": 2}
    write_nifti(folder / "a.nii", np.zeros((4, 4), np.float32), GRID)
    write_nifti(folder / "m.nii", np.full((4, 4), 1, np.uint8), GRID)
    for name, value in names.items():
        write_nifti(folder / f"{name}.nii", np.full((4, 4), value, np.uint8), GRID)
    targets = {name: {"kind": "labels", "names": ["x", "y"]} for name in names}
    spec = CohortSpec.model_validate({**PLAIN, "mask": {}, "targets": targets})
    row = {**BASE[0], "mask": "m.nii", **{name: f"{name}.nii" for name in names}}
    write_cohort(folder, spec, [row])
    made = import_table(folder / "cases.csv", tmp_path / "made", spec)
    sample = read_sample(made.cases[0], made.spec, PreprocessingSpec(size=(4, 4)))
    assert {name: int(sample.targets[name].max()) for name in ("mask", *names)} == {"mask": 1, **names}


def test_a_merge_joins_further_targets(further: Callable[..., Cohort], tmp_path: Path) -> None:
    one, two = further("north"), further("south", targets={**FURTHER, "days": {"kind": "number"}})
    cohorts = [one, two]
    for cohort in cohorts:
        assert cohort.spec.all_targets  # worked out before, as an audit of each does
    merged = merge_cohorts(cohorts, tmp_path / "merged")
    assert [*merged.spec.targets] == [*FURTHER, "days"]
    assert merged.spec.all_targets == two.spec.all_targets
    assert [told(case) for case in merged.cases] == [told(case) for each in cohorts for case in each.cases]
    assert merged == read_cohort(tmp_path / "merged")
    other = replace(
        two,
        spec=two.spec.model_copy(
            update={"targets": {**two.spec.targets, "oedema": MaskTarget(kind="mask", values=(7,))}}
        ),
    )
    with pytest.raises(CohortError, match=r"can't be merged: targets: oedema is .*255.* and .*7"):
        merge_cohorts([one, other], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_dataset_file_brings_further_targets_back(further: Callable[..., Cohort], tmp_path: Path) -> None:
    cohort = further()
    export_decathlon(cohort, tmp_path / "data.json")
    made = import_decathlon(tmp_path / "data.json", tmp_path / "made")
    assert made.spec == cohort.spec
    assert {case.case_id: told(case) for case in made.cases} == {
        case.case_id: told(case) for case in cohort.cases
    }
    assert not any(case.extra for case in made.cases)


def test_degraded_cohorts_keep_further_targets(further: Callable[..., Cohort], tmp_path: Path) -> None:
    source = further(structures=["artery", "vein"])
    cases = tuple(replace(case, reference=case.targets.get("vessels")) for case in source.cases)
    made = degrade(replace(source, cases=cases), tmp_path / "worse", DegradationSpec(displacement=1))
    assert made.spec.targets == source.spec.targets
    for before, after in zip(cases, made.cases, strict=True):
        left = {name: value for name, value in told(after).items() if name != "structures"}
        assert left == told(before)
        assert ("structures" in after.targets) == (before.reference is not None)


def test_samples_have_every_target_and_the_store_keeps_them(
    further: Callable[..., Cohort], tmp_path: Path
) -> None:
    cohort = further()
    case = cohort.cases[5]
    read = read_sample(case, cohort.spec, PREPROCESSING)
    assert read.targets.keys() == case.targets.keys() == FURTHER.keys()
    assert (read.targets["stage"], read.targets["weeks"]) == (0, 22.5)
    assert read.targets["findings"] == (True, True, False)
    assert {int(value) for value in np.unique(read.targets["oedema"])} == {0, 1}
    assert {int(value) for value in np.unique(read.targets["vessels"])} == {0, 1, 2}
    for _ in range(2):
        store = SampleCache(cohort.spec, PREPROCESSING, "disk", tmp_path / "cache")
        kept = store.get(case)
        assert kept.targets.keys() == read.targets.keys()
        for name, value in read.targets.items():
            assert_array_equal(kept.targets[name], value)
    # Its label map means something else now.
    renamed = {**cohort.spec.targets, "vessels": LabelsTarget(kind="labels", names=("vein",))}
    spec = cohort.spec.model_copy(update={"targets": renamed})
    with pytest.raises(ImageError, match=r"0 to 1 \(vessels of cohort.yaml\), found 2"):
        SampleCache(spec, PREPROCESSING, "disk", tmp_path / "cache").get(case)


def test_pictures_may_be_label_maps_of_further_targets(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_png(folder / "i.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    write_png(folder / "o.png", np.eye(8, dtype=np.uint8) * 255)
    spec = CohortSpec.model_validate(
        {
            **PLAIN,
            "modality": "photo",
            "spacing": [1, 1],
            "intensity": {"unit": "grey", "window": [0, 255]},
            "targets": {"oedema": FURTHER["oedema"]},
        }
    )
    cohort = write_cohort(folder, spec, [{**BASE[0], "image": "i.png", "oedema": "o.png"}])
    assert read_sample(cohort.cases[0], spec, PREPROCESSING).targets["oedema"].sum() == 8
