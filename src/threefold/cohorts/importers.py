"""Make a cohort of what people have: a table and the files that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from threefold.cohorts.cohort import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    UNKNOWN,
    Cohort,
    CohortSpec,
    columns_of,
)
from threefold.cohorts.repairs import NO_REPAIRS, Repairs, repair_case
from threefold.cohorts.staging import Staging, ending, file_columns, finished, staging
from threefold.cohorts.table import read_text, split_table
from threefold.errors import CohortError, ImageError
from threefold.images.reading import read_image
from threefold.images.writing import label_map_suffix, write_label_map
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
    unknown: Sequence[Literal["patient", "site"]] = (),
    empty_masks_for: Sequence[str] = (),
    repairs: Repairs = NO_REPAIRS,
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
        unknown: what the table does not tell. Without patients each case counts as one person, without sites
            all are at the site `unknown`; cohort.yaml, `check` and every number of a run say so.
        empty_masks_for: classes whose cases without a mask have nothing to find: they get an empty one.
        repairs: what may be changed of files; provenance.json tells what was, case by case.
        copy: copy the files; else the table refers to them where they are, outside the cohort's folder.
        allow_outside: take files that lie outside the table's folder.
        progress: called with the number of cases done and of all.

    Returns:
        The cohort; rows whose files can't be used are left out, which provenance.json says.

    Raises:
        CohortError: naming file, row and column, if a column is missing, a row is not valid, or no row has
            files that can be used; `empty_masks_for` names a class or needs a mask that cohort.yaml does
            not have; repairs are asked for and files are not copied.
    """
    columns, constants = dict(columns or {}), dict(constants or {})
    table = Path(table)
    _check_requests(spec, empty_masks_for, repairs, copy=copy)
    unknown = tuple(dict.fromkeys((*spec.unknown, *unknown)))
    spec = spec.model_copy(update={"unknown": unknown})
    if "site" in unknown:
        constants["site"] = UNKNOWN
    header, records = split_table(read_text(table), table)
    _check_columns(table, header, columns, constants, spec)
    label_maps = [column for column in file_columns(spec) if column != "image"]
    repaired: dict[str, list[str]] = {}
    rows: list[dict[str, Any]] = []
    with staging(out, None if allow_outside else table.parent) as stage:
        for count, (number, cells) in enumerate(records, start=1):
            row = _renamed(cells, columns, constants)
            if labels and row.get("label") in labels:
                row["label"] = labels[row["label"]]
            row["case_id"] = row.get("case_id") or _name_of(row, spec)
            if "patient" in unknown:
                row["patient_id"] = row["case_id"]
            with stage.sparing(row["case_id"] or f"row {number}"):
                done = _repaired(stage, row, label_maps, table, spec, repairs)
                if row.get("label") in empty_masks_for and not row.get("mask"):
                    done += _empty_mask(stage, row, table, spec)
                _place_files(stage, row, file_columns(spec), table, number, copy=copy)
                rows.append(row)
                if done:
                    repaired[row["case_id"]] = done
            if progress is not None:
                progress(count, len(records))
        provenance = {"made by": "import table", "table": table.name, "columns": columns, "copied": copy}
        provenance |= {"repaired": repaired} if repaired else {}
        spec = stage.place_atlases(spec, table.parent, copy=copy)
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _check_requests(
    spec: CohortSpec, empty_masks_for: Sequence[str], repairs: Repairs, *, copy: bool
) -> None:
    if (repairs or empty_masks_for) and not copy:
        raise CohortError("repaired files and empty masks are new files: leave --reference off.")
    if empty_masks_for and spec.mask is None:
        raise CohortError("--empty-masks-for: cohort.yaml has no mask. Add its name and values.")
    for name in empty_masks_for:
        if name not in spec.classes:
            raise CohortError(f"--empty-masks-for: no class '{name}'.{did_you_mean(name, spec.classes)}")


def _repaired(
    stage: Staging,
    row: dict[str, Any],
    label_maps: Sequence[str],
    table: Path,
    spec: CohortSpec,
    repairs: Repairs,
) -> list[str]:
    """Repair a case's files where that is asked for; return what was done."""
    if not repairs or not row["case_id"] or not row.get("image"):
        return []
    return repair_case(stage, row, table.parent, label_maps, spec, repairs)


def _empty_mask(stage: Staging, row: dict[str, Any], table: Path, spec: CohortSpec) -> list[str]:
    """Write a mask that says that there is nothing to find."""
    index = int(row["slice"]) if row.get("slice") else None
    home = stage.folder if isinstance(row["image"], Path) else table.parent  # made just now, or the table's
    image = read_image(home / row["image"], slice_index=index, spacing=spec.spacing)
    row["mask"] = stage.new_file("mask", row["case_id"], label_map_suffix(image))
    write_label_map(stage.folder / row["mask"], np.zeros(image.array.shape, np.uint8), image)
    return [f"empty mask: the label is {row['label']}"]


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
        told = name in constants or name.removesuffix("_id") in spec.unknown
        if name != "case_id" and columns.get(name, name) not in header and not told:
            else_ways = (
                f", give one value for all (--constant {name}=VALUE), or say that it is not known (--unknown "
                f"{name.removesuffix('_id')})"
            )
            raise CohortError(
                f"{table}: no column for {name}; found {', '.join(header)}. Say which one it is "
                f"(--column {name}=NAME){'' if name in spec.image_columns else else_ways}."
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
        if not row.get(column) or isinstance(row[column], Path):  # none, or made just now
            continue
        try:
            row[column] = stage.place(table.parent / row[column], column, row["case_id"], copy=copy)
        except (CohortError, ImageError) as error:
            raise type(error)(f"{table}: row {number}, column {column}: {error}") from error
