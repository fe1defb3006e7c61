"""`threefold import`: options reach the importers, and mistakes are usage errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from threefold.cli.app import app
from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.errors import CohortError, ThreefoldError, UsageError
from threefold.images.writing import write_png


def _call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A table of two pictures with columns of its own, and what they mean."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        write_png(folder / f"{number}.png", np.full((4, 4), 9 + number, np.uint8))
    (folder / "scans.csv").write_text("file,person,finding\n0.png,A,1\n1.png,B,0\n")
    (folder / "meaning.yaml").write_text(
        "name: scans\nmodality: photo\ndimensions: 2\nclasses: [none, lesion]\nintensity: {unit: grey}\n"
    )
    return folder


def _table(scans: Path, out: Path, *more: str, site: str = "north") -> Result:
    return _call(
        *("table", scans / "scans.csv", "--meaning", scans / "meaning.yaml", "--out", out),
        *("--column", "image=file", "--column", "patient_id=person", "--column", "label=finding"),
        *("--constant", f"site={site}", "--label", "1=lesion", "--label", "0=none", *more),
    )


def _labels(cohort: Cohort) -> list[int | None]:
    return [case.label for case in cohort.cases]


def test_a_table_with_columns_of_its_own(scans: Path, tmp_path: Path) -> None:
    result = _table(scans, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'out'}: 2 cases of 2 patients" in result.stdout
    cohort = read_cohort(tmp_path / "out")
    assert _labels(cohort) == [1, 0]
    assert cohort.sites == ("north",)


def test_referred_files_stay_where_they_are(scans: Path, tmp_path: Path) -> None:
    assert _table(scans, tmp_path / "out", "--reference").exit_code == 0
    assert not list((tmp_path / "out").rglob("*.png"))
    with pytest.raises(CohortError, match="leaves the cohort's folder"):
        read_cohort(tmp_path / "out")
    cohort = read_cohort(tmp_path / "out", allow_outside=True)
    assert [case.image for case in cohort.cases] == [scans / "0.png", scans / "1.png"]


def test_hospitals_are_merged_under_a_name_with_prefixes(scans: Path, tmp_path: Path) -> None:
    for site in ("north", "south"):
        meaning = (scans / "meaning.yaml").read_text()
        (scans / "meaning.yaml").write_text(meaning.replace(meaning.split("\n")[0], f"name: {site}"))
        assert _table(scans, tmp_path / site, site=site).exit_code == 0
    parts = (tmp_path / "north", tmp_path / "south")
    shared = _call("merge", *parts, "--out", tmp_path / "both")
    assert isinstance(shared.exception, CohortError)
    assert "--prefix" in str(shared.exception)
    result = _call("merge", *parts, "--out", tmp_path / "both", "--name", "both", "--prefix")
    assert result.exit_code == 0, result.output
    both = read_cohort(tmp_path / "both")
    assert both.spec.name == "both"
    assert [case.case_id for case in both.cases] == ["north-0", "north-1", "south-0", "south-1"]


def test_an_unknown_label_of_a_series_is_one_line(scans: Path, tmp_path: Path) -> None:
    result = _call(
        *("dicom", tmp_path, "--meaning", scans / "meaning.yaml", "--site", "s", "--patient", "p"),
        *("--label", "leison", "--out", tmp_path / "out"),
    )
    assert str(result.exception) == "label: 'leison' is not a class of cohort.yaml. Did you mean 'lesion'?"


@pytest.mark.parametrize("pair", ["site", "site=", "=north"])
def test_a_pair_without_its_half_is_a_usage_error(scans: Path, tmp_path: Path, pair: str) -> None:
    result = _table(scans, tmp_path / "out", "--constant", pair)
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == f"--constant {pair}: expected NAME=VALUE."


def test_the_current_folder_is_no_name_for_a_cohort(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    error = _table(scans, Path()).exception
    assert isinstance(error, ThreefoldError)
    assert "is the current folder" in str(error)
