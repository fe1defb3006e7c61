"""Tables of structures, topology and several classes: what stands where, alone and side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from threefold.evaluation.evaluate import Evaluation, evaluate
from threefold.evaluation.predictions import Predictions, validate
from threefold.evaluation.structures import validate_structures, with_structures
from threefold.reporting.run_report import write_report
from threefold.reporting.table import Table, cell
from threefold.reporting.tables import (
    comparison_tables,
    confusion_table,
    diagnosis_variants,
    disagreement_table,
    evaluation_tables,
    structure_tables,
    variant_tables,
    write_comparison,
)

from ..evaluation.conftest import make_table
from ..evaluation.test_structures_table import CLASSES, QUICK, STRUCTURES, make_predictions, make_structures


def by_name(table: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


@pytest.fixture(scope="module")
def joint() -> Predictions:
    return make_predictions()


@pytest.fixture(scope="module")
def joint_numbers(joint: Predictions) -> Evaluation:
    return evaluate(joint, QUICK)


@pytest.fixture(scope="module")
def mask_numbers(joint: Predictions) -> Evaluation:
    """A segmenter of masks: no class, and the union alone."""
    structures = joint.structures
    assert structures is not None
    columns = ["case_id", "patient_id", "site", "label", "part"]
    columns += [f"mask_{what}_voxels" for what in ("truth", "predicted", "overlap")]
    union = structures[structures["structure"] == "union"]
    return evaluate(with_structures(validate(joint.table[columns]), union), QUICK)


def test_a_mask_alone_is_not_told_twice(mask_numbers: Evaluation) -> None:
    rows = by_name(evaluation_tables(mask_numbers)[0])
    assert {"Dice", "Missed lesions", "HD95 (mm)", "b1 error (tunnels)"} <= {*rows}
    assert not any("union" in name for name in rows)
    assert not {"Missed", "Extra"} & {*rows}
    assert rows["Dice"]["all"] == cell(mask_numbers.find("dice"))
    assert rows["HD95 (mm)"]["all"] == cell(mask_numbers.find("hd95_mm", class_name="union"))


def test_structures_come_in_their_order_with_union_and_mean_last(joint_numbers: Evaluation) -> None:
    by_structure, by_class = structure_tables(joint_numbers)
    assert list(by_name(by_structure)) == [*STRUCTURES, "union", "mean over structures"]
    rows = by_name(by_structure)
    assert rows["DAO"]["HD95 (mm)"] == cell(joint_numbers.find("hd95_mm", class_name="DAO"))
    assert rows["mean over structures"]["Missed"] == cell(joint_numbers.find("missed_structures"))
    assert by_class.columns == ("metric", "all", *CLASSES)
    daa = joint_numbers.find("b1_error", class_name="union", group_kind="class", group="DAA")
    assert by_name(by_class)["b1 error (tunnels), union"]["DAA"] == cell(daa)
    raa = joint_numbers.find("topology_right", group_kind="class", group="RAA")
    assert by_name(by_class)["Arch as diagnosed"]["RAA"] == cell(raa)


def test_confusion_has_true_classes_in_rows(joint_numbers: Evaluation, joint: Predictions) -> None:
    table = confusion_table(joint_numbers)
    assert table is not None
    assert table.columns == ("truth", *(f"decided {name}" for name in CLASSES))
    test = joint.table
    decided = test[[f"probability_{name}" for name in CLASSES]].to_numpy().argmax(axis=1)
    taken = ((test["label"] == "RAA") & (decided == 2)).sum()
    text = by_name(table)["RAA"]["decided DAA"]
    assert text.startswith(f"{taken}: {taken / (test['label'] == 'RAA').sum():.3f} [")
    tables = evaluation_tables(joint_numbers)
    assert "Confusion, per case" in [each.title for each in tables]
    # It has a table of its own, and no line in the others.
    assert not [row for each in tables[:4] for row in each.rows if "Decided" in row[0]]


def test_a_class_without_cases_is_said_to_be_so() -> None:
    table = make_table(patients=9, cases=1, classes=CLASSES)
    evaluation = evaluate(validate(table[table["label"] != "DAA"], classes=CLASSES), QUICK)
    confused = confusion_table(evaluation)
    assert confused is not None
    assert set(by_name(confused)["DAA"].values()) == {"not estimable (no case of class DAA)"}
    assert confusion_table(evaluate(validate(make_table(patients=6)), QUICK)) is None


def test_two_dice_are_told_apart_by_site(joint_numbers: Evaluation) -> None:
    by_site = next(t for t in evaluation_tables(joint_numbers) if t.title == "Test cases by site, per case")
    assert "Dice" in by_site.columns
    assert "Dice, mean over structures" in by_site.columns
    assert len(set(by_site.columns)) == len(by_site.columns)


def test_variants_side_by_side(joint_numbers: Evaluation, mask_numbers: Evaluation) -> None:
    evaluations = {"seg-man": mask_numbers, "joint": joint_numbers}
    sites, diagnosis, by_structure, by_class = comparison_tables(evaluations)
    assert sites.title == "Variants by site group, per case"
    assert sites.columns[1:3] == ("internal Balanced accuracy", "internal AUC")
    assert diagnosis.columns == ("metric", "seg-man", "joint")
    rows = by_name(diagnosis)
    assert rows["Sensitivity, DAA"] == {
        "seg-man": "not measured",
        "joint": cell(joint_numbers.find("sensitivity", class_name="DAA")),
    }
    rows = by_name(by_structure)
    assert rows["AO"]["seg-man"] == "not measured"
    # The same truth: what was trained on masks alone can be compared by the union.
    assert rows["union"]["seg-man"] == rows["union"]["joint"] != "not measured"
    rows = by_name(by_class)
    assert rows["DAA: HD95 (mm), union"]["seg-man"] == rows["DAA: HD95 (mm), union"]["joint"]
    assert rows["DAA: Graph edits"]["seg-man"] == "not measured"
    assert [name.partition(":")[0] for name in rows if name.endswith(": Dice, union")] == ["all", *CLASSES]


def test_two_classes_and_no_structures_have_neither_table() -> None:
    evaluations = {"a": evaluate(validate(make_table(patients=6)), QUICK)}
    assert diagnosis_variants(evaluations) is None
    assert variant_tables(evaluations) == ()
    assert len(comparison_tables(evaluations)) == 1


def test_other_test_cases_are_said_below_every_table_of_variants(joint_numbers: Evaluation) -> None:
    other = evaluate(make_predictions(patients=20), QUICK)
    same = comparison_tables({"a": joint_numbers, "b": joint_numbers})
    assert not any("different cases" in note for table in same for note in table.notes)
    for table in comparison_tables({"a": joint_numbers, "b": other}):
        expected = "The variants were tested on different cases (a 60, b 40; 40 in common)."
        assert expected in table.notes


def test_a_comparison_is_written_with_every_number(joint_numbers: Evaluation, tmp_path: Path) -> None:
    paths = write_comparison({"a": joint_numbers, "b": joint_numbers}, tmp_path / "new" / "tables")
    assert [path.name for path in paths] == ["comparison.md", "comparison.csv"]
    text = paths[0].read_text()
    for title in ("Variants by diagnosis", "Variants by structure: Dice", "Variants by class"):
        assert title in text
    numbers = pd.read_csv(paths[1])
    assert list(numbers.columns) == ["variant", *joint_numbers.table.columns]
    assert numbers["variant"].value_counts().to_dict() == dict.fromkeys("ab", len(joint_numbers.rows))
    np.testing.assert_allclose(numbers["value"][: len(joint_numbers.rows)], joint_numbers.table["value"])


def test_disagreements_are_listed_and_gone_when_there_are_none(joint: Predictions, tmp_path: Path) -> None:
    table = disagreement_table(joint)
    assert table is not None
    wrong = joint.table[joint.table["agrees"] == "no"]
    assert [row[0] for row in table.rows] == wrong["case_id"].tolist()
    first = by_name(table)[wrong["case_id"].iloc[0]]
    chances = wrong.iloc[0][[f"probability_{name}" for name in CLASSES]].astype(float)
    assert first["topology says"] == wrong["topology_class"].iloc[0] != first["classifier says"]
    assert first["classifier says"] == chances.idxmax().removeprefix("probability_")
    assert first["its probability"] == f"{chances.max():.2f}"
    report = write_report(joint, QUICK, tmp_path, threshold=None)
    path = tmp_path / "tables" / "disagreements.md"
    assert path in report.tables
    assert wrong["case_id"].iloc[-1] in path.read_text()
    agreeing = joint.table.assign(agrees="yes")
    assert disagreement_table(replace(joint, table=agreeing)) is None
    write_report(replace(joint, table=agreeing), QUICK, tmp_path, threshold=None)
    assert not path.exists()


def test_a_truth_that_is_no_reference_is_said_in_the_tables() -> None:
    table = make_table(patients=6, cases=1)
    structures = make_structures(table["case_id"].tolist()).assign(truth_source="structures")
    joined = with_structures(validate(table), validate_structures(structures))
    assert any(
        "6 of 6 test cases have no reference" in n
        for n in evaluation_tables(evaluate(joined, QUICK))[0].notes
    )
