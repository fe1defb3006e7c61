"""The table of predictions: one row a case, and all that evaluation knows.

Columns (CSV, UTF-8; an empty cell means absent; further columns are kept):

  case_id                   unique
  patient_id                the cluster of the bootstrap; without the column each case is its own patient
  site, site_group          hospital or scanner, and its group (for example internal, external)
  part                      train, validation or test; without the column every case is a test case
  label                     name of the true class
  probability_<class>       one column a class, each 0..1, together 1
  mask_truth_voxels         voxels of the true mask; empty where there is none
  mask_predicted_voxels     voxels of the predicted mask
  mask_overlap_voxels       voxels in both; empty where there is no true mask
  psnr, ssim                of the reconstruction (dB; -1..1)
  graph_edits, arch, topology_class, agrees: of the topology (`inference.structures`); may be left out
  mask_volume, mask_truth_volume   of the predicted and of the true mask, in mask_volume_unit: mL; of a slice
                            mm2; voxels or px where the image states no spacing
  calibrated_probability_<class>, prediction_set, mask_volume_low, mask_volume_high: what the validation cases
                            say of the prediction (`inference.calibration`); may be left out
  out_of_distribution       yes or no: whether the image is unlike the training images
                            (`inference.out_of_distribution`); empty: not known; may be left out
  not_measured              what could not be measured of the case, and why; the cells of it are empty

Where a network answers several questions of a kind, or gives findings or numbers, their columns begin with
the task's name and a dot (`evaluation.task_tables`).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.checksums import verify_table, write_table
from threefold.csv_tables import frame_text, read_frame
from threefold.errors import PredictionsError
from threefold.validation import did_you_mean

PARTS = ("train", "validation", "test")
TEXT_COLUMNS = ("case_id", "patient_id", "site", "site_group", "part", "label")
MASK_COLUMNS = ("mask_truth_voxels", "mask_predicted_voxels", "mask_overlap_voxels")
RECONSTRUCTION_COLUMNS = ("psnr", "ssim")
TOPOLOGY_COLUMNS = ("graph_edits", "arch", "topology_class", "agrees")
NUMBER_COLUMNS = ("truth", "predicted")
"""Of a table of a task of numbers."""
PROBABILITY_PREFIX = "probability_"
CALIBRATED_PREFIX = "calibrated_probability_"
PREDICTION_SET = "prediction_set"
SET_SEPARATOR = " | "
"""Between the classes of a prediction set."""
VOLUME_COLUMNS = ("mask_volume", "mask_truth_volume", "mask_volume_unit")
VOLUME_INTERVAL = ("mask_volume_low", "mask_volume_high")
OUT_OF_DISTRIBUTION = "out_of_distribution"
TRUST_COLUMNS = (PREDICTION_SET, *VOLUME_COLUMNS, *VOLUME_INTERVAL, OUT_OF_DISTRIBUTION)
"""What is said of how far a prediction can be trusted; any of them may be left out."""
NOT_MEASURED = "not_measured"

CHANGED = (
    "Where you changed it on purpose, delete the checksum and repeat the command; else copy both files "
    "again, or make a run's own anew with `threefold finish RUN`."
)
"""What to do with a table that is not what was written."""

# Room for probabilities that were printed with three digits or computed in bf16.
SUM_TOLERANCE = 5e-3


@dataclass(frozen=True)
class Predictions:
    """A valid table of predictions.

    Attributes:
        table: every column of the module's schema (absent ones filled with empty text or NaN), plus the
            source's own further columns; in the source's order.
        classes: class names, in the order of the probability columns; empty without classification.
        positive: of two classes, the one that sensitivity is about; None otherwise.
        leaks: the same patients are in the training and the test part, by the split's kind or as seen here.
        notes: what was assumed in place of absent columns, in sentences.
        structures: the table of structures (`threefold.evaluation.structures`) of its cases; None: none.
        left_out: why cases that were asked for are not in the table, by id.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    positive: str | None
    leaks: bool = False
    notes: tuple[str, ...] = ()
    structures: pd.DataFrame | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def part(self, name: str) -> pd.DataFrame:
        """Return the rows of one part."""
        return self.table[self.table["part"] == name]

    def schema_part(self, name: str, *further: str) -> pd.DataFrame:
        """Return the rows of one part, of thousands of further columns those alone that are named."""
        always = (
            *TEXT_COLUMNS,
            *map(probability_column, self.classes),
            *MASK_COLUMNS,
            *RECONSTRUCTION_COLUMNS,
        )
        calibrated = (f"{CALIBRATED_PREFIX}{name}" for name in self.classes)
        may_be = (*TOPOLOGY_COLUMNS, *NUMBER_COLUMNS, *TRUST_COLUMNS, *calibrated, *further)
        there = [column for column in may_be if column in self.table]
        return self.table.loc[self.table["part"] == name, list(dict.fromkeys([*always, *there]))]

    @cached_property
    def has_labels(self) -> bool:
        """Whether any case has one; each group's numbers ask."""
        return bool((self.table["label"] != "").any())

    @property
    def positive_index(self) -> int | None:
        """Index of the positive class; None for any but two classes."""
        return None if self.positive is None else self.classes.index(self.positive)


def probability_column(class_name: str) -> str:
    """Return the name of a class's column."""
    return PROBABILITY_PREFIX + class_name


def read_predictions(
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    positive: str | None = None,
    leaks: bool = False,
) -> Predictions:
    """Read and validate a table of predictions.

    Args:
        path: CSV file.
        classes: class names in order; None: those of the probability columns.
        positive: of two classes, the positive one; None: the last.
        leaks: the split shares patients between parts.

    Raises:
        PredictionsError: naming the file, column, case, what was expected and what was found.
    """
    verify_table(path, PredictionsError, CHANGED)
    try:
        table = read_frame(path)
    except FileNotFoundError:
        raise PredictionsError(f"{path}: no such file. Expected a table of predictions (CSV).") from None
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise PredictionsError(
            f"{path}: not a readable CSV table ({problem}). Expected one row a case under a header with "
            "case_id and probability_<class> or mask_* columns."
        ) from None
    return validate(table, source=str(path), classes=classes, positive=positive, leaks=leaks)


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write a table of predictions (CSV) in one step, and its checksum beside it."""
    widened = table.astype(dict.fromkeys(table.select_dtypes(np.floating).columns, np.float64))
    write_table(path, frame_text(widened))


def validate(
    table: pd.DataFrame,
    *,
    source: str = "predictions",
    classes: Sequence[str] | None = None,
    positive: str | None = None,
    leaks: bool = False,
) -> Predictions:
    """Return a table as `Predictions`, or say what is wrong with it.

    Args:
        table: the columns of the module's schema; only case_id and one of probabilities with label, masks
            or reconstruction are needed.
        source: names the table in errors.
        classes, positive, leaks: as for `read_predictions`.

    Raises:
        PredictionsError: naming the column, the case, what was expected and what was found.
    """
    _check_columns(table, source)
    notes: list[str] = []
    clean = table.copy().reset_index(drop=True)
    for name in TEXT_COLUMNS:
        clean[name] = _text(table[name]) if name in table else ""
    _check_case_ids(clean, source)
    if not (clean["patient_id"] != "").all():
        absent = clean["patient_id"] == ""
        clean.loc[absent, "patient_id"] = "case " + clean.loc[absent, "case_id"]
        notes.append(
            f"{int(absent.sum())} of {len(clean)} cases name no patient: each counts as a patient of its "
            "own, so intervals are too narrow if some share one."
        )
    if "part" not in table:
        clean["part"] = "test"
        notes.append("The table names no part: every case counts as a test case.")
    _check_choice(clean, "part", PARTS, source)

    names = _class_names(table, classes, source)
    for name in names:
        column = probability_column(name)
        clean[column] = _numbers(clean, column, source)
    _check_probabilities(clean, names, source)
    if names:
        _check_choice(clean, "label", ("", *names), source)
    for name in (*MASK_COLUMNS, *RECONSTRUCTION_COLUMNS):
        clean[name] = _numbers(clean, name, source) if name in table else np.nan
    _check_masks(clean, source)
    _check_reconstruction(clean, source)

    if positive is not None and positive not in names:
        raise PredictionsError(
            f"{source}: the positive class is '{positive}', which is not one of {', '.join(names) or 'none'}."
        )
    if positive is not None and len(names) != 2:
        raise PredictionsError(
            f"{source}: a positive class is named ('{positive}'), but there are {len(names)} classes "
            f"({', '.join(names)}): only of two can one be the positive. Leave it out."
        )
    straddling = _patients_at_several_sites(clean)
    if straddling:
        notes.append(
            f"{len(straddling)} patients (for example {straddling[0]}) are at several sites: each counts as "
            "one patient. Where they are different people, put the site into patient_id."
        )
    if NOT_MEASURED in clean:
        clean[NOT_MEASURED] = _text(table[NOT_MEASURED])
        failed = clean[clean[NOT_MEASURED] != ""]
        if len(failed):
            first = f"{failed['case_id'].iloc[0]}: {failed[NOT_MEASURED].iloc[0]}"
            notes.append(f"{len(failed)} cases could not be measured whole (first {first}).")
    shared = _patients_on_both_sides(clean)
    if shared and not leaks:
        notes.append(
            f"{len(shared)} patients (for example {shared[0]}) are in the test part and in another part of "
            "this table: the split leaks patients."
        )
    return Predictions(
        table=clean,
        classes=names,
        positive=(positive or names[-1]) if len(names) == 2 else None,
        leaks=leaks or bool(shared),
        notes=tuple(notes),
    )


def _text(column: pd.Series[Any]) -> pd.Series[str]:
    return pd.Series(_cells(column), dtype=str)


def _cells(column: pd.Series[Any]) -> list[str]:
    cells = column.to_numpy(object)
    try:
        return [*map(str.strip, cells)]  # a file's are text, most often hundreds of thousands
    except TypeError:
        # By Python's str: pandas' own would decode bytes, and fail.
        return [
            str(cell).strip() if is_there else ""
            for cell, is_there in zip(cells, column.notna(), strict=True)
        ]


def _numbers(table: pd.DataFrame, name: str, source: str) -> pd.Series[float]:
    column = table[name]
    if pd.api.types.is_float_dtype(column) or pd.api.types.is_integer_dtype(column):
        return pd.Series(column.to_numpy(np.float64, na_value=np.nan))
    cells = _cells(column)
    given = pd.Series([cell or None for cell in cells], dtype=object)
    numbers = pd.to_numeric(given, errors="coerce").astype(np.float64)
    wrong = numbers.isna() & given.notna()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise _at(table, row, name, source, "a number or an empty cell", f"'{cells[row]}'")
    return numbers


def _at(
    table: pd.DataFrame, row: int, column: str, source: str, expected: str, found: str
) -> PredictionsError:
    return PredictionsError(
        f"{source}: case '{table['case_id'][row]}', column {column}: expected {expected}, found {found}."
    )


def _check_columns(table: pd.DataFrame, source: str) -> None:
    columns = [str(name) for name in table.columns]
    twice = sorted(name for name, count in Counter(columns).items() if count > 1)
    if twice:
        raise PredictionsError(f"{source}: column {twice[0]} is there twice; expected each name once.")
    if "case_id" not in columns:
        raise PredictionsError(
            f"{source}: column case_id is missing; found {', '.join(columns[:12]) or 'no column'}. "
            "Name each case once."
        )
    if table.empty:
        raise PredictionsError(f"{source}: the table has a header and no case. Expected one row a case.")
    probabilities = [name for name in columns if name.startswith(PROBABILITY_PREFIX)]
    masks = [name for name in MASK_COLUMNS if name in columns]
    if 0 < len(masks) < len(MASK_COLUMNS) and masks != ["mask_predicted_voxels"]:
        missing = [name for name in MASK_COLUMNS if name not in columns]
        raise PredictionsError(
            f"{source}: column {missing[0]} is missing; Dice needs {', '.join(MASK_COLUMNS)}."
        )
    if probabilities and "label" not in columns:
        raise PredictionsError(
            f"{source}: column label is missing; probabilities are evaluated against it. "
            "Name each case's true class, or leave its cell empty."
        )
    # Not at the top: task_tables.py needs the names of columns from here.
    from threefold.evaluation.task_tables import tasks_in

    measured = len(masks) == len(MASK_COLUMNS) or {*RECONSTRUCTION_COLUMNS} & {*columns}
    if not (probabilities or measured or tasks_in(columns)):
        raise PredictionsError(
            f"{source}: nothing to evaluate; expected probability_<class> columns with label, "
            f"{', '.join(MASK_COLUMNS)}, or psnr or ssim; found {', '.join(columns[:12])}."
        )


def _check_case_ids(table: pd.DataFrame, source: str) -> None:
    blank = np.flatnonzero(table["case_id"] == "")
    if blank.size:
        raise PredictionsError(
            f"{source}: row {int(blank[0]) + 1}, column case_id: expected a name, found none."
        )
    twice = table["case_id"][table["case_id"].duplicated()]
    if len(twice):
        raise PredictionsError(
            f"{source}: case '{twice.iloc[0]}', column case_id: expected each case once, found "
            f"{int((table['case_id'] == twice.iloc[0]).sum())} rows. Keep one row a case."
        )


def _check_choice(table: pd.DataFrame, column: str, valid: Sequence[str], source: str) -> None:
    wrong = np.flatnonzero(~table[column].isin(list(valid)))
    if wrong.size:
        row = int(wrong[0])
        found = str(table[column][row])
        names = [name for name in valid if name]
        error = _at(table, row, column, source, f"one of {', '.join(names)}", f"'{found}'")
        raise PredictionsError(f"{error}{did_you_mean(found, names) if found else ''}")


def _class_names(table: pd.DataFrame, classes: Sequence[str] | None, source: str) -> tuple[str, ...]:
    there = [
        str(name).removeprefix(PROBABILITY_PREFIX)
        for name in table.columns
        if str(name).startswith(PROBABILITY_PREFIX)
    ]
    if not there:
        if classes:
            wanted = ", ".join(map(probability_column, classes))
            raise PredictionsError(f"{source}: expected the columns {wanted}, found none of them.")
        return ()
    if "" in there:
        raise PredictionsError(
            f"{source}: column {PROBABILITY_PREFIX}: expected the name of a class after it, found none."
        )
    if len(there) == 1:
        raise PredictionsError(
            f"{source}: only one column of probabilities ({probability_column(there[0])}); expected one a "
            "class. For a yes/no question add the other class with 1 - p."
        )
    if classes is None or not classes:
        return tuple(there)
    if {*classes} != {*there}:
        raise PredictionsError(
            f"{source}: expected the columns {', '.join(map(probability_column, classes))}, found "
            f"{', '.join(map(probability_column, there))}."
        )
    return tuple(classes)


def _check_probabilities(table: pd.DataFrame, classes: Sequence[str], source: str) -> None:
    if not classes:
        return
    columns = [probability_column(name) for name in classes]
    values: NDArray[np.float64] = table[columns].to_numpy(np.float64)
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        found = "an empty cell" if np.isnan(values[row, column]) else f"{values[row, column]:g}"
        raise _at(table, row, columns[column], source, "a probability from 0 to 1", found)
    sums = values.sum(axis=1)
    off = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if off.size:
        row = int(off[0])
        raise _at(
            table,
            row,
            " + ".join(columns),
            source,
            f"a sum of 1 (within {SUM_TOLERANCE:g})",
            f"{sums[row]:.6g}",
        )


def _check_masks(table: pd.DataFrame, source: str) -> None:
    for name in MASK_COLUMNS:
        values = table[name].to_numpy(np.float64)
        given = ~np.isnan(values)
        wrong = np.flatnonzero(given & ~((values >= 0) & np.isfinite(values) & (values == np.floor(values))))
        if wrong.size:
            row = int(wrong[0])
            raise _at(table, row, name, source, "a whole number of voxels", f"{values[row]:g}")
    truth, predicted, overlap = (table[name].to_numpy(np.float64) for name in MASK_COLUMNS)
    incomplete = np.flatnonzero(~np.isnan(truth) & (np.isnan(predicted) | np.isnan(overlap)))
    if incomplete.size:
        row = int(incomplete[0])
        empty = MASK_COLUMNS[1] if np.isnan(predicted[row]) else MASK_COLUMNS[2]
        raise _at(table, row, empty, source, "a number, since the case has a true mask", "an empty cell")
    orphan = np.flatnonzero(np.isnan(truth) & ~np.isnan(overlap))
    if orphan.size:
        raise _at(
            table,
            int(orphan[0]),
            MASK_COLUMNS[2],
            source,
            "an empty cell, since the case has no true mask",
            f"{overlap[orphan[0]]:g}",
        )
    impossible = np.flatnonzero(overlap > np.minimum(truth, predicted))
    if impossible.size:
        row = int(impossible[0])
        most = min(truth[row], predicted[row])
        raise _at(
            table, row, MASK_COLUMNS[2], source, f"at most {most:g} (the smaller mask)", f"{overlap[row]:g}"
        )


def _check_reconstruction(table: pd.DataFrame, source: str) -> None:
    for name, lowest, highest, expected in (
        ("psnr", -np.finfo(np.float64).max, np.inf, "a number of dB"),
        ("ssim", -1.0, 1.0, "a number from -1 to 1"),
    ):
        values = table[name].to_numpy(np.float64)
        wrong = np.flatnonzero(~np.isnan(values) & ~((values >= lowest) & (values <= highest)))
        if wrong.size:
            row = int(wrong[0])
            raise _at(table, row, name, source, expected, f"{values[row]:g}")


def _patients_at_several_sites(table: pd.DataFrame) -> list[str]:
    pairs = table.loc[table["site"] != "", ["patient_id", "site"]].drop_duplicates()
    return sorted({*pairs.loc[pairs["patient_id"].duplicated(), "patient_id"]})


def _patients_on_both_sides(table: pd.DataFrame) -> list[str]:
    tested = table["part"] == "test"
    sides = [{*table.loc[side, "patient_id"].to_numpy(object)} for side in (tested, ~tested)]
    return sorted(sides[0] & sides[1])
