"""results.json of a run, a table of predictions or a study: every number, table and picture that was made.

Each command that makes some leaves a part of its own, by name: `evaluate`, `explain`, `probe`, `compare`. A
part has the numbers, each an `Estimate` with whatever further it is about; the tables as they are read, whose
cells name the numbers that they show; and the paths of the pictures. Markdown, CSV and HTML are views of
this. docs/reference/results.md has the format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from threefold.checksums import seal_object, verify_object
from threefold.errors import RunError
from threefold.evaluation.estimate import COLUMNS, Estimate
from threefold.evaluation.groups import GroupKind, Level
from threefold.locks import in_turn
from threefold.reporting.table import Number, Table
from threefold.run import RESULTS_NAME, write_atomically
from threefold.validation import parse_spec, read_json

VERSION = 1


class Entry(NamedTuple):
    """A number, and what it is about beside what an estimate says.

    Attributes:
        estimate: the number.
        about: values by name, of JSON: the column of a probe, the claim of an effect.
    """

    estimate: Estimate
    about: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Part:
    """What one command made.

    Attributes:
        facts: with which settings, and what a reader has to know, by name; values of JSON.
        numbers: every number.
        tables: as they are read.
        pictures: names of PNG files in the folder of figures, without ending, in order.
    """

    facts: Mapping[str, Any]
    numbers: tuple[Entry, ...]
    tables: tuple[Table, ...]
    pictures: tuple[str, ...]


def write_part(folder: Path, name: str, part: Part) -> Path:
    """Put a part into the results of a folder, in the place of an earlier one; return the file's path.

    Others stay as they are. A file that can't be read, or of another version, is replaced.

    Args:
        folder: of a run, an evaluation or a study.
        name: of the command, and of what it was asked beside the usual.
        part: what it made.

    Raises:
        RunError: the disk refuses, or another process does not stop writing the file.
    """
    path, made = folder / RESULTS_NAME, part_json(part)
    with in_turn(path):
        try:
            parts = _read(path)["parts"] if path.is_file() else {}
        except RunError:
            parts = {}
        content = seal_object({"version": VERSION, "parts": {**parts, name: made}})
        # Lines by separators: indenting takes the encoder that is written in Python, four times the time.
        text = json.dumps(content, separators=(",\n", ": "), ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n")
    return path


def read_results(folder: Path) -> Mapping[str, Part]:
    """Return the parts of a folder's results by name; none where there is no file.

    Raises:
        RunError: the file is damaged, or of a later version.
    """
    path = folder / RESULTS_NAME
    if not path.is_file():
        return {}
    found = parse_spec(_Results, _read(path), where=str(path), error=RunError)
    try:
        return {name: _part_of(part) for name, part in found.parts.items()}
    except IndexError:
        raise RunError(f"{path}: a table refers to a missing number. {_AGAIN}") from None


_AGAIN = "Make it again: `threefold evaluate` (and `explain`) of a run, `threefold study compare` of a study."


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds, of this version and as it was written."""
    data = verify_object(read_json(path, RunError, _AGAIN), path, RunError, _AGAIN)
    if data.get("version") != VERSION:
        raise RunError(f"{path}: expected version {VERSION}, found {data.get('version')!r}. {_AGAIN}")
    if not isinstance(data.get("parts"), dict):
        raise RunError(f"{path}: expected parts by name, found {data.get('parts')!r:.40}. {_AGAIN}")
    return data


def part_json(part: Part) -> dict[str, Any]:
    """Return a part as plain data; what is not finite is null."""
    known = {id(entry.estimate): number for number, entry in enumerate(part.numbers)}
    numbers = [_entry_json(entry) for entry in part.numbers]
    tables = []
    for table in part.tables:
        for each in (cell for row in table.rows for cell in row if isinstance(cell, Number)):
            if id(each.estimate) not in known:
                known[id(each.estimate)] = len(numbers)
                numbers.append(_entry_json(Entry(each.estimate)))
        tables.append(
            {
                "name": table.name,
                "title": table.title,
                "columns": list(table.columns),
                "rows": [[_cell_json(cell, known) for cell in row] for row in table.rows],
                "notes": list(table.notes),
            }
        )
    return {
        "facts": plain_value(part.facts),
        "numbers": numbers,
        "tables": tables,
        "pictures": [f"figures/{name}.png" for name in part.pictures],
    }


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate as plain data; null for a value or an interval that is not estimable."""
    return {field.name: plain_value(getattr(estimate, field.name)) for field in fields(estimate)}


def plain_value(value: Any) -> Any:
    """Return a value for JSON, which has no NaN: None for what is not finite, inside lists and dicts too."""
    if isinstance(value, Mapping):
        return {key: plain_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def frame_of(entries: Iterable[Entry]) -> pd.DataFrame:
    """Return numbers as a long table, a row each: what they are about, then what an estimate says."""
    rows = [{**entry.about, **entry.estimate.record()} for entry in entries]
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*COLUMNS])
    return frame.astype({"positives": "Int64"})


def pictures_of(files: Iterable[Path]) -> tuple[str, ...]:
    """Return the names of the pictures among some files."""
    return tuple(path.stem for path in files if path.suffix == ".png")


def _entry_json(entry: Entry) -> dict[str, Any]:
    about = {"about": plain_value(entry.about)} if entry.about else {}
    return about | estimate_json(entry.estimate)


def _cell_json(cell: str, known: Mapping[int, int]) -> str | dict[str, Any]:
    if not isinstance(cell, Number):
        return cell
    parts = {"before": cell.before, "value": cell.value, "interval": cell.interval, "count": cell.count_text}
    return {"number": known[id(cell.estimate)]} | {name: text for name, text in parts.items() if text}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Number(_Model):
    about: dict[str, Any] = Field(default_factory=dict)
    level: Level
    group_kind: GroupKind
    group: str
    metric: str
    class_name: str
    value: float | None
    interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    n: int
    patients: int
    positives: int | None
    replicates_missing: int
    why: str
    remark: str
    leaks: bool


class _Cell(_Model):
    number: Annotated[int, Field(ge=0)]
    before: str = ""
    value: str = ""
    interval: str = ""
    count: str = ""


class _Table(_Model):
    name: str
    title: str
    columns: list[str]
    rows: list[list[str | _Cell]]
    notes: list[str]


class _Part(_Model):
    facts: dict[str, Any]
    numbers: list[_Number]
    tables: list[_Table]
    pictures: list[Annotated[str, Field(pattern=r"^figures/[^/\\]+\.png$")]]


class _Results(_Model):
    version: Literal[1]
    parts: dict[str, _Part]


def _part_of(part: _Part) -> Part:
    numbers = tuple(_entry_of(number) for number in part.numbers)
    return Part(
        facts=part.facts,
        numbers=numbers,
        tables=tuple(_table_of(table, numbers) for table in part.tables),
        pictures=tuple(Path(picture).stem for picture in part.pictures),
    )


def _entry_of(number: _Number) -> Entry:
    given = {name: getattr(number, name) for name in _Number.model_fields if name != "about"}
    value = math.nan if number.value is None else number.value
    interval = None if number.interval is None else (number.interval[0], number.interval[1])
    return Entry(Estimate(**{**given, "value": value, "interval": interval}), number.about)


def _table_of(table: _Table, numbers: Sequence[Entry]) -> Table:
    return Table(
        title=table.title,
        columns=tuple(table.columns),
        rows=tuple(tuple(_cell_of(cell, numbers) for cell in row) for row in table.rows),
        notes=tuple(table.notes),
        name=table.name,
    )


def _cell_of(cell: str | _Cell, numbers: Sequence[Entry]) -> str:
    if isinstance(cell, str):
        return cell
    return Number(numbers[cell.number].estimate, cell.value, cell.interval, cell.count, cell.before)
