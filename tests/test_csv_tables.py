"""CSV tables: every cell comes back as it was, and none is one that a spreadsheet runs."""

from __future__ import annotations

import ast
import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.csv_tables import (
    MOST_COLUMNS,
    escape_cell,
    frame_text,
    read_frame,
    table_rows,
    table_text,
    unescape_cell,
)

SOURCE = Path(__file__).parents[1] / "src" / "threefold"

AWKWARD = st.text(st.sampled_from("=+-@\t\r\n'\"; ,aé0.1eＮ＝|\ufeff\u200f\x00😀"), max_size=6)
CELLS = AWKWARD | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
"""Text that UTF-8 can hold, with much of what tables and spreadsheets stumble over."""


def runs_in_a_spreadsheet(cell: str) -> bool:
    """Whether a cell begins as a formula does, once quotes and spaces are taken off, and is no number."""
    if cell.startswith("'"):
        return False
    try:
        float(cell)
    except ValueError:
        return cell.lstrip(' \t\r\n"\ufeff').startswith(tuple("=+-@＝＋－＠")) or cell[:1] in (
            "\t",
            "\r",
            "\n",
        )
    return False


@given(CELLS)
def test_a_cell_comes_back_and_never_runs(cell: str) -> None:
    assert unescape_cell(escape_cell(cell)) == cell
    assert not runs_in_a_spreadsheet(escape_cell(cell))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("a,b\r\ncaf\u00e9,1\r\n".encode("latin-1"), r"not UTF-8 text \(byte 8, in row 2; Latin-1\?\)"),
        ("a,b\n1,2\n".encode("utf-16"), "not UTF-8 text but UTF-16; save the table as 'CSV UTF-8'"),
        ("a,b\n1,2\n".encode("utf-16-le"), "but UTF-16"),
        ("a,b\n1,2\n".encode("utf-16-be"), "but UTF-16"),
        (b"a\0" * 50, "but UTF-16"),
        (b"," * MOST_COLUMNS + b"\n", f"{MOST_COLUMNS + 1} columns; expected at most {MOST_COLUMNS}"),
    ],
)
def test_what_is_no_table_is_refused_by_what_it_is(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(csv.Error, match=says):
        read_frame(tmp_path / "a.csv")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_of_any_system_are_read(tmp_path: Path, mark: bytes, end: str) -> None:
    (tmp_path / "a.csv").write_bytes(mark + end.join(["a,b", "\u00e9,a\0b", ""]).encode())
    frame = read_frame(tmp_path / "a.csv")
    assert [*frame.columns] == ["a", "b"]
    assert frame.iloc[0].tolist() == ["\u00e9", "a\0b"]


@given(CELLS)
def test_what_was_written_by_others_is_read_and_written_the_same(cell: str) -> None:
    written = escape_cell(unescape_cell(cell))
    assert written in (cell, escape_cell(cell))


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-cmd", "@SUM(A1)", "\tx", "\r=x", ' "=x', "'=x", "＝1"])
def test_formulas_get_an_apostrophe(cell: str) -> None:
    assert escape_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-1.5", "-1.5 +2", "1e5", "-1e-05", "007", "", "a-b", "NA", "d'or", "'a"])
def test_what_is_no_formula_stays(cell: str) -> None:
    assert escape_cell(cell) == cell


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_rows_come_back(rows: list[list[str]]) -> None:
    assert list(table_rows(table_text(rows))) == rows


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4))
def test_a_frame_is_written_as_rows_are(cells: list[tuple[str, str]]) -> None:
    frame = pd.DataFrame(cells, columns=["=a", "b"], dtype=object)
    assert frame_text(frame) == table_text([["=a", "b"], *cells])


def test_numbers_and_absent_cells_of_a_frame_are_as_pandas_writes_them(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "number": [-1.5, 1 / 3, np.nan, np.inf],
            "count": pd.array([-1, None, 3, 4], "Int64"),
            "flag": [True, False, True, False],
            "text": ["a", None, "b", "c"],
        },
        index=pd.Index(["=x", "y", "z", "w"], name="case_id"),
    )
    assert frame_text(frame) == frame.to_csv(index=False, lineterminator="\n")
    path = tmp_path / "table.csv"
    path.write_text(frame_text(frame, index=True), encoding="utf-8", newline="")
    assert path.read_text(encoding="utf-8").splitlines()[1].startswith("'=x,-1.5,-1,True,a")
    back = read_frame(path)
    assert list(back["case_id"]) == ["=x", "y", "z", "w"]
    assert list(back["number"].replace("", np.nan).astype(float))[:2] == [-1.5, 1 / 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no row"), ("a,b\n1\n", "row 2 has 1 cells, the header 2"), ('a\n"x', "unexpected end of data")],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(csv.Error, match=message):
        read_frame(path)


def test_a_table_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes('\ufeff case_id ,,x\r\n007,NA,"a\r\nb"\r\n\r\n1e5,,nan\r\n'.encode())
    frame = read_frame(path)
    assert list(frame.columns) == ["case_id", "column 2", "x"]
    assert frame.to_numpy().tolist() == [["007", "NA", "a\r\nb"], ["1e5", "", "nan"]]


def test_every_table_is_written_here() -> None:
    bypasses = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        if used & {"to_csv", "DictWriter"} or ("writer" in used and "csv" in _imported(tree)):
            bypasses.append(name)
    assert bypasses == ["csv_tables.py"]


def _imported(tree: ast.Module) -> set[str]:
    return {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}


def test_csv_of_pandas_alone_would_break_at_a_carriage_return() -> None:
    """The reason why frames with one are written cell by cell."""
    frame = pd.DataFrame({"a": ["x\ry"], "b": ["z"]})
    text = frame_text(frame)
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["a", "b"], ["x\ry", "z"]]
