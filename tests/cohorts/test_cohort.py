"""cohort.yaml and cases.csv: what reads, what is refused, and in which words."""

from __future__ import annotations

import csv
import io
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from threefold.cohorts.cohort import CohortSpec, IntensitySpec, fingerprint, read_cohort, write_cohort
from threefold.core.targets import MaskSpec
from threefold.errors import CohortError

YAML = """
name: trial
modality: ct
dimensions: 2
classes: [none, haemorrhage]
mask: {name: haemorrhage}
"""
HEADER = "case_id,patient_id,site,image,slice,mask,label,split,age"


def _folder(tmp_path: Path, table: str | bytes, meaning: str = YAML) -> Path:
    folder = tmp_path / "cohort"
    folder.mkdir(exist_ok=True)
    (folder / "cohort.yaml").write_text(meaning)
    (folder / "cases.csv").write_bytes(table.encode() if isinstance(table, str) else table)
    return folder


def test_a_full_and_a_bare_row(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path,
        f"{HEADER}\nc1,p1,north,a.nii.gz,3,m/a.nii.gz,haemorrhage,train,71\n\n c2 ,p2,south,b.png,,,,,\n",
    )
    full, bare = read_cohort(folder).cases
    assert (full.case_id, full.patient_id, full.site) == ("c1", "p1", "north")
    assert full.image == (folder / "a.nii.gz").absolute()
    assert full.mask == (folder / "m" / "a.nii.gz").absolute()
    assert (full.slice_index, full.label, full.split) == (3, 1, "train")
    assert full.extra == {"age": "71"}
    assert bare.case_id == "c2"
    assert (bare.slice_index, bare.mask, bare.structures, bare.label, bare.split) == (None,) * 5


def test_a_spreadsheet_export_reads(tmp_path: Path) -> None:
    table = "\ufeffcase_id,patient_id,site,image,slice\r\nc1,p1,north,a.nii.gz,3.0\r\n"
    (case,) = read_cohort(_folder(tmp_path, table)).cases
    assert case.slice_index == 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            "c1,p1,s,a.nii,,,hemorrhage,,",
            "row 2, column label: 'hemorrhage' is not a class of cohort.yaml. Did you mean 'haemorrhage'?",
        ),
        (",p1,s,a.nii,,,,,", "row 2, column case_id: empty"),
        ("c1,p1,,a.nii,,,,,", "row 2, column site: empty"),
        ("c1,p1,s,,,,,,", "row 2, column image: empty"),
        ("c1,p1,s,a.nii,,,,trian,", "row 2, column split: unknown part 'trian'. Did you mean 'train'?"),
        ("c1,p1,s,a.nii,-1,,,,", "row 2, column slice: expected a slice number counted from 0, found '-1'"),
        ("c1,p1,s,a.nii,1.5,,,,", "found '1.5'"),
        ("c1,p1,s,../a.nii,,,,,", "column image: '../a.nii' leaves the cohort's folder"),
        ("c1,p1,s,x/../../a.nii,,,,,", "leaves the cohort's folder"),
        ("c1,p1,s,a.nii,,/etc/m.nii,,,", "column mask: '/etc/m.nii' leaves"),
        ("../c1,p1,s,a.nii,,,,,", "'../c1' can't name a file"),
        ("c1,p1,s,a.nii,,,", "row 2 has 7 cells; expected 9"),
        ("c1,p\x001,s,a.nii,,,,,", "column patient_id: control characters"),
    ],
)
def test_a_bad_row_names_row_and_column(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(CohortError) as error:
        read_cohort(_folder(tmp_path, f"{HEADER}\n{row}\n"))
    assert said in str(error.value)
    assert "cases.csv" in str(error.value)


def test_a_duplicate_names_both_rows(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"row 4, column case_id: 'c1' is already the case of row 2"):
        read_cohort(
            _folder(tmp_path, f"{HEADER}\nc1,p1,s,a.nii,,,,,\nc2,p1,s,b.nii,,,,,\nc1,p1,s,a.nii,,,,,\n")
        )


def test_all_problems_are_told_at_once_up_to_ten(tmp_path: Path) -> None:
    rows = "\n".join(f"c{n},p,s,a.nii,,,typo,," for n in range(14))
    with pytest.raises(CohortError) as error:
        read_cohort(_folder(tmp_path, f"{HEADER}\n{rows}\n"))
    text = str(error.value)
    assert "14 problems" in text
    assert "row 11," in text
    assert "row 12," not in text
    assert "and 4 more" in text


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "expected a header in row 1"),
        (f"{HEADER}\n", "the table is empty"),
        ("case_id,patient,site,image\n", "no column 'patient_id'"),
        ("case_id,patient,site,image\n", "Rename column 'patient'?"),
        ("case_id;patient_id;site;image\n", "separated by commas"),
        ("case_id,patient_id,site,image,image\n", "two columns are named 'image'"),
        (",case_id,patient_id,site,image\n0,a,b,c,d", "column 1 has no name"),
        (
            "case_id,patient_id,site,image,lable\na,b,c,d,e",
            "column 'lable' is not known; did you mean 'label'",
        ),
        ("case_id,patient_id,site,image,Mask\na,b,c,d,e", "did you mean 'mask'"),
        ('case_id,patient_id,site,image\na,b,c,"d', "not a valid CSV"),
        (b"case_id,patient_id,site,image\na,b,K\xf6ln,d\n", "not UTF-8"),
    ],
)
def test_a_bad_table(tmp_path: Path, table: str | bytes, said: str) -> None:
    with pytest.raises(CohortError) as error:
        read_cohort(_folder(tmp_path, table))
    assert said in str(error.value)


def test_a_declared_column_may_look_like_a_known_one(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path,
        "case_id,patient_id,site,image,slices\na,b,c,d,7\n",
        YAML + "columns: {slices: number of slices in the scan}\n",
    )
    assert read_cohort(folder).cases[0].extra == {"slices": "7"}


@pytest.mark.parametrize(
    ("meaning", "said"),
    [
        (
            "name: x\nmodality: ct\ndimensions: 2\nclases: [a, b]\n",
            "clases: unknown key. Did you mean 'classes'?",
        ),
        ("name: x\nmodality: cat\ndimensions: 2\n", "modality"),
        ("modality: ct\ndimensions: 2\n", "name: missing"),
        (YAML.replace("[none, haemorrhage]", "[no, yes]"), "in quotes"),
        (YAML.replace("[none, haemorrhage]", "[a, a]"), "a named more than once"),
        (YAML + "positive: hemorrhage\n", "positive is 'hemorrhage'"),
        (YAML + "intensity: {unit: HU, window: [80, 0]}\n", "low < high"),
        (YAML + "site_groups: {in: [a], out: [a]}\n", "site_groups: a named more than once"),
        (YAML + "spacing: [0.5]\n", "spacing has 1 values"),
        (YAML.replace("{name: haemorrhage}", "{values: [0, 1]}"), "mask: the value 0 can't be inside"),
        ("- a list", "expected keys and values"),
        ("a: [", "not valid YAML"),
        ("", "is empty"),
    ],
)
def test_a_bad_meaning(tmp_path: Path, meaning: str, said: str) -> None:
    with pytest.raises(CohortError) as error:
        read_cohort(_folder(tmp_path, f"{HEADER}\nc1,p1,s,a.nii,,,,,\n", meaning))
    assert said in str(error.value)
    assert "cohort.yaml" in str(error.value)


def test_targets_need_a_meaning(tmp_path: Path) -> None:
    bare = "name: x\nmodality: ct\ndimensions: 3\n"
    table = "case_id,patient_id,site,image,slice,mask,structures,label\nc,p,s,i,1,m,t,l\n"
    with pytest.raises(CohortError) as error:
        read_cohort(_folder(tmp_path, table, bare))
    for said in ("names no classes", "no `mask`", "no `structures`", "dimensions: 3"):
        assert said in str(error.value)


def test_what_is_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="expected a cohort"):
        read_cohort(tmp_path / "nothing")
    with pytest.raises(CohortError, match=r"no cohort\.yaml"):
        read_cohort(tmp_path)


def test_outside_only_when_asked_for(tmp_path: Path) -> None:
    folder = _folder(tmp_path, f"{HEADER}\nc1,p1,s,../a.nii,,,,,\n")
    (case,) = read_cohort(folder, allow_outside=True).cases
    assert case.image == (tmp_path / "a.nii").absolute()


ROWS = [
    {"case_id": "a", "patient_id": "p", "site": "s", "image": "a.nii", "label": "none", "age": 7},
    {
        "case_id": "b",
        "patient_id": "q",
        "site": "s",
        "image": Path("x") / "b.nii",
        "slice": 0,
        "note": "1,2\n3",
    },
]


def _spec(**update: Any) -> CohortSpec:
    return CohortSpec(name="x", modality="ct", dimensions=2, classes=("none", "some"), **update)


def test_written_cohort_reads_back(tmp_path: Path) -> None:
    spec = _spec(
        mask=MaskSpec(values=(1, 2)),
        intensity=IntensitySpec(unit="HU", window=(0, 80)),
        site_groups={"internal": ("s",)},
        spacing=(0.5, 0.5),
        columns={"age": "years"},
    )
    written = write_cohort(tmp_path / "new" / "cohort", spec, ROWS)
    assert read_cohort(tmp_path / "new" / "cohort") == written
    assert written.spec == spec
    assert written.cases[1].extra == {"age": "", "note": "1,2\n3"}
    assert written.cases[1].slice_index == 0
    assert (
        (tmp_path / "new" / "cohort" / "cases.csv")
        .read_text()
        .startswith("case_id,patient_id,site,image,slice,label,age,note\na,p,s,a.nii,,none,7,\n")
    )


def test_invalid_rows_write_nothing_and_keep_what_was_there(tmp_path: Path) -> None:
    write_cohort(tmp_path / "c", _spec(), ROWS)
    before = (tmp_path / "c" / "cases.csv").read_bytes()
    with pytest.raises(CohortError, match="label"):
        write_cohort(tmp_path / "c", _spec(), [{**ROWS[0], "label": "nome"}])
    with pytest.raises(CohortError):
        write_cohort(tmp_path / "d", _spec(), [])
    assert (tmp_path / "c" / "cases.csv").read_bytes() == before
    assert not (tmp_path / "d").exists()


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one = write_cohort(tmp_path / "one", _spec(), ROWS)
    reordered = write_cohort(tmp_path / "two", _spec(), ROWS[::-1])
    assert fingerprint(one) == fingerprint(reordered)
    relabelled = write_cohort(tmp_path / "three", _spec(), [{**ROWS[0], "label": "some"}, ROWS[1]])
    renamed = write_cohort(tmp_path / "four", _spec(positive="none"), ROWS)
    assert len({fingerprint(cohort) for cohort in (one, relabelled, renamed)}) == 3
    assert len(fingerprint(one)) == 64


CELLS = st.one_of(
    st.sampled_from(
        ["", "a", "b.nii", "train", "none", "7", "3.0", "../x", "/x", ".", "..", "nan", '"', " "]
    ),
    st.text(max_size=6),
)
NAMES = st.sampled_from([*HEADER.split(","), "structures", "", "labels", "x"])


def _as_csv(header: list[str], rows: list[list[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows([header, *rows])
    return stream.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode(errors="ignore")),
        st.tuples(
            st.one_of(st.just(HEADER.split(",")), st.lists(NAMES, max_size=8)),
            st.lists(st.lists(CELLS, min_size=9, max_size=9), max_size=4),
        ).map(lambda table: _as_csv(*table).encode(errors="ignore")),
    )
)
@example(table=b"\x00")
@example(table=f"{HEADER}\n{'9' * 140_000},p,s,i,,,,,\n".encode())
def test_any_table_reads_or_raises_a_cohort_error(tmp_path: Path, table: bytes) -> None:
    folder = _folder(tmp_path, table)
    try:
        cohort = read_cohort(folder)
    except CohortError:
        return
    names = [case.case_id for case in cohort.cases]
    assert names
    assert len(set(names)) == len(names)
    assert all(case.image.is_relative_to(folder.absolute()) for case in cohort.cases)


PLAIN = st.text(string.ascii_letters + string.digits + " _-äß;'\"", min_size=1, max_size=8).map(str.strip)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "case_id": PLAIN.filter(bool),
                "patient_id": PLAIN.filter(bool),
                "site": PLAIN.filter(bool),
                "image": PLAIN.filter(bool),
                "slice": st.none() | st.integers(0, 400),
                "label": st.sampled_from([None, "none", "some"]),
                "split": st.sampled_from([None, "train", "validation", "test"]),
                "note": PLAIN,
            }
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row["case_id"],
    )
)
def test_rows_survive_the_file(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    cohort = write_cohort(tmp_path / "cohort", _spec(), rows)
    assert read_cohort(tmp_path / "cohort") == cohort
    for row, case in zip(rows, cohort.cases, strict=True):
        assert (case.case_id, case.patient_id, case.site) == (row["case_id"], row["patient_id"], row["site"])
        assert case.slice_index == row["slice"]
        assert case.label == (None if row["label"] is None else ("none", "some").index(row["label"]))
        assert case.split == row["split"]
        assert case.extra["note"] == row["note"]
