"""results.json holds what was made, whole, and comes back as it was."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from threefold.errors import RunError
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation
from threefold.locks import in_turn
from threefold.reporting import results
from threefold.reporting.results import Entry, Part, frame_of, part_json, read_results, write_part
from threefold.reporting.table import Number, Table, markdown
from threefold.reporting.tables import evaluation_part, evaluation_tables

NUMBER = Estimate(metric="auc", value=0.8, interval=(0.7, 0.9), n=40, patients=20)
NONE = Estimate(metric="auc", value=math.nan, n=0, patients=0, why="one class")


def test_numbers_and_tables_come_back_as_they_were(evaluation: Evaluation, tmp_path: Path) -> None:
    part = evaluation_part(evaluation, evaluation_tables(evaluation), ("roc",))
    write_part(tmp_path, "evaluate", part)
    found = read_results(tmp_path)["evaluate"]
    assert part_json(found) == part_json(part)
    assert found.tables == part.tables
    assert [markdown(table) for table in found.tables] == [markdown(table) for table in part.tables]
    numbers = [
        cell for table in found.tables for row in table.rows for cell in row if isinstance(cell, Number)
    ]
    assert len(numbers) > 50
    known = {id(entry.estimate) for entry in found.numbers}
    assert {id(number.estimate) for number in numbers} <= known
    assert len(found.numbers) == len(evaluation.rows)  # each number of a table is one of them


def test_what_is_not_estimable_is_null_and_says_why(tmp_path: Path) -> None:
    write_part(tmp_path, "probe", Part({}, (Entry(NONE, {"of": "probe"}), Entry(NUMBER)), (), ()))
    none, number = json.loads((tmp_path / "results.json").read_text())["parts"]["probe"]["numbers"]
    assert (none["value"], none["interval"], none["why"]) == (None, None, "one class")
    assert (number["value"], number["interval"], number["n"]) == (0.8, [0.7, 0.9], 40)
    entries = read_results(tmp_path)["probe"].numbers
    assert entries[0].about == {"of": "probe"}
    assert entries[0].estimate.note == "not estimable (one class)"
    assert entries[1].estimate == NUMBER
    assert frame_of(entries)["note"].tolist() == ["not estimable (one class)", ""]


def test_a_command_replaces_its_own_part_alone(tmp_path: Path) -> None:
    write_part(tmp_path, "evaluate", Part({"threshold": 0.5}, (Entry(NUMBER),), (), ("roc",)))
    explained = Part({}, (), (Table("A", ("a",), (("b",),), name="attention"),), ())
    write_part(tmp_path, "explain", explained)
    write_part(tmp_path, "evaluate", Part({"threshold": 0.4}, (), (), ()))
    found = read_results(tmp_path)
    assert found["evaluate"] == Part({"threshold": 0.4}, (), (), ())
    assert found["explain"] == explained


def test_two_commands_at_once_keep_each_others_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*arguments: Any) -> Any:
        found = read(*arguments)
        time.sleep(0.02)
        return found

    read = results._read
    monkeypatch.setattr(results, "_read", slowly)
    empty = Part({}, (), (), ())
    names = [f"part {number}" for number in range(8)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: write_part(tmp_path, name, empty), names))
    assert sorted(read_results(tmp_path)) == names


def test_a_command_that_does_not_end_is_waited_for_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threefold.locks._TURN", 0.05)
    with in_turn(tmp_path / "results.json"), pytest.raises(RunError, match="another process has been"):
        write_part(tmp_path, "evaluate", Part({}, (), (), ()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "expected version 1, found 2"),
        ({"parts": {"evaluate": {"numbers": []}}}, "facts"),
        ({"parts": {"evaluate": {"pictures": ["../x.png"]}}}, "pictures"),
        ({"parts": {"evaluate": {"pictures": ["figures/../../x.png"]}}}, "pictures"),
    ],
)
def test_a_damaged_file_is_refused_and_made_anew(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    whole = {"facts": {}, "numbers": [], "tables": [], "pictures": []}
    content = {"version": 1, "parts": {"evaluate": whole}, **change}
    if said == "pictures":
        content["parts"] = {"evaluate": {**whole, **content["parts"]["evaluate"]}}  # type: ignore[index,dict-item]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=said):
        read_results(tmp_path)
    write_part(tmp_path, "evaluate", Part({}, (), (), ()))
    assert read_results(tmp_path) == {"evaluate": Part({}, (), (), ())}


def test_a_table_that_names_no_number_of_the_file_is_refused(tmp_path: Path) -> None:
    table = Table("T", ("a", "b"), (("x", Number(NUMBER, "0.800", "[0.700, 0.900]", "n=40/20")),), name="t")
    path = write_part(tmp_path, "evaluate", Part({}, (), (table,), ()))
    assert read_results(tmp_path)["evaluate"].tables == (table,)  # a table brings its numbers
    text = path.read_text().replace('"number": 0', '"number": 7')
    path.write_text(text)
    with pytest.raises(RunError, match="is not what was written"):
        read_results(tmp_path)
    path.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "sha256"}))
    with pytest.raises(RunError, match="a table refers to a missing number"):
        read_results(tmp_path)


def test_without_a_file_there_is_nothing(tmp_path: Path) -> None:
    assert read_results(tmp_path) == {}
