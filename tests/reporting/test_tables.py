"""Printed and written tables: every number with its n and interval, gaps with reasons, leaks marked."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from threefold.evaluation.estimate import COLUMNS, Estimate
from threefold.evaluation.evaluate import Evaluation, evaluate
from threefold.evaluation.metrics import METRICS
from threefold.evaluation.predictions import Predictions, validate
from threefold.experiment import EvaluationSpec
from threefold.reporting.table import LEAK_MARK, Table, cell, markdown, plain, show
from threefold.reporting.tables import comparison_table, evaluation_json, evaluation_tables, write_tables

ROW = Estimate(metric="auc", value=0.81234, interval=(0.75, 0.875), n=40, patients=12, positives=9)
NUMBER = re.compile(r"-?\d+\.\d+†? \[(no interval|-?\d+\.\d+, -?\d+\.\d+)\] n=\d+(/\d+)?$")


def change(**fields: object) -> Estimate:
    return dataclasses.replace(ROW, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (ROW, "0.812 [0.750, 0.875] n=40/12"),
        (change(level="patient", n=12), "0.812 [0.750, 0.875] n=12"),
        (change(leaks=True), "0.812† [0.750, 0.875] n=40/12"),
        (change(metric="psnr", value=31.456, interval=(30.0, 33.0)), "31.46 [30.00, 33.00] n=40/12"),
        (change(interval=None, why="one patient"), "0.812 [no interval] n=40/12"),
        (change(value=math.nan, why="one class"), "not estimable (one class) n=40/12"),
        (
            change(value=math.nan, n=0, why="no labelled case"),
            "not estimable (no labelled case)",
        ),
        (None, "not measured"),
    ],
)
def test_a_cell_says_value_interval_and_n_or_why_not(row: Estimate | None, text: str) -> None:
    assert cell(row) == text


def test_every_cell_of_a_number_has_its_interval_and_n(evaluation: Evaluation) -> None:
    tables = evaluation_tables(evaluation)
    assert [table.title for table in tables] == [
        "Test cases by group, per case",
        "Test cases by site, per case",
        "Test cases by group, per patient",
        "Test cases by site, per patient",
    ]
    for table in tables:
        for name, *cells in table.rows:
            assert len(cells) == len(table.columns) - 1
            for text in cells:
                if name.startswith("Positive") or re.fullmatch(r"\d+ of \d+", text):
                    continue
                assert NUMBER.search(text) or "not estimable (" in text, (name, text)
        assert any("95%" in note and "40 resamples" in note for note in table.notes)


def test_groups_and_the_worst_site_are_columns_and_a_class_that_is_absent_a_reason(
    evaluation: Evaluation,
) -> None:
    by_group, by_site = evaluation_tables(evaluation)[:2]
    assert by_group.columns == ("metric", "all", "internal", "external", "worst site")
    cells = {name: row for name, *row in by_group.rows}
    assert cells["Positive (bleed)"][:3] == ["18 of 48", "12 of 24", "6 of 24"]
    assert re.match(r"[abc]: ", cells["AUC"][3])
    site_d = dict(zip(by_site.columns, next(row for row in by_site.rows if row[0] == "d"), strict=True))
    assert site_d["positive"] == "0 of 12"
    assert site_d["AUC"] == "not estimable (one class) n=12/6"
    assert site_d["Sensitivity"] == "not estimable (no positive case) n=12/6"


def test_a_leak_is_beside_every_number_and_explained(leaking: Evaluation, evaluation: Evaluation) -> None:
    for table in (*evaluation_tables(leaking), comparison_table({"a": leaking})):
        for _, *cells in table.rows:
            for text in cells:
                assert LEAK_MARK in text or not NUMBER.search(text), text
        assert any(note.startswith(LEAK_MARK) for note in table.notes)
    assert LEAK_MARK not in "".join(plain(table) for table in evaluation_tables(evaluation))


def test_variants_are_rows_of_f1_and_auc_by_site_group(evaluation: Evaluation, leaking: Evaluation) -> None:
    table = comparison_table({"cls": evaluation, "cls+seg": leaking})
    assert table.columns == ("variant", "internal F1", "internal AUC", "external F1", "external AUC")
    assert [row[0] for row in table.rows] == ["cls", "cls+seg"]
    auc = evaluation.find("auc", group_kind="site group", group="external")
    assert table.rows[0][4] == cell(auc)
    # A mark belongs to the variant that leaks, not to the table.
    assert LEAK_MARK not in "".join(table.rows[0])
    assert all(LEAK_MARK in text for text in table.rows[1][1:])


def test_variants_of_other_groups_and_tasks_are_compared_by_what_there_is(evaluation: Evaluation) -> None:
    masks = pd.DataFrame(
        {
            "case_id": [f"c{i}" for i in range(6)],
            "mask_truth_voxels": [4, 4, 4, 4, 0, 0],
            "mask_predicted_voxels": [4, 2, 0, 1, 0, 3],
            "mask_overlap_voxels": [4, 2, 0, 1, 0, 0],
        }
    )
    masks_only = evaluate(validate(masks), EvaluationSpec(replicates=20))
    table = comparison_table({"seg": masks_only})
    assert table.columns == ("variant", "all Dice", "all Missed lesions")
    assert table.rows[0][1].startswith("0.517 ")  # (1 + 2/3 + 0 + 2/5) / 4
    mixed = comparison_table({"seg": masks_only, "cls": evaluation})
    assert mixed.rows[0][1:] == ("not measured",) * 4


def test_files_hold_every_row(evaluation: Evaluation, tmp_path: Path) -> None:
    paths = write_tables(evaluation, tmp_path / "tables")
    assert [path.name for path in paths] == ["metrics.csv", "metrics.md"]
    long = pd.read_csv(paths[0])
    data = json.loads(json.dumps(evaluation_json(evaluation), allow_nan=False))
    assert len(long) == len(data["numbers"]) == len(evaluation.rows)
    assert {*long["metric"]} == {row["metric"] for row in data["numbers"]} <= {*METRICS}
    gaps = [row for row in data["numbers"] if row["value"] is None]
    assert gaps
    assert all(row["why"] and row["interval"] is None for row in gaps)
    assert data["threshold"] == 0.5
    assert data["overlap_policy"] == "lesion-cases"
    assert paths[1].read_text().count("## Test cases by") == 4
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == sorted(p.name for p in paths)


def test_json_has_no_number_that_json_lacks(evaluation: Evaluation) -> None:
    text = json.dumps(evaluation_json(evaluation), allow_nan=False)
    assert json.loads(text)["positive"] == "bleed"


TABLE = Table("Title", ("site", "AUC"), (("a|b", "0.5 [0.4, 0.6] n=3"), ("longer name", "?")), ("A note.",))


def test_markdown_keeps_cells_apart() -> None:
    assert markdown(TABLE).splitlines() == [
        "## Title",
        "",
        "| site | AUC |",
        "| --- | --- |",
        "| a\\|b | 0.5 [0.4, 0.6] n=3 |",
        "| longer name | ? |",
        "",
        "A note.",
    ]


def test_piped_output_is_plain_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    show(TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Title"
    assert [line.index("  ") for line in lines[1:3]] == [4, 3]
    assert {line[13:].split(" ")[0] for line in lines[1:4]} == {"AUC", "0.5", "?"}
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_the_same_cells(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    show(comparison_table({"cls": evaluation}))
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    auc = evaluation.find("auc", group_kind="site group", group="internal")
    assert cell(auc) in printed
    assert "┃" in printed


def test_the_reference_names_every_metric_and_limit() -> None:
    from threefold.evaluation.classification import CALIBRATION_BINS
    from threefold.evaluation.groups import WORST_SITE_PATIENTS
    from threefold.evaluation.intervals import MAX_MISSING
    from threefold.evaluation.overlap import POLICY

    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
    for name in (*METRICS, *COLUMNS, POLICY):
        assert f"`{name}`" in page, name
    assert f"{CALIBRATION_BINS} bins" in page
    assert f"at least {WORST_SITE_PATIENTS} patients" in page
    assert f"more than {MAX_MISSING:.0%}".replace("%", " %") in page
    assert f"{EvaluationSpec().replicates} replicates" in page


def test_patients_without_a_site_group_are_compared_over_all(predictions: Predictions) -> None:
    table = predictions.table.assign(site_group="")
    ungrouped = evaluate(validate(table), EvaluationSpec(replicates=20), threshold=0.5)
    assert comparison_table({"cls": ungrouped}).columns == ("variant", "all F1", "all AUC")
    assert evaluation_tables(ungrouped)[0].columns == ("metric", "all", "worst site")
