"""`threefold check` and `threefold import`: output, exit status, and how soon they answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from threefold.cli import check as check_module
from threefold.cli.app import app
from threefold.cohorts.cohort import CohortSpec, IntensitySpec, read_cohort, write_cohort
from threefold.core.targets import MaskSpec
from threefold.errors import CohortError, UsageError
from threefold.images.writing import write_nifti

HU = IntensitySpec(unit="HU", window=(0, 80))
SPEC = CohortSpec(
    name="small", modality="ct", dimensions=2, classes=("absent", "present"), mask=MaskSpec(), intensity=HU
)


def _write(folder: Path, **update: Any) -> list[dict[str, Any]]:
    """Write 12 patients of two sites; half of them with masks."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for n in range(12):
        voxels = np.append(-1000, rng.normal(30, 10, 15)).astype(np.float32).reshape(4, 4)
        write_nifti(folder / f"c{n}.nii", voxels, np.eye(4))
        rows.append(
            {
                "case_id": f"c{n}",
                "patient_id": f"p{n}",
                "site": "ab"[n % 2],
                "image": f"c{n}.nii",
                "label": ("absent", "present")[n // 2 % 2],
            }
        )
        if n >= 6:
            write_nifti(folder / f"m{n}.nii", (voxels > 30).astype(np.uint8), np.eye(4))
            rows[-1]["mask"] = f"m{n}.nii"
    write_cohort(folder, SPEC.model_copy(update=update), rows)
    return rows


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    _write(tmp_path / "cohort")
    return tmp_path / "cohort"


def _run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_sound_cohort_passes(cohort: Path) -> None:
    result = _run("check", cohort)
    assert result.exit_code == 0
    assert "small: 12 cases of 12 patients" in result.stdout
    assert "Training can start: 0 to correct" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()[1:4]]
    assert rows == [
        ["site", "cases", "patients", "absent", "present", "masks"],
        ["a", "6", "6", "3", "3", "3"],
        ["b", "6", "6", "3", "3", "3"],
    ]


def test_a_defect_fails_with_its_case(cohort: Path) -> None:
    write_nifti(cohort / "m7.nii", np.zeros((4, 5), np.uint8), np.eye(4))
    result = _run("check", cohort)
    assert result.exit_code == 1
    assert "REFUSED [geometry]" in result.stdout
    assert "c7: shape 4 x 5 instead of 4 x 4" in result.stdout
    assert "Training would be refused" in result.stdout


def test_json(cohort: Path) -> None:
    (cohort / "c3.nii").write_bytes(b"")
    result = _run("check", cohort, "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["refused"] is True
    (finding,) = [f for f in data["findings"] if f["severity"] == "refuse"]
    assert finding["cases"] == ["c3"]
    assert "empty (0 bytes)" in finding["message"]
    assert [site["masks"] for site in data["sites"]] == [3, 3]


def test_a_table_that_does_not_read(cohort: Path) -> None:
    table = (cohort / "cases.csv").read_text()
    (cohort / "cases.csv").write_text(table.replace("absent", "absnt", 1))
    result = _run("check", cohort)
    assert isinstance(result.exception, CohortError)
    assert "row 2, column label: 'absnt' is not a class of cohort.yaml. Did you mean 'absent'?" in str(
        result.exception
    )
    as_json = _run("check", cohort, "--json")
    assert as_json.exit_code == 1
    data = json.loads(as_json.stdout)
    assert data["refused"] is True
    assert "absnt" in data["findings"][0]["message"]


def test_outside_needs_its_option(cohort: Path) -> None:
    (cohort / "c0.nii").rename(cohort.parent / "c0.nii")
    table = (cohort / "cases.csv").read_text()
    (cohort / "cases.csv").write_text(table.replace(",c0.nii", ",../c0.nii"))
    assert "--allow-outside" in str(_run("check", cohort).exception)
    assert _run("check", cohort, "--allow-outside").exit_code == 0


def test_split_options(cohort: Path) -> None:
    slices = _run("check", cohort, "--split", "slice")
    assert slices.exit_code == 0
    assert "Split by slice" in slices.stdout
    site = json.loads(_run("check", cohort, "--split", "site", "--hold-out", "b", "--json").stdout)
    assert site["split"]["parts"]["test"]["cases"] == 6
    assert _run("check", cohort, "--split", "site", "--hold-out", "c").exit_code == 1
    assert _run("check", cohort, "--split", "diagonal").exit_code == 2


def test_the_column_is_checked_where_it_is_filled(tmp_path: Path) -> None:
    rows = _write(tmp_path / "c")
    for n, row in enumerate(rows):
        row["split"] = ("train", "validation", "test")[n % 3]
    rows[1]["patient_id"] = rows[0]["patient_id"]
    write_cohort(tmp_path / "c", SPEC, rows)
    result = _run("check", tmp_path / "c")
    assert result.exit_code == 1
    assert "p0: c0 in train, c1 in validation" in result.stdout


def test_targets_narrow_what_is_asked(tmp_path: Path) -> None:
    rows = _write(tmp_path / "c")
    write_cohort(tmp_path / "c", SPEC, [{**row, "label": "present"} for row in rows])
    assert _run("check", tmp_path / "c").exit_code == 1
    assert _run("check", tmp_path / "c", "--target", "mask").exit_code == 0


def test_a_recipe_says_split_and_targets(cohort: Path) -> None:
    change = ("data.split.kind=leave-one-site-out", "data.split.fold=1", "data.split.validation=0.3")
    result = _run("check", cohort, "--json", "--recipe", "hematoma/swin-cls", *change)
    made = json.loads(result.stdout)
    assert made["split"]["kind"] == "leave-one-site-out"
    assert "mask" not in " ".join(finding["message"] for finding in made["findings"])
    both = _run("check", cohort, "--recipe", "hematoma/swin-cls", "--split", "site")
    assert isinstance(both.exception, UsageError)
    alone = _run("check", cohort, "data.split.seed=1")
    assert isinstance(alone.exception, UsageError)
    assert "--recipe" in str(alone.exception)


def test_headers_only_says_so(cohort: Path) -> None:
    voxels = np.full((4, 4), np.nan, np.float32)
    write_nifti(cohort / "c0.nii", voxels, np.eye(4))
    assert _run("check", cohort).exit_code == 1
    result = _run("check", cohort, "--headers-only")
    assert result.exit_code == 0
    assert "voxels were not read" in result.stdout


def test_a_terminal_gets_the_same_facts(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from threefold.audits.audit import audit
    from threefold.experiment import SplitSpec

    (cohort / "c3.nii").unlink()
    check_module._print_rich(audit(read_cohort(cohort), split=SplitSpec()))
    shown = capsys.readouterr().out
    for word in ("12 cases of 12 patients", "patients", "REFUSED [files]", "c3", "Training would be refused"):
        assert word in shown


LIGHT = """
import sys
from threefold.cli.app import main
sys.argv = ["threefold", "check", sys.argv[1]]
try:
    main()
except SystemExit as status:
    assert status.code in (0, None), status.code
heavy = sorted({"torch", "pandas", "scipy", "sklearn", "lightning", "matplotlib"} & set(sys.modules))
assert not heavy, heavy
print(len([name for name in sys.modules if name.split(".")[0] not in sys.stdlib_module_names]))
"""


def test_check_answers_without_the_heavy_libraries(cohort: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIGHT, cohort], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    # Modules of others: numpy, pydantic, typer and PyYAML are half of these, any of the heavy ones is more.
    assert int(result.stdout.splitlines()[-1]) < 500


def test_import_table_and_merge(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "scans.csv").write_text("file,who,bleeds\n../cohort/c0.nii,X,1\n../cohort/c1.nii,Y,0\n")
    (tmp_path / "meaning.yaml").write_text(
        "name: more\nmodality: ct\ndimensions: 2\nclasses: [absent, present]\n"
        "intensity: {unit: HU, window: [0, 80]}\n"
    )
    arguments = ["--meaning", tmp_path / "meaning.yaml", "--out", tmp_path / "more"]
    for pair in ("image=file", "patient_id=who", "label=bleeds", "case_id=who"):
        arguments += ["--column", pair]
    arguments += ["--constant", "site=c", "--label", "1=present", "--label", "0=absent", "--allow-outside"]
    result = _run("import", "table", tmp_path / "t" / "scans.csv", *arguments)
    assert result.exit_code == 0, result.exception
    assert "2 cases of 2 patients" in result.stdout
    merged = _run("import", "merge", cohort, tmp_path / "more", "--out", tmp_path / "both")
    assert merged.exit_code == 0, merged.exception
    assert read_cohort(tmp_path / "both").sites == ("a", "b", "c")
    assert _run("check", tmp_path / "both").exit_code == 1  # c0 and c1 are in it under two ids
    wrong = _run("import", "table", tmp_path / "t" / "scans.csv", *arguments, "--label", "present")
    assert isinstance(wrong.exception, UsageError)


@pytest.mark.real("ct_ich", "head_ct_dicom")
def test_real_scans_of_two_hospitals(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "head.yaml").write_text(
        "name: head-ct\nmodality: ct\ndimensions: 2\nclasses: [none, haemorrhage]\npositive: haemorrhage\n"
        "intensity: {unit: HU, window: [-20, 100]}\n"
    )
    ich, head, both = tmp_path / "ich", tmp_path / "head", tmp_path / "both"
    assert _run("import", "ct-ich", shared_data / "ct_ich", "--out", ich).exit_code == 0
    dicom = ["import", "dicom", shared_data / "head_ct_dicom" / "series", "--out", head]
    dicom += ["--site", "hispeed", "--patient", "p1", "--label", "none", "--meaning", tmp_path / "head.yaml"]
    refused = _run(*dicom)
    assert "unevenly spaced" in str(refused.exception)
    assert not head.exists()
    assert _run(*dicom, "--uneven", "keep").exit_code == 0
    notes = json.loads((head / "provenance.json").read_text())["notes"]
    assert any("kept as scanned" in note and "tilt 18.5 degrees" in note for note in notes)
    assert _run("import", "merge", ich, head, "--out", both).exit_code == 0

    result = _run("check", both, "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert (data["cases"], data["patients"]) == (64, 6)
    (warning,) = [f for f in data["findings"] if f["check"] == "site and label"]
    assert warning["severity"] == "warn"
    assert "The site determines the label: Cramér's V 1.00" in warning["message"]
    assert {site["site"]: site["masks"] for site in data["sites"]} == {"ct-ich": 36, "hispeed": 0}

    alone = _run("check", ich)
    assert alone.exit_code == 1
    assert "Every labelled case is 'haemorrhage'" in alone.stdout
    # Not all of a real file is enough.
    target = next((head / "images").iterdir())
    target.write_bytes(target.read_bytes()[:5000])
    assert _run("check", head, "--target", "label").exit_code == 1


@pytest.mark.real("head_ct_dicom")
def test_a_real_dicom_series_as_a_case(shared_data: Path, tmp_path: Path) -> None:
    series = shared_data / "head_ct_dicom" / "series"
    spec = CohortSpec(name="x", modality="ct", dimensions=2, intensity=HU)
    for number, part in enumerate((1.0, 0.5, 0.0)):
        data = (series / f"{number + 10:02d}.dcm").read_bytes()
        (tmp_path / f"{number}.dcm").write_bytes(data[: int(part * len(data))])
    rows = [{"case_id": f"c{n}", "patient_id": f"p{n}", "site": "s", "image": f"{n}.dcm"} for n in range(3)]
    write_cohort(tmp_path, spec, rows)
    data = json.loads(_run("check", tmp_path, "--json").stdout)
    (finding,) = [f for f in data["findings"] if f["check"] == "files"]
    assert finding["cases"] == ["c1", "c2"]
