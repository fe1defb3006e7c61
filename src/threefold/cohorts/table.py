"""cases.csv: text to cases and rows to text, with errors that name the row and the column."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

from threefold.cohorts.cohort import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, Case, CohortSpec, columns_of
from threefold.cohorts.reserved_names import column_problem
from threefold.core.targets import DENSE, ClassTarget, MultilabelTarget, NumberTarget, TargetValue
from threefold.csv_tables import table_rows, table_text, table_text_of
from threefold.errors import CohortError, some
from threefold.experiment import Part
from threefold.paths import Boundary, open_file
from threefold.validation import did_you_mean, nearest, sentence

_COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
_IDENTITY = tuple(name for name in REQUIRED_COLUMNS if name != "image")
_PARTS: tuple[str, ...] = get_args(Part)
_LONGEST_ID = 200  # bytes; a case's name becomes the name of its files, which end at 255
_MOST_PROBLEMS = 10

Row = tuple[int, dict[str, str]]
"""Number of a row as a spreadsheet shows it (the header is 1), and its cells by column."""


def read_rows(path: Path, spec: CohortSpec, *, allow_outside: bool = False) -> tuple[Case, ...]:
    """Read the cases of a table.

    Raises:
        CohortError: naming the file, row and column, what was expected and what was found.
    """
    return parse_table(read_text(path), path, spec, allow_outside=allow_outside)


def read_text(path: Path) -> str:
    """Return a table's text (UTF-8, with or without a byte-order mark).

    Raises:
        CohortError: if the file can't be read as text.
    """
    try:
        with open_file(path) as stream:
            return table_text_of(stream.read())  # as text mode would, but for the line breaks in cells
    except csv.Error as error:
        raise CohortError(f"{path}: {error}.") from None
    except OSError as error:
        raise CohortError(f"{path}: can't be read ({error.strerror or error}).") from error


def parse_table(text: str, path: Path, spec: CohortSpec, *, allow_outside: bool = False) -> tuple[Case, ...]:
    """Turn the text of cases.csv into cases; `path` names it in errors and its folder holds the files."""
    header, rows = split_table(text, path)
    _check_header(header, path, spec)
    if not rows:
        raise CohortError(f"{path}: the table is empty: a header and no case. Expected a row for each case.")
    folder = path.parent.absolute()
    boundary = None if allow_outside else Boundary(folder, "the cohort's folder")
    problems: list[str] = []
    cases: list[Case] = []
    first_row: dict[str, int] = {}
    for number, cells in rows:
        found, case = _parse_row(cells, spec, folder, boundary)
        name = cells["case_id"]
        if name and name in first_row:
            found.append(
                f"column case_id: '{name}' is already the case of row {first_row[name]}. Name each case once"
            )
        first_row.setdefault(name, number)
        problems.extend(sentence(f"row {number}, {problem}") for problem in found)
        if case is not None:
            cases.append(case)
    if problems:
        raise CohortError(f"{path}: {_listed(problems)}")
    return tuple(cases)


def format_rows(
    rows: Iterable[Mapping[str, Any]], declared: Sequence[str] = (), images: Sequence[str] = ("image",)
) -> str:
    """Return the text of cases.csv: the known columns that any row fills, then the others as they come.

    `declared` columns, and those that hold the `images`, are there even where no row fills them.
    """
    rows = list(rows)
    used = dict.fromkeys([*(name for row in rows for name in row), *declared])
    filled = {*declared, *(name for row in rows for name, value in row.items() if value is not None)}
    header = [
        *_IDENTITY,
        *images,
        *(name for name in OPTIONAL_COLUMNS if name in filled),
        *(name for name in used if name not in _COLUMNS and name not in images),
    ]
    return table_text([header, *([_cell(row.get(name)) for name in header] for row in rows)])


def split_table(text: str, path: Path) -> tuple[list[str], list[Row]]:
    """Split CSV text into its header and its rows; blank lines are skipped, spaces around cells dropped.

    Raises:
        CohortError: on anything that is not a rectangular table with named columns.
    """
    try:
        records = list(table_rows(text))
    except csv.Error as error:
        raise CohortError(f"{path}: not a valid CSV table ({error}).") from None
    if not records or not any(cell.strip() for cell in records[0]):
        raise CohortError(f"{path}: expected a header in row 1 (case_id,patient_id,...), found none.")
    header = [cell.strip() for cell in records[0]]
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise CohortError(f"{path}: columns must be separated by commas, found '{header[0]}' in row 1.")
    named: set[str] = set()
    for position, name in enumerate(header, start=1):
        if not name:
            raise CohortError(f"{path}: column {position} has no name in row 1.")
        if name in named:
            raise CohortError(f"{path}: two columns are named '{name}'.")
        named.add(name)
    rows: list[Row] = []
    for number, record in enumerate(records[1:], start=2):
        if not record:
            continue
        if len(record) != len(header):
            raise CohortError(
                f"{path}: row {number} has {len(record)} cells; expected {len(header)} as in the header. "
                "A cell that holds a comma must be in quotes."
            )
        rows.append((number, dict(zip(header, (cell.strip() for cell in record), strict=True))))
    return header, rows


def _cell(value: Any) -> str:
    return "" if value is None else value.as_posix() if isinstance(value, Path) else str(value)


def declared_columns(spec: CohortSpec) -> list[str]:
    """Return the columns of the targets that cohort.yaml declares by name."""
    return [column for name, one in spec.targets.items() for column in columns_of(name, one)]


def _check_header(header: Sequence[str], path: Path, spec: CohortSpec) -> None:
    declared = declared_columns(spec)
    required = (*_IDENTITY, *spec.image_columns)
    if "image" in header and "image" not in required:
        raise CohortError(
            f"{path}: column 'image', but cohort.yaml says that the images are in "
            f"{', '.join(spec.image_columns)} (channels). Drop the column, or name it as one of the channels."
        )
    unknown = [name for name in header if name not in (*_COLUMNS, *declared, *spec.image_columns)]
    for problem in filter(None, map(column_problem, unknown)):
        raise CohortError(f"{path}: {problem}.")
    for name in required:
        if name not in header:
            near = nearest(name, unknown)
            hint = f" Rename column '{near}'?" if near else ""
            raise CohortError(
                f"{path}: no column '{name}'. Expected {', '.join(required)}; "
                f"found {', '.join(header)}.{hint}"
            )
    absent = [column for column in (*OPTIONAL_COLUMNS, *declared) if column not in header]
    for name, target in spec.targets.items():
        if not {*columns_of(name, target)} & {*header}:
            near = nearest(columns_of(name, target)[0], unknown)
            hint = f" Rename column '{near}'?" if near else ""
            raise CohortError(
                f"{path}: no column '{columns_of(name, target)[0]}' for the target '{name}' of cohort.yaml; "
                f"found {', '.join(header)}.{hint} Add the column (cells may be empty), or drop the target."
            )
    for name in unknown:
        # A misspelt optional column would silently drop every target that it holds.
        near = next((column for column in absent if _is_misspelt(name.lower(), column)), None)
        if near and name not in spec.columns:
            raise CohortError(
                f"{path}: column '{name}' is not known; did you mean '{near}'? If it is a column of your "
                "own, say what it means under `columns` in cohort.yaml."
            )


def _is_misspelt(name: str, column: str) -> bool:
    """Whether `name` differs from `column` by case, a plural or a letter or two, not by a word."""
    return name == column or sorted(name) == sorted(column) or _within_one_edit(name, column)


def _within_one_edit(a: str, b: str) -> bool:
    short, long = sorted((a, b), key=len)
    if len(long) - len(short) > 1:
        return False
    same = next((i for i, (x, y) in enumerate(zip(short, long, strict=False)) if x != y), len(short))
    return short[same + (len(short) == len(long)) :] == long[same + 1 :]


def _parse_row(
    cells: Mapping[str, str], spec: CohortSpec, folder: Path, boundary: Boundary | None
) -> tuple[list[str], Case | None]:
    """Return the problems of a row, and the case where there are none."""
    problems: list[str] = []
    problems += _name_problems(cells)
    problems += _image_problems(cells, spec)
    targets, found = _read_targets(cells, spec, folder)
    problems += found
    problems += _slice_problems(cells, spec)
    part = cells.get("split", "")
    if part and part not in _PARTS:
        problems.append(f"column split: unknown part '{part}'.{did_you_mean(part, _PARTS)}")
    maps = [name for name, target in spec.all_targets.items() if target.kind in DENSE]
    for column in (*spec.image_columns, *dict.fromkeys(("mask", "structures", *maps)), "reference"):
        problems += _path_problems(column, cells.get(column, ""), boundary)
    if problems:
        return problems, None
    own = {*declared_columns(spec), *spec.image_columns}
    images = [_resolve(folder, cells[column]) if cells[column] else None for column in spec.image_columns]
    return [], Case(
        case_id=cells["case_id"],
        patient_id=cells["patient_id"],
        site=cells["site"],
        image=next(path for path in images if path is not None),
        slice_index=int(cells["slice"].partition(".")[0]) if cells.get("slice") else None,
        targets=targets,
        split=cast(Literal["train", "validation", "test"], part) if part else None,
        reference=_resolve(folder, cells["reference"]) if cells.get("reference") else None,
        extra={name: value for name, value in cells.items() if name not in _COLUMNS and name not in own},
        channels={name: path for name, path in zip(spec.channels, images, strict=False) if path is not None},
    )


def _name_problems(cells: Mapping[str, str]) -> list[str]:
    problems = [f"column {column}: empty" for column in _IDENTITY if not cells[column]]
    problems += [
        f"column {column}: control characters in {value!r}"
        for column, value in cells.items()
        if not value.isprintable() and column in _COLUMNS
    ]
    return problems + case_id_problems(cells["case_id"])


def _image_problems(cells: Mapping[str, str], spec: CohortSpec) -> list[str]:
    empty = [column for column in spec.image_columns if not cells[column]]
    if not spec.channels or len(empty) == len(spec.image_columns):
        return [f"column {column}: empty" for column in empty]
    if spec.missing_channels == "zeros":
        return []
    return [
        f"column {column}: empty. Name the channel's image, or say in cohort.yaml that a channel which is "
        "missing is 0 everywhere (missing_channels: zeros)"
        for column in empty
    ]


def case_id_problems(name: str) -> list[str]:
    """Return why a case's name can't name files, as it must (masks, predictions); empty where it can."""
    problems: list[str] = []
    if "/" in name or "\\" in name or name.startswith("."):
        problems.append(
            f"column case_id: '{name}' can't name a file, as it must: no slashes, no dot in front"
        )
    if len(name.encode(errors="replace")) > _LONGEST_ID:
        problems.append(f"column case_id: longer than {_LONGEST_ID} bytes, too long to name a file")
    return problems


def _read_targets(
    cells: Mapping[str, str], spec: CohortSpec, folder: Path
) -> tuple[dict[str, TargetValue], list[str]]:
    """Return what a row says of each target, and what is wrong with it."""
    problems = _undeclared(cells, spec)
    found: dict[str, TargetValue] = {}
    for name, target in spec.all_targets.items():
        if isinstance(target, MultilabelTarget):
            columns = [target.column(name, finding) for finding in target.classes]
            findings = [_finding(column, cells.get(column, ""), problems) for column in columns]
            if any(finding is not None for finding in findings):
                found[name] = tuple(findings)
            continue
        text = cells.get(name, "")
        if not text:
            continue
        if isinstance(target, ClassTarget):
            if text in target.classes:
                found[name] = target.classes.index(text)
            else:
                problems.append(f"column {name}: {_no_class(text, target.classes)}")
        elif isinstance(target, NumberTarget):
            number = _number(text)
            if number is None:
                problems.append(f"column {name}: expected a number, found '{text}'")
            else:
                found[name] = number
        else:
            found[name] = _resolve(folder, text)
    return found, problems


def _undeclared(cells: Mapping[str, str], spec: CohortSpec) -> list[str]:
    """Return what is said of the short form's targets that cohort.yaml does not declare."""
    problems = []
    if cells.get("label") and "label" not in spec.all_targets:
        problems += [f"column label: {problem}" for problem in label_problems(cells["label"], spec)]
    for column, key in (("mask", "mask"), ("structures", "structures"), ("reference", "structures")):
        if cells.get(column) and key not in spec.all_targets:
            problems.append(
                f"column {column}: a file, but cohort.yaml has no `{key}`, which says what its values mean"
            )
    return problems


def _finding(column: str, text: str, problems: list[str]) -> bool | None:
    """Return whether a finding is there; None where it isn't known. Whole numbers may be written as 1.0."""
    if text in ("", "1", "0", "1.0", "0.0"):
        return None if not text else text[0] == "1"
    problems.append(f"column {column}: expected 1, 0 or nothing, found '{text}'")
    return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def label_problems(label: str, spec: CohortSpec) -> list[str]:
    """Return why a label is no class of a cohort; empty where it is one."""
    if not spec.classes:
        return [f"'{label}', but cohort.yaml names no classes; list them under classes"]
    return [] if label in spec.classes else [_no_class(label, spec.classes)]


def _no_class(label: str, classes: Sequence[str]) -> str:
    return f"'{label}' is not a class of cohort.yaml.{did_you_mean(label, classes)}"


def _slice_problems(cells: Mapping[str, str], spec: CohortSpec) -> list[str]:
    value = cells.get("slice", "")
    if not value:
        return []
    if spec.dimensions != 2:
        return [f"column slice: {value}, but cohort.yaml says that cases are volumes (dimensions: 3)"]
    # Tables saved from a data frame with empty cells hold 3.0 for 3.
    if not re.fullmatch(r"[0-9]{1,9}(\.0*)?", value):
        return [f"column slice: expected a slice number counted from 0, found '{value}'"]
    return []


def _path_problems(column: str, value: str, boundary: Boundary | None) -> list[str]:
    how = boundary.leaves(value) if value and boundary is not None else None
    if how is None:
        return []
    return [f"column {column}: {how}. Copy the file into the folder, or allow it by name (--allow-outside)"]


def _resolve(folder: Path, value: str) -> Path:
    return Path(os.path.normpath(folder / value))


def _listed(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    between = "\n  "
    return f"{len(problems)} problems:{between}{some(problems, _MOST_PROBLEMS, between=between)}"
