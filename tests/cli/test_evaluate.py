"""`threefold evaluate` on anyone's table of predictions: what it prints, writes and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from threefold.cli.app import main

from ..evaluation.test_structures_table import make_structures


def call(*arguments: str | Path, code: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["threefold", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == code


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A table that another program might have left: no part, no site group, no mask."""
    chance = np.linspace(0.05, 0.95, 40)
    labels = np.where(np.random.default_rng(0).random(40) < chance, "tumour", "none")
    table = pd.DataFrame(
        {
            "case_id": [f"{i:03d}" for i in range(40)],
            "patient_id": [f"{i // 2:03d}" for i in range(40)],
            "site": ["north", "north", "south", "south"] * 10,
            "label": labels,
            "probability_none": 1 - chance,
            "probability_tumour": chance,
            "reader": "AB",
        }
    )
    path = tmp_path / "theirs.csv"
    table.to_csv(path, index=False)
    return path


def test_a_table_is_printed_plainly_and_written(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("evaluate", theirs)
    printed = capsys.readouterr().out
    for expected in ("Test cases by group, per case", "Test cases by site, per patient", "n=40/20", "north"):
        assert expected in printed
    assert "every case counts as a test case" in printed
    assert "\x1b" not in printed
    out = theirs.parent / "theirs-evaluation"
    assert f"Tables: {out / 'tables'}" in printed
    assert {path.name for path in (out / "tables").iterdir()} == {
        "cases.md",
        "metrics.csv",
        "metrics.md",
        "trust.md",
    }
    assert {path.name for path in (out / "figures").iterdir()} == {
        "roc.png",
        "calibration.png",
        "shift.png",
    }


def test_json_is_all_that_is_printed_and_out_is_where_it_goes(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("evaluate", theirs, "--json", "--out", tmp_path / "results")
    printed = json.loads(capsys.readouterr().out)
    part = json.loads((tmp_path / "results" / "results.json").read_text())["parts"]["evaluate"]
    assert {key: printed["theirs"][key] for key in part["facts"]} == part["facts"]
    assert part["numbers"][: len(printed["theirs"]["numbers"])] == printed["theirs"]["numbers"]
    assert not (theirs.parent / "theirs-evaluation").exists()


def test_the_positive_class_and_the_threshold_of_a_table_can_be_named(
    theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("evaluate", theirs, "--positive", "none", "--threshold", "0.3", "--json")
    found = json.loads(capsys.readouterr().out)["theirs"]
    assert (found["positive"], found["threshold"], found["threshold_source"]) == ("none", 0.3, "given")
    call("evaluate", theirs, "--positive", "tumor", code=1)
    assert "the positive class is 'tumor', which is not one of none, tumour" in capsys.readouterr().err


def test_a_positive_class_of_three_is_refused(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(theirs, dtype=str).assign(probability_cyst="0")
    table.to_csv(theirs, index=False)
    for option, value, said in (
        ("--positive", "cyst", "a positive class is named ('cyst'), but there are 3 classes"),
        ("--threshold", "0.4", "a threshold is given, but there are 3 classes"),
    ):
        call("evaluate", theirs, option, value, code=1)
        assert said in capsys.readouterr().err


def test_figures_of_an_earlier_evaluation_do_not_stay(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("evaluate", theirs, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "roc.png").is_file()
    table = pd.read_csv(theirs, dtype=str).drop(columns=["probability_none", "probability_tumour", "label"])
    table.assign(psnr=30).to_csv(theirs, index=False)
    call("evaluate", theirs, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "figures" / "roc.png").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",tumour,", ",tumor,", r"column label: expected one of none, tumour, found 'tumor'. Did you mean"),
        ("001,", "000,", "case '000', column case_id: expected each case once, found 2 rows"),
        ("case_id", "case", "column case_id is missing"),
    ],
)
def test_a_damaged_table_is_refused_with_its_name_and_nothing_is_written(
    old: str, new: str, message: str, theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs.write_text(theirs.read_text().replace(old, new, 1))
    call("evaluate", theirs, code=1)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {theirs}: ")
    assert message in error
    assert [path.name for path in theirs.parent.iterdir()] == ["theirs.csv"]


def test_what_is_no_run_or_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("evaluate", tmp_path, code=1)
    assert f"error: {tmp_path}: not a run folder" in capsys.readouterr().err
    call("evaluate", tmp_path / "gone.csv", code=1)
    assert "gone.csv: no such file" in capsys.readouterr().err


def test_structures_of_anyone(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    structures = theirs.parent / "structures.csv"
    make_structures([f"{i:03d}" for i in range(40)]).to_csv(structures, index=False)
    call("evaluate", theirs, "--structures", structures)
    printed = capsys.readouterr().out
    assert "Structures, per case" in printed
    assert "Structures and topology by class, per case" in printed
    make_structures(["zz"]).to_csv(structures, index=False)
    call("evaluate", theirs, "--structures", structures, code=1)
    assert f"error: {structures}: case 'zz'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the run folders to evaluate, or one table"),
        (("a.csv", "b.csv"), "a table of predictions is evaluated alone"),
        (("a.csv", "--propagated", "cohort"), "a table of predictions is evaluated alone"),
        (("run", "--structures", "s.csv"), "--structures is for a table of predictions"),
        (("run", "--positive", "tumour"), "--positive is for a table of predictions"),
        (("run", "--propagated", "cohort"), "--propagated needs --out"),
        (("run", "--out", "folder"), "a run's results go into the run folder"),
    ],
)
def test_what_contradicts_itself_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call("evaluate", *arguments, code=2)
    assert message in capsys.readouterr().err
