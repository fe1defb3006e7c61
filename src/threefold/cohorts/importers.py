"""Make cohorts of what people have: a table and files, a DICOM series.

Each importer writes a new folder that appears when it is whole, with a `provenance.json` that says where the
cases come from and what was assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from threefold.cohorts.cohort import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    Cohort,
    CohortSpec,
)
from threefold.cohorts.staging import FOLDERS, Staging, check_case_id, ending, finished, staging
from threefold.cohorts.table import label_problems, read_text, split_table
from threefold.errors import CohortError, ImageError
from threefold.images.reading import read_image
from threefold.images.writing import write_nifti
from threefold.validation import did_you_mean, sentence

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
    _check_columns(table, header, columns, constants)
    rows: list[dict[str, Any]] = []
    with staging(out, None if allow_outside else table.parent) as stage:
        for done, (number, cells) in enumerate(records, start=1):
            row = _renamed(cells, columns, constants)
            if labels and row.get("label") in labels:
                row["label"] = labels[row["label"]]
            row["case_id"] = row.get("case_id") or _name_of(row)
            with stage.sparing(row["case_id"] or f"row {number}"):
                _place_files(stage, row, table, number, copy=copy)
                rows.append(row)
            if progress is not None:
                progress(done, len(records))
        provenance = {"made by": "import table", "table": table.name, "columns": columns, "copied": copy}
        spec = stage.place_atlases(spec, table.parent, copy=copy)
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def import_dicom(
    folder: Path,
    out: Path,
    *,
    spec: CohortSpec,
    site: str,
    patient_id: str,
    label: str | None = None,
    uneven: Literal["refuse", "resample", "keep"] = "refuse",
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of one DICOM series: a case for each slice, or one volume (`spec.dimensions`).

    Args:
        folder: holds one series.
        out: the new folder, with NIfTI files in the series' own units (HU for CT).
        spec: what the columns will mean.
        site, patient_id: of the series; names in DICOM headers are not taken over.
        label: class name of every slice; None: unknown.
        uneven: a series with uneven or tilted slices is refused; resampled onto an even, upright grid; or
            (slices only) kept as scanned, each slice on its own plane, which changes no voxel.
        progress: called with the number of cases done and of all.

    Raises:
        CohortError: if the combination is not possible, the label is no class of `spec`, or `out` exists.
        ImageError: if the folder is not one complete series.
    """
    if spec.dimensions == 3 and uneven == "keep":
        raise CohortError(
            f"{folder}: a volume can't keep uneven slices; resample them (--uneven resample), or make a "
            "cohort of slices (dimensions: 2)."
        )
    for problem in label_problems(label, spec) if label is not None else ():
        raise CohortError(sentence(f"label: {problem}"))
    name = f"{site}-{patient_id}"
    check_case_id(name)
    notes: dict[str, list[str]] = {}
    rows: list[dict[str, Any]] = []
    with staging(out) as stage:
        (stage.folder / "images").mkdir()
        for index, total, image in _dicom_images(Path(folder), spec.dimensions, uneven):
            case_id = name if spec.dimensions == 3 else f"{name}-{index:03d}"
            target = Path("images") / f"{case_id}.nii.gz"
            write_nifti(stage.folder / target, image.array, image.affine)
            rows.append(
                {
                    "case_id": case_id,
                    "patient_id": patient_id,
                    "site": site,
                    "image": target,
                    "label": label,
                    "origin": image.source.name,
                }
            )
            for note in image.notes:
                notes.setdefault(note, []).append(case_id)
            if progress is not None:
                progress(index + 1, total)
        columns = {**spec.columns, "origin": "the file or folder that the case was made of"}
        provenance = {"made by": "import dicom", "uneven": uneven, "notes": notes}
        stage.finish(spec.model_copy(update={"columns": columns}), rows, provenance, allow_outside=False)
    return finished(out, allow_outside=False)


def _check_columns(
    table: Path, header: Sequence[str], columns: Mapping[str, str], constants: Mapping[str, str]
) -> None:
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    for name in (*columns, *constants):
        if name not in known:
            raise CohortError(f"{table}: '{name}' is no column of cases.csv.{did_you_mean(name, known)}")
    for name, own in columns.items():
        if own not in header:
            raise CohortError(f"{table}: no column '{own}' for {name}.{did_you_mean(own, header)}")
    for name in REQUIRED_COLUMNS:
        if name != "case_id" and columns.get(name, name) not in header and name not in constants:
            raise CohortError(
                f"{table}: no column for {name}; found {', '.join(header)}. Say which one it is "
                f"(--column {name}=NAME)"
                + ("." if name == "image" else f", or give one value for all (--constant {name}=VALUE).")
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


def _name_of(row: Mapping[str, Any]) -> str | None:
    if not row.get("image"):
        return None
    path = Path(row["image"])
    name = path.name.removesuffix(ending(path)) or path.name
    return f"{name}-{row['slice']}" if row.get("slice") else name


def _place_files(stage: Staging, row: dict[str, Any], table: Path, number: int, *, copy: bool) -> None:
    if row["case_id"] is None:
        return  # the table says so, of all such rows
    for column in FOLDERS:
        if not row.get(column):
            continue
        try:
            row[column] = stage.place(table.parent / row[column], column, row["case_id"], copy=copy)
        except (CohortError, ImageError) as error:
            raise type(error)(f"{table}: row {number}, column {column}: {error}") from error


def _dicom_images(folder: Path, dimensions: int, uneven: str) -> Iterator[tuple[int, int, Any]]:
    """Yield index, number of cases, and Image, in the order of the slices along their normal."""
    from threefold.images.dicom import open_series, read_file
    from threefold.images.geometry import slice_affine

    if uneven == "keep":
        series = open_series(folder)
        for index, one in enumerate(series.slices):
            image = read_file(one.path)
            how = f"kept as scanned: distances {series.distances()}, tilt {series.tilt:.1f} degrees"
            notes = (*image.notes, how)
            yield index, len(series.slices), replace(image, notes=notes)
        return
    volume = read_image(folder, uneven="resample" if uneven == "resample" else "refuse")
    if dimensions == 3:
        yield 0, 1, volume
        return
    slices = volume.array.shape[2]
    for index in range(slices):
        affine = slice_affine(volume.affine, index)
        array = np.ascontiguousarray(volume.array[..., index])
        yield index, slices, replace(volume, array=array, affine=affine)
