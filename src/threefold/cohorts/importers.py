"""Make a cohort of what people have: a table and the files that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    Cohort,
    CohortSpec,
    columns_of,
)
from threefold.cohorts.staging import Staging, ending, file_columns, finished, staging
from threefold.cohorts.table import read_text, split_table
from threefold.errors import CohortError, ImageError
from threefold.validation import did_you_mean

Progress = Callable[[int, int], None]


def import_table(
    table: Path,
    out: Path,
    spec: CohortSpec,
    *,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    copy: bool = True,
    allow_outside: bool = False,
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of a CSV and the files that it names.

    Args:
        table: CSV with a header; its paths are relative to its folder.
        out: the new folder.
        spec: what the columns mean; the paths of its atlases are relative to the table's folder.
        columns: the table's own name of a column of cases.csv, for example `{"image": "file"}`; a column
            that is not named here has the same name in both. Columns that are no column of cases.csv are
            kept as they are. Without a case_id the image's file name (and slice) is taken.
        constants: columns that the table lacks and that are the same for all, for example
            `{"site": "north"}`.
        labels: class name by the table's own value, for example `{"1": "haemorrhage"}`.
        copy: copy the files; else the table refers to them where they are, outside the cohort's folder.
        allow_outside: take files that lie outside the table's folder.
        progress: called with the number of cases done and of all.

    Returns:
        The cohort; rows whose files can't be used are left out, which provenance.json says.

    Raises:
        CohortError: naming file, row and column, if a column is missing, a row is not valid, or no row has
            files that can be used.
    """
    columns, constants = dict(columns or {}), dict(constants or {})
    table = Path(table)
    header, records = split_table(read_text(table), table)
    _check_columns(table, header, columns, constants, spec)
    rows: list[dict[str, Any]] = []
    with staging(out, None if allow_outside else table.parent) as stage:
        for done, (number, cells) in enumerate(records, start=1):
            row = _renamed(cells, columns, constants)
            if labels and row.get("label") in labels:
                row["label"] = labels[row["label"]]
            row["case_id"] = row.get("case_id") or _name_of(row, spec)
            with stage.sparing(row["case_id"] or f"row {number}"):
                _place_files(stage, row, file_columns(spec), table, number, copy=copy)
                rows.append(row)
            if progress is not None:
                progress(done, len(records))
        provenance = {"made by": "import table", "table": table.name, "columns": columns, "copied": copy}
        spec = stage.place_atlases(spec, table.parent, copy=copy)
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _check_columns(
    table: Path,
    header: Sequence[str],
    columns: Mapping[str, str],
    constants: Mapping[str, str],
    spec: CohortSpec,
) -> None:
    targets = [column for name, target in spec.targets.items() for column in columns_of(name, target)]
    required = (*(name for name in REQUIRED_COLUMNS if name != "image"), *spec.image_columns)
    known = (*required, *OPTIONAL_COLUMNS, *targets)
    for name in (*columns, *constants):
        if name not in known:
            raise CohortError(f"{table}: '{name}' is no column of cases.csv.{did_you_mean(name, known)}")
    for name, own in columns.items():
        if own not in header:
            raise CohortError(f"{table}: no column '{own}' for {name}.{did_you_mean(own, header)}")
    for name in required:
        if name != "case_id" and columns.get(name, name) not in header and name not in constants:
            raise CohortError(
                f"{table}: no column for {name}; found {', '.join(header)}. Say which one it is "
                f"(--column {name}=NAME)"
                + (
                    "."
                    if name in spec.image_columns
                    else f", or give one value for all (--constant {name}=VALUE)."
                )
            )


def _renamed(
    cells: Mapping[str, str], columns: Mapping[str, str], constants: Mapping[str, str]
) -> dict[str, Any]:
    used = set(columns.values())
    row: dict[str, Any] = {name: value for name, value in cells.items() if name not in used}
    row.update({name: cells[own] for name, own in columns.items()})
    row.update(constants)
    return {
        name: (value or None) if name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) else value
        for name, value in row.items()
    }


def _name_of(row: Mapping[str, Any], spec: CohortSpec) -> str | None:
    named = [row[column] for column in spec.image_columns if row.get(column)]
    if not named:
        return None
    path = Path(named[0])
    name = path.name.removesuffix(ending(path)) or path.name
    return f"{name}-{row['slice']}" if row.get("slice") else name


def _place_files(
    stage: Staging, row: dict[str, Any], columns: Sequence[str], table: Path, number: int, *, copy: bool
) -> None:
    if row["case_id"] is None:
        return  # the table says so, of all such rows
    for column in columns:
        if not row.get(column):
            continue
        try:
            row[column] = stage.place(table.parent / row[column], column, row["case_id"], copy=copy)
        except (CohortError, ImageError) as error:
            raise type(error)(f"{table}: row {number}, column {column}: {error}") from error
