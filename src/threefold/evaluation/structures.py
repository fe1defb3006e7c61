"""The table of structures: one row a case and structure, beside the table of predictions.

Columns (CSV, UTF-8; an empty cell means not known):

  case_id                               a case of the table of predictions
  structure                             its name, or `union`: all structures together
  truth_voxels, predicted_voxels, overlap_voxels
  asd_mm, hd95_mm, cl_dice              under the policy `missed-at-diagonal` (structure_measures)
  truth_b0, truth_b1, truth_b2          components, tunnels and cavities of the true structure
  predicted_b0, predicted_b1, predicted_b2
  truth_source                          the cohort's column that the truth comes from
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.errors import PredictionsError
from threefold.evaluation.overlap import dice
from threefold.evaluation.structure_measures import UNION

Floats = NDArray[np.float64]

NUMBERS = (
    "truth_voxels",
    "predicted_voxels",
    "overlap_voxels",
    "asd_mm",
    "hd95_mm",
    "cl_dice",
    *(f"{whose}_b{degree}" for whose in ("truth", "predicted") for degree in (0, 1, 2)),
)
STRUCTURE_METRICS = (
    "structure_dice",
    "asd_mm",
    "hd95_mm",
    "cl_dice",
    "b0_error",
    "b1_error",
    "b2_error",
    "missed_structures",
    "extra_structures",
)
MEAN = ""
"""Name of the mean over a case's structures, the union left out."""


def read_structures_table(path: Path) -> pd.DataFrame:
    """Read and validate a table of structures.

    Raises:
        PredictionsError: naming the file, the column and the case.
    """
    try:
        table = pd.read_csv(
            path, dtype={"case_id": str, "structure": str}, keep_default_na=False, na_values=[""]
        )
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as problem:
        raise PredictionsError(f"{path}: not a readable CSV table ({problem}).") from None
    return validate_structures(table, source=str(path))


def validate_structures(table: pd.DataFrame, *, source: str = "structures") -> pd.DataFrame:
    """Return the table with every number column as float, or say what is wrong with it.

    Raises:
        PredictionsError: naming the column, the case, what was expected and what was found.
    """
    missing = [name for name in ("case_id", "structure", *NUMBERS) if name not in table]
    if missing:
        raise PredictionsError(
            f"{source}: column {missing[0]} is missing; expected case_id, structure, {', '.join(NUMBERS)}."
        )
    clean = table.reset_index(drop=True)
    for name in NUMBERS:
        numbers = pd.to_numeric(clean[name], errors="coerce")
        wrong = np.flatnonzero(numbers.isna() & clean[name].notna() | (numbers < 0) | np.isinf(numbers))
        if wrong.size:
            row = int(wrong[0])
            raise PredictionsError(
                f"{source}: case '{clean['case_id'][row]}', {clean['structure'][row]}, column {name}: "
                f"expected a number from 0, or an empty cell; found '{clean[name][row]}'."
            )
        clean[name] = numbers.astype(np.float64)
    twice = clean.duplicated(["case_id", "structure"])
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise PredictionsError(
            f"{source}: case '{clean['case_id'][row]}' has {clean['structure'][row]} twice; expected one row "
            "a case and structure."
        )
    most = np.fmin(clean["truth_voxels"], clean["predicted_voxels"])
    wrong = np.flatnonzero(clean["overlap_voxels"] > most)
    if wrong.size:
        row = int(wrong[0])
        raise PredictionsError(
            f"{source}: case '{clean['case_id'][row]}', {clean['structure'][row]}, column overlap_voxels: "
            f"expected at most {most[row]:g} (the smaller of truth and prediction), found "
            f"{clean['overlap_voxels'][row]:g}."
        )
    return clean


def structure_names(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the structures in the table's order, the union last."""
    names = dict.fromkeys(str(name) for name in table["structure"])
    return (*(name for name in names if name != UNION), *(name for name in names if name == UNION))


def structure_values(table: pd.DataFrame, case_ids: Sequence[str]) -> dict[tuple[str, str], Floats]:
    """Return the value of each metric and structure for each case.

    Dice, distances and clDice exist where the case truly has the structure, Betti errors (the absolute
    difference of predicted and true) and misses too; `extra_structures` where it truly has it not. The mean
    (structure "") is over the structures for which a case has the metric; for misses and extras it is their
    number.

    Args:
        table: as `validate_structures` returns it.
        case_ids: n cases; those that the table lacks have NaN throughout.

    Returns:
        (n,) float64 by metric and structure.
    """
    names = structure_names(table)
    order = pd.Index(list(case_ids))
    values: dict[tuple[str, str], Floats] = {}
    for name in names:
        rows = table[table["structure"] == name].set_index("case_id").reindex(order)
        values |= {(metric, name): value for metric, value in _of_structure(rows).items()}
    single = [name for name in names if name != UNION]
    for metric in STRUCTURE_METRICS if single else ():
        stacked = np.stack([values[metric, name] for name in single])
        counted = metric in ("missed_structures", "extra_structures")
        values[metric, MEAN] = _sum(stacked) if counted else _mean(stacked)
    return values


def _of_structure(rows: pd.DataFrame) -> Mapping[str, Floats]:
    truth, predicted, overlap = (
        rows[f"{n}_voxels"].to_numpy(float) for n in ("truth", "predicted", "overlap")
    )
    there, absent = truth > 0, truth == 0
    errors = {
        f"b{k}_error": np.where(
            there,
            np.abs(rows[f"predicted_b{k}"].to_numpy(float) - rows[f"truth_b{k}"].to_numpy(float)),
            np.nan,
        )
        for k in (0, 1, 2)
    }
    return {
        "structure_dice": dice(truth, predicted, overlap),
        **{
            name: np.where(there, rows[name].to_numpy(float), np.nan)
            for name in ("asd_mm", "hd95_mm", "cl_dice")
        },
        **errors,
        "missed_structures": np.where(there, predicted == 0, np.nan),
        "extra_structures": np.where(absent, predicted > 0, np.nan),
    }


def _mean(stacked: Floats) -> Floats:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    there = ~np.isnan(stacked)
    count = there.sum(axis=0)
    total = np.where(there, stacked, 0).sum(axis=0)
    mean: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _sum(stacked: Floats) -> Floats:
    there = ~np.isnan(stacked)
    return np.where(there.any(axis=0), np.where(there, stacked, 0).sum(axis=0), np.nan)
