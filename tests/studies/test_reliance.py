"""What the networks rely on, gathered from the tables that `explain` left in each run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from threefold.errors import PredictionsError
from threefold.reporting.study_tables import reliance_table
from threefold.studies.reliance import reliance_of
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import RunPlan

SHORTCUT = """within,column,label,worst,metric,group_kind,group,value
all,shortcut,,False,accuracy,value,shortcut 0,0.9
all,shortcut,neg,True,accuracy,value,shortcut 1,{worst}
all,shortcut,neg,True,auc,value,shortcut 1,0.1
external,shortcut,pos,True,accuracy,value,shortcut 0,
all,scanner,neg,True,accuracy,value,scanner A,0.05
"""
PROBES = """target,of,group_kind,group,metric,class_name,value
label,probe,all,all,auc,,{label}
label,probe,all,all,accuracy,,0.5
label,majority,all,all,auc,,0.4
shortcut,probe,site group,internal,auc,1,0.75
site,probe,all,all,auc,,0.6
site,probe,all,all,auc,site-01,0.3
site,probe,all,all,auc,site-02,0.9
site,probe,site,site-01,auc,,0.3
scanner,probe,all,all,auc,,0.99
"""
CALIBRATION = """when,group_kind,group,metric,value
fitted,,validation,temperature,1.5
before,all,all,calibration_error,0.2
after,all,all,calibration_error,0.1
change,all,all,calibration_error,-0.1
"""


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    study = StudyFolder(tmp_path)
    for plan, worst, label in zip(plans(), (0.2, 0.6), (0.8, 0.9), strict=True):
        tables = study.run(plan.id).tables
        tables.mkdir(parents=True)
        (tables / "shortcut.csv").write_text(SHORTCUT.format(worst=worst))
        (tables / "probes.csv").write_text(PROBES.format(label=label))
    (study.run(plans()[0].id).tables / "calibration_temperature.csv").write_text(CALIBRATION)
    return study


def plans() -> list[RunPlan]:
    return [RunPlan("c", "v", 0, seed, "r", ()) for seed in (0, 1)]


def no_leaks(names: Sequence[str]) -> bool:
    return False


def test_runs_whose_split_shares_patients_are_marked(folder: StudyFolder) -> None:
    second = plans()[1].id
    for finished, marked in (({plans()[0].id}, False), ({plans()[0].id, second}, True)):
        rows = [*reliance_of(folder, plans(), finished, lambda names: second in names)]
        assert {row.leaks for row in rows} == {marked}
        table = reliance_table(rows)
        assert all(("†" in cell) == marked for row in table.rows for cell in row[3:] if cell)
        assert any("shares patients" in note for note in table.notes) == marked


def test_it_is_the_mean_and_the_range_over_the_runs(folder: StudyFolder) -> None:
    finished = {plan.id for plan in plans()}
    found = [*reliance_of(folder, plans(), finished, no_leaks)]
    assert [(row.group, row.what, row.lowest, row.highest, row.runs) for row in found] == [
        ("all", "worst group", 0.2, 0.6, 2),
        ("all", "label probe", 0.8, 0.9, 2),
        ("internal", "shortcut probe", 0.75, 0.75, 2),
        ("all", "site probe", 0.6, 0.6, 2),
        ("all", "calibration error", 0.2, 0.2, 1),
        ("all", "change by temperature", -0.1, -0.1, 1),
    ]
    assert found[0].mean == pytest.approx(0.4)
    table = reliance_table(found)
    assert table.rows[0][:5] == ("c", "v", "all", "0.400 [0.200, 0.600] x2", "0.850 [0.800, 0.900] x2")
    assert table.rows[1][3:6] == ("", "", "0.750 [0.750, 0.750] x2")
    (first,) = {row.runs for row in reliance_of(folder, plans(), {plans()[0].id}, no_leaks)}
    assert first == 1
    assert [*reliance_of(folder, plans(), set(), no_leaks)] == []


def test_a_damaged_table_says_how_to_make_it_again(folder: StudyFolder) -> None:
    run = folder.run(plans()[0].id)
    (run.tables / "probes.csv").write_text("target\n1\n")
    how = rf"probes\.csv: can.t be read .*threefold explain {run.path}"
    with pytest.raises(PredictionsError, match=how):
        [*reliance_of(folder, plans(), {plans()[0].id}, no_leaks)]
