"""CSV tables: written and read in this one place, so that a cell comes back as it was.

Spreadsheets run a cell that begins with = + - @ (full-width ones too), a tab or a line break, also after
quotes and spaces, as a formula. Such a cell is written with an apostrophe in front, which reading takes off
again; one that has an apostrophe of its own before such a beginning gets a second one, so that nothing is
lost. Numbers, also negative ones and several in a cell, stay as they are.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threefold.paths import open_file

if TYPE_CHECKING:
    import pandas as pd

MOST_COLUMNS = 100_000
"""Of a table; tables with a column a voxel, or with cases as columns, are none of this program's."""

_RUNS = re.compile(r"""[\s'"\ufeff]*(?:[=+\-@＝＋－＠]|[\t\r\n])""")
_NUMBER = r"(?:[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf)"
_NUMBERS = re.compile(f"{_NUMBER}(?: {_NUMBER})*", re.ASCII)


def escape_cell(cell: str) -> str:
    """Return a cell as it is written: with an apostrophe in front where a spreadsheet would run it."""
    return f"'{cell}" if _would_run(cell) else cell


def unescape_cell(cell: str) -> str:
    """Return what a cell was before `escape_cell`."""
    return cell[1:] if cell[:1] == "'" and _would_run(cell[1:]) else cell


def _would_run(cell: str) -> bool:
    return bool(cell) and not cell[0].isalnum() and bool(_RUNS.match(cell)) and not _NUMBERS.fullmatch(cell)


def table_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows, the header first, as CSV text.

    Args:
        rows: of cells; None is an empty one.
    """
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")  # so that both of a cell's line breaks get quotes
    for row in rows:
        writer.writerow([escape_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return "".join(lines.text)


def frame_text(frame: pd.DataFrame, *, index: bool = False) -> str:
    """Return a data frame as CSV text; NaN and None are empty cells.

    Args:
        frame: its header is the names of its columns.
        index: whether the index is the first column, under its own name.
    """
    import pandas as pd

    table = frame.reset_index(drop=not index)
    columns: dict[int, Any] = {}
    returns = False
    for position, kind in enumerate(table.dtypes):
        columns[position] = table.iloc[:, position]
        if kind.kind not in "biufc":
            cells = [
                escape_cell(cell) if isinstance(cell, str) else cell for cell in columns[position].tolist()
            ]
            returns = returns or any("\r" in cell for cell in cells if isinstance(cell, str))
            columns[position] = pd.Series(cells, dtype=object)
    escaped = pd.DataFrame(columns)
    header = table_text([[str(name) for name in table.columns]])
    if returns:
        return header + _quoted(escaped)
    return header + escaped.to_csv(index=False, header=False, lineterminator="\n")


def _quoted(frame: pd.DataFrame) -> str:
    """Return the body of a frame whose cells hold carriage returns, which pandas leaves without quotes."""
    body = frame.to_csv(index=False, header=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
    lines = _Lines()
    csv.writer(lines, lineterminator="\r\n").writerows(csv.reader(io.StringIO(body, newline="")))
    return "".join(lines.text)


def table_text_of(data: bytes) -> str:
    """Return the text of a CSV file (UTF-8, with or without a byte-order mark).

    Raises:
        csv.Error: it is in another encoding.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or 4 * data.count(0) > len(data) > 1:
        raise csv.Error("not UTF-8 text but UTF-16; save the table as 'CSV UTF-8'")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise csv.Error(
            f"not UTF-8 text (byte {error.start}, in row {row}; Latin-1?); save the table as 'CSV UTF-8'"
        ) from None


def table_rows(text: str) -> Iterator[list[str]]:
    """Yield the rows of CSV text, the header first; an empty line is an empty row.

    Raises:
        csv.Error: while it is read, if the text is no CSV, or has more columns than any table.
    """
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    for number, row in enumerate(rows):
        if number == 0 and len(row) > MOST_COLUMNS:
            raise csv.Error(f"{len(row)} columns; expected at most {MOST_COLUMNS}. Is it transposed?")
        yield [unescape_cell(cell) if cell[:1] == "'" else cell for cell in row]


def read_frame(path: Path) -> pd.DataFrame:
    """Return a CSV file (UTF-8, with or without a byte-order mark) as a data frame of text.

    Nothing is guessed: '007', 'NA' and '1e5' stay as they are. Empty lines are left out, spaces around the
    names of columns dropped; a column without a name is `column N`.

    Raises:
        FileNotFoundError: there is none.
        OSError: it can't be read.
        csv.Error: it is no text, no CSV, or a row has more cells or fewer than the header.
    """
    import pandas as pd

    with open_file(path) as stream:
        rows = [row for row in table_rows(table_text_of(stream.read())) if row]
    if not rows:
        raise csv.Error("there is no row in it")
    header = [name.strip() or f"column {number}" for number, name in enumerate(rows[0], start=1)]
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise csv.Error(f"row {number} has {len(row)} cells, the header {len(header)}")
    return pd.DataFrame(rows[1:], columns=header, dtype=object)


def as_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame of text as float64; empty cells are NaN.

    Raises:
        ValueError: a cell is no number.
    """
    return frame.replace("", float("nan")).astype("float64")


class _Lines:
    """A file that a CSV writer writes a row at a time, whose rows then end in a line feed."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def write(self, line: str) -> Any:
        """Take a row that ends in carriage return and line feed."""
        self.text.append(f"{line[:-2]}\n")
