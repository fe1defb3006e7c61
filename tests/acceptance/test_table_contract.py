"""What `check` accepts, every later verb can read: names and cells of all kinds through every table.

No network is asked: predictions are made up, and take the way that a run's take.
"""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from threefold.audits.audit import audit
from threefold.cohorts.cohort import Cohort, fingerprint, read_cohort
from threefold.cohorts.merging import merge_cohorts
from threefold.cohorts.reserved_names import RESERVED_COLUMNS, RESERVED_PREFIXES
from threefold.cohorts.splits import Split, read_split, write_split
from threefold.cohorts.staging import row_of
from threefold.cohorts.table import format_rows, parse_table
from threefold.csv_tables import read_frame
from threefold.errors import CohortError
from threefold.evaluation import predictions as schema
from threefold.evaluation.evaluate import evaluate
from threefold.evaluation.predictions import (
    Predictions,
    probability_column,
    read_predictions,
    write_predictions,
)
from threefold.evaluation.structure_measures import UNION
from threefold.evaluation.structures import NUMBERS, read_structures_table, with_structures
from threefold.experiment import EvaluationSpec
from threefold.inference.cases import case_identity
from threefold.inference.out_of_distribution import OutOfDistribution
from threefold.reporting.html import table_html
from threefold.reporting.results import read_results, write_part
from threefold.reporting.table import markdown
from threefold.reporting.tables import evaluation_part, evaluation_tables, write_tables

QUICK = EvaluationSpec(replicates=2)
AWKWARD = (
    "NA", "nan", "None", "null", "007", "1e5", "-1", "1.0", "=1+1", "+x", "-x", "@x", "'=x", "a,b", 'a"b',
    "a|b", "a;b", "<b>", "all", "mean", "union", "internal", "\u00e9", "e\u0301", "😀", "שלום", "x" * 150,
    "A", "a", "True", "label", "case_id", "self", "index", "part", "psnr", "site_group", "probability_reader",
    "agrees", "0", "%s", "{0}", "\\", "a b", "a  b", "a=b", "a:b", "#x", "a/b", "..", "con", "\u200f",
    "a\u0000",
)  # fmt: skip
NAMES = st.sampled_from(AWKWARD) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
CELLS = NAMES | st.sampled_from(["", " ", "\t=1", "a\nb", "a\r\nb", "a\rb", " x "])


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Draw what a cohort's two files say, most of it odd."""
    further = draw(st.lists(NAMES, max_size=3))
    count = draw(st.integers(2, 4))
    return {
        "classes": draw(st.lists(NAMES, min_size=2, max_size=3, unique=True)),
        "structures": draw(st.lists(NAMES, max_size=2, unique=True)),
        "group": draw(NAMES),
        "columns": further,
        "rows": [
            {
                "case_id": draw(NAMES),
                "patient_id": draw(NAMES),
                "site": draw(NAMES),
                "cells": [draw(CELLS) for _ in further],
            }
            for _ in range(count)
        ],
    }


def _write(folder: Path, drawn: dict[str, Any]) -> None:
    """Write a cohort as a user would: by a spreadsheet and an editor, without this program."""
    spec = {
        "name": "drawn",
        "modality": "photo",
        "dimensions": 2,
        "classes": drawn["classes"],
        "structures": drawn["structures"],
        "site_groups": {drawn["group"]: [drawn["rows"][0]["site"]]},
    }
    (folder / "cohort.yaml").write_text(yaml.safe_dump(spec, allow_unicode=True), encoding="utf-8")
    stream = io.StringIO(newline="")
    table = csv.writer(stream, quoting=csv.QUOTE_ALL)
    table.writerow(["case_id", "patient_id", "site", "image", "label", *drawn["columns"]])
    for number, row in enumerate(drawn["rows"]):
        label = drawn["classes"][number % len(drawn["classes"])]
        table.writerow([row["case_id"], row["patient_id"], row["site"], "image.png", label, *row["cells"]])
    (folder / "cases.csv").write_bytes(stream.getvalue().encode())


def _predicted(cohort: Cohort, folder: Path) -> Predictions:
    """Write made-up tables as a run writes them, and read them as `evaluate` does."""
    classes = cohort.spec.classes
    share = 1 / len(classes)
    rows = [
        case_identity(case, cohort.spec, "test")
        | {probability_column(name): share for name in classes}
        | dict(case.extra)
        for case in cohort.cases
    ]
    lines = [
        {"case_id": case.case_id, "structure": name, **dict.fromkeys(NUMBERS, 0)}
        for case in cohort.cases
        for name in (*cohort.spec.structures, UNION)
    ]
    write_predictions(pd.DataFrame(rows), folder / "predictions.csv")
    write_predictions(pd.DataFrame(lines), folder / "structures.csv")
    found = read_predictions(folder / "predictions.csv", classes=classes)
    return with_structures(found, read_structures_table(folder / "structures.csv"))


def _through_every_table(cohort: Cohort, folder: Path) -> None:
    again = parse_table(
        format_rows(row_of(case, cohort.spec) for case in cohort.cases),
        cohort.folder / "cases.csv",
        cohort.spec,
        allow_outside=True,
    )
    assert fingerprint(Cohort(cohort.folder, cohort.spec, again)) == fingerprint(cohort)
    split = Split("patient", {case.case_id: "test" for case in cohort.cases}, ())
    write_split(folder / "split.csv", split)
    assert read_split(folder / "split.csv") == split
    predictions = _predicted(cohort, folder)
    for case, (_, row) in zip(cohort.cases, predictions.table.iterrows(), strict=True):
        assert (row["case_id"], row["patient_id"], row["site"]) == (case.case_id, case.patient_id, case.site)
        assert {name: row[name] for name in case.extra} == dict(case.extra)
    evaluation = evaluate(predictions, QUICK)
    write_tables(evaluation, folder)
    metrics = read_frame(folder / "metrics.csv")
    for column in ("group", "class_name", "metric", "note"):
        assert metrics[column].tolist() == [getattr(row, column) for row in evaluation.rows]
    shown = evaluation_tables(evaluation)
    for table in shown:
        assert table_html(table).count("<tr>") == len(table.rows) + 1
    write_part(folder, "evaluate", evaluation_part(evaluation, shown))
    kept = read_results(folder)["evaluate"].tables
    assert kept == shown
    assert [markdown(table) for table in kept] == [markdown(table) for table in shown]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables())
@example(
    {
        "classes": ["NA", "=1"],
        "structures": ["None", "a|b"],
        "group": "internal",
        "columns": ["self", "=cmd", "NA"],
        "rows": [
            {"case_id": "007", "patient_id": "nan", "site": "all", "cells": ["a\rb", "'=1", "NA"]},
            {"case_id": "1e5", "patient_id": "null", "site": "-x", "cells": ["=1+1", "", "a\r\nb"]},
        ],
    }
)
def test_what_is_accepted_is_read_by_every_verb(drawn: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, drawn)
        try:
            cohort = read_cohort(folder)
        except CohortError:
            return  # refused before anything rests on it
        _through_every_table(cohort, folder)


def _cohort(folder: Path, header: str = "", cells: str = "", **spec: Any) -> Path:
    folder.mkdir()
    content = {"name": folder.name, "modality": "photo", "dimensions": 2, "classes": ["no", "yes"], **spec}
    (folder / "cohort.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    rows = [f"c{i}-{folder.name},p{i}-{folder.name},north,image.png{cells}" for i in range(2)]
    (folder / "cases.csv").write_text("\n".join([f"case_id,patient_id,site,image{header}", *rows]) + "\n")
    (folder / "image.png").write_bytes(b"")
    return folder


def test_the_reserved_names_are_the_columns_of_predictions() -> None:
    columns = {*schema.TEXT_COLUMNS, *schema.MASK_COLUMNS, *schema.RECONSTRUCTION_COLUMNS}
    columns |= {*schema.TOPOLOGY_COLUMNS, *schema.TRUST_COLUMNS, *OutOfDistribution(None).columns()}
    columns |= {schema.NOT_MEASURED}
    assert columns - {"case_id", "patient_id", "site", "label"} == {*RESERVED_COLUMNS}
    assert RESERVED_PREFIXES == (schema.PROBABILITY_PREFIX, schema.CALIBRATED_PREFIX)


@pytest.mark.parametrize("name", [*RESERVED_COLUMNS, "probability_reader", "a\u200fb"])
def test_a_column_of_the_programs_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"Rename yours, my_|control characters in its name"):
        read_cohort(_cohort(tmp_path / "cohort", f",{name}", ",0.4"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"structures": ["DAO", "union"]}, "the program's own tables use the name 'union'"),
        ({"site_groups": {"all": ["north"]}}, "the program's own tables use the name 'all'"),
    ],
)
def test_a_structure_or_group_of_the_programs_name_is_refused(
    spec: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CohortError, match=message):
        read_cohort(_cohort(tmp_path / "cohort", **spec))


@pytest.mark.parametrize(("first", "second"), [("Case", "case"), ("caf\u00e9", "cafe\u0301")])
def test_cases_that_some_systems_take_for_one_are_said(first: str, second: str, tmp_path: Path) -> None:
    folder = _cohort(tmp_path / "cohort")
    rows = [f"{name},p{k},north,image.png" for k, name in enumerate((first, second))]
    (folder / "cases.csv").write_text("\n".join(["case_id,patient_id,site,image", *rows]), encoding="utf-8")
    said = [one.message for one in audit(read_cohort(folder), read_voxels=False).findings]
    assert any("Windows and macOS do not tell their files" in message for message in said)


def test_patients_written_in_two_ways_are_said(tmp_path: Path) -> None:
    folder = _cohort(tmp_path / "cohort")
    (folder / "cases.csv").write_text(
        "case_id,patient_id,site,image\na,P 1,north,image.png\nb,p1,North,image.png\n", encoding="utf-8"
    )
    said = [one.message for one in audit(read_cohort(folder), read_voxels=False).findings]
    assert any(
        "patients spelled in several ways" in message and "'P 1' and 'p1'" in message for message in said
    )
    assert any(
        "sites spelled in several ways" in message and "'North' and 'north'" in message for message in said
    )


def test_odd_columns_are_merged(tmp_path: Path) -> None:
    cohorts = [read_cohort(_cohort(tmp_path / name, ",'=x,NA", ",-1,=1")) for name in ("one", "other")]
    merged = merge_cohorts(cohorts, tmp_path / "merged")
    assert [dict(case.extra) for case in merged.cases] == [{"=x": "-1", "NA": "=1"}] * 4
    assert "'=1" in (tmp_path / "merged" / "cases.csv").read_text(encoding="utf-8")
