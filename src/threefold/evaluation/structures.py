"""The table of structures: one row a case and structure, beside the table of predictions.

Columns (CSV, UTF-8; an empty cell means not known):

  case_id                               a case of the table of predictions
  structure                             its name, or `union`: all structures together
  truth_voxels, predicted_voxels, overlap_voxels
  asd_mm, hd95_mm, cl_dice              under the policy `missed-at-diagonal` (structure_measures)
  truth_b0, truth_b1, truth_b2          components, tunnels and cavities of the true structure
  predicted_b0, predicted_b1, predicted_b2
  asd_px, hd95_px                       in pixels, in place of asd_mm and hd95_mm of a case whose image states
                                        no spacing; the columns may be left out
  truth_source                          the cohort's column that the truth comes from: reference, structures
                                        or mask; the column may be left out
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.checksums import verify_table
from threefold.csv_tables import read_frame
from threefold.errors import PredictionsError
from threefold.evaluation.estimate import Estimate, Place
from threefold.evaluation.groups import (
    Group,
    Level,
    groups_of,
    mean_by_patient,
    natural_order,
    plain_units,
)
from threefold.evaluation.metrics import Metric, metric_of, metrics
from threefold.evaluation.predictions import CHANGED, Predictions
from threefold.evaluation.structure_measures import UNION
from threefold.experiment import EvaluationSpec

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
PIXEL_NUMBERS = ("asd_px", "hd95_px")
"""Columns that are there where a case has its distances in pixels."""
_MM_METRICS = ("asd_mm", "hd95_mm")
_COUNTS = tuple(name for name in NUMBERS if name.endswith(("_voxels", "_b0", "_b1", "_b2")))
MEAN = ""
"""Name of the mean over a case's structures, the union left out."""


def read_structures_table(path: Path) -> pd.DataFrame:
    """Read and validate a table of structures.

    Raises:
        PredictionsError: naming the file, the column and the case.
    """
    verify_table(path, PredictionsError, CHANGED)
    try:
        table = read_frame(path)
    except FileNotFoundError:
        raise PredictionsError(f"{path}: no such file. Expected a table of structures (CSV).") from None
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise PredictionsError(
            f"{path}: not a readable CSV table ({problem}). Expected one row a case and structure under a "
            "header with case_id, structure and their numbers."
        ) from None
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
    for name in ("case_id", "structure", *(("truth_source",) if "truth_source" in table else ())):
        clean[name] = clean[name].astype(object).where(clean[name].notna(), "").map(str).str.strip()
    for name in ("case_id", "structure"):
        blank = np.flatnonzero(clean[name] == "")
        if blank.size:
            raise PredictionsError(f"{source}: row {int(blank[0]) + 1}, column {name}: expected a name.")
    for name in (*NUMBERS, *(name for name in PIXEL_NUMBERS if name in clean)):
        clean[name] = _numbers(clean, name, source)
    twice = np.flatnonzero(clean.duplicated(["case_id", "structure"]))
    if twice.size:
        row = int(twice[0])
        raise PredictionsError(
            f"{source}: case '{clean['case_id'][row]}' has {clean['structure'][row]} twice; expected one row "
            "a case and structure."
        )
    _check_counts(clean, source)
    return clean


def _numbers(table: pd.DataFrame, name: str, source: str) -> pd.Series[float]:
    cells = table[name].to_numpy(object)
    there = table[name].notna().to_numpy()
    texts = [str(cell).strip() if known else "" for cell, known in zip(cells, there, strict=True)]
    blank = np.array([text == "" for text in texts], np.bool_)
    numbers = np.asarray(
        pd.to_numeric(np.array([text or None for text in texts], object), errors="coerce"), np.float64
    )
    highest = 1.0 if name == "cl_dice" else np.inf
    wrong = ~blank & ~((numbers >= 0) & (numbers <= highest) & np.isfinite(numbers))
    if name in _COUNTS:
        wrong |= ~blank & (numbers != np.floor(numbers))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        expected = "a whole number from 0" if name in _COUNTS else "a number from 0"
        raise _at(table, row, name, source, f"{expected}{' to 1' if highest == 1 else ''}", f"'{cells[row]}'")
    return pd.Series(numbers, table.index)


def _check_counts(table: pd.DataFrame, source: str) -> None:
    truth, predicted, overlap = (table[f"{n}_voxels"] for n in ("truth", "predicted", "overlap"))
    for name, wrong in (
        ("predicted_voxels", predicted.isna() & truth.notna()),
        ("overlap_voxels", overlap.isna() & truth.notna()),
    ):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise _at(table, row, name, source, "a number, since the truth is known", "an empty cell")
    orphan = np.flatnonzero(truth.isna() & overlap.notna())
    if orphan.size:
        row = int(orphan[0])
        found = f"{overlap[row]:g}"
        expected = "an empty cell, since the truth is not known"
        raise _at(table, row, "overlap_voxels", source, expected, found)
    most = np.minimum(truth, predicted)
    impossible = np.flatnonzero(overlap > most)
    if impossible.size:
        row = int(impossible[0])
        expected = f"at most {most[row]:g} (the smaller of truth and prediction)"
        raise _at(table, row, "overlap_voxels", source, expected, f"{overlap[row]:g}")


def _at(
    table: pd.DataFrame, row: int, column: str, source: str, expected: str, found: str
) -> PredictionsError:
    return PredictionsError(
        f"{source}: case '{table['case_id'][row]}', {table['structure'][row]}, column {column}: expected "
        f"{expected}; found {found}."
    )


def with_structures(
    predictions: Predictions, table: pd.DataFrame, *, source: str = "structures"
) -> Predictions:
    """Return predictions together with the structures of their cases.

    Where a test case's structures are held against the cohort's `structures`, which may have been
    propagated, and not against a reference, a note says over how many.

    Args:
        predictions: the table of predictions.
        table: as `validate_structures` returns it.
        source: names the table in errors.

    Raises:
        PredictionsError: the table has a case that the predictions lack.
    """
    strange = sorted({*table["case_id"]} - {*predictions.table["case_id"]})
    if strange:
        raise PredictionsError(
            f"{source}: case '{strange[0]}' ({len(strange)} such cases) is not in the table of predictions. "
            "The two tables are of different cases: give those of one run."
        )
    tested = {*predictions.part("test")["case_id"]}
    notes = _unit_notes(table[table["case_id"].isin(tested)])
    if "truth_source" in table:
        rows = table[table["case_id"].isin(tested) & table["truth_voxels"].notna()]
        weak = rows.loc[rows["truth_source"] == "structures", "case_id"].nunique()
        if weak:
            notes = (
                *notes,
                f"{weak} of {rows['case_id'].nunique()} test cases have no reference: their structures are "
                "held against the cohort's own, which are as right as those are (propagated or manual).",
            )
    return replace(predictions, structures=table, notes=(*predictions.notes, *notes))


def _unit_notes(table: pd.DataFrame) -> tuple[str, ...]:
    """Say how many cases have their distances in pixels, where some have."""
    in_mm, in_pixels = (
        table.loc[table.reindex(columns=names).notna().any(axis=1), "case_id"].nunique()
        for names in (_MM_METRICS, PIXEL_NUMBERS)
    )
    if not in_pixels:
        return ()
    apart = f", apart from those of the other {in_mm}, in mm" if in_mm else ""
    return (
        f"{in_pixels} cases state no spacing: their distances are in pixels{apart}. Where it is known, write "
        "`spacing:` into cohort.yaml.",
    )


def tells_structures(predictions: Predictions) -> bool:
    """Whether structures were predicted, and not a mask alone, of which the union is all there is."""
    table = predictions.structures
    return table is not None and bool((table["structure"] != UNION).any())


def structure_names(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the structures in the table's order, the union last."""
    names = dict.fromkeys(str(name) for name in table["structure"])
    return (*(name for name in names if name != UNION), *(name for name in names if name == UNION))


def structure_values(
    table: pd.DataFrame, case_ids: Sequence[str], further: Sequence[str] = ()
) -> dict[tuple[str, str], Floats]:
    """Return the value of each metric and structure for each case.

    Dice, distances and clDice exist where the case truly has the structure, Betti errors (the absolute
    difference of predicted and true) and misses too; `extra_structures` where it truly has it not. The mean
    (structure "") is over the structures for which a case has the metric; for misses and extras it is their
    number.

    Args:
        table: as `validate_structures` returns it.
        case_ids: n cases; those that the table lacks have NaN throughout.
        further: metrics beside the program's.

    Returns:
        (n,) float64 by metric and structure.
    """
    names = structure_names(table)
    single = [place for place, name in enumerate(names) if name != UNION]
    cells, distances = _Cells(table, names, case_ids), _distances(table)
    found = {
        metric: metric.of_structures(cells)
        for metric in metrics(further).values()
        if metric.of_structures is not None and _has(table, metric, distances)
    }
    values = {
        (metric.name, name): of[place] for place, name in enumerate(names) for metric, of in found.items()
    }
    for metric, of in found.items() if single else ():
        values[metric.name, MEAN] = _sum(of[single]) if metric.is_counted else _mean(of[single])
    return values


class _Cells:
    """Columns of the table as (S, n), NaN where a case has no row of a structure."""

    def __init__(self, table: pd.DataFrame, names: Sequence[str], case_ids: Sequence[str]) -> None:
        known, column = np.unique(np.asarray(case_ids, str), return_inverse=True)
        place = np.full((len(names), len(known)), -1)
        structure, case = (
            pd.Index(labels).get_indexer(pd.Index(table[name].astype(str)))
            for labels, name in ((names, "structure"), (known, "case_id"))
        )
        there = np.flatnonzero(case >= 0)
        place[structure[there], case[there]] = there
        self._table, self._place = table, place[:, column]

    def __call__(self, column: str) -> Floats:
        cells = np.append(self._table[column].to_numpy(np.float64), np.nan)
        return np.where(self._place >= 0, cells[self._place], np.nan)

    @cached_property
    def there(self) -> NDArray[np.bool_]:
        return self("truth_voxels") > 0


def _distances(table: pd.DataFrame) -> Sequence[str]:
    """Return the distances that a table has: in mm, in pixels where no case has a spacing, or both."""
    mm, pixels = (
        bool(table.reindex(columns=names).notna().any(axis=None)) for names in (_MM_METRICS, PIXEL_NUMBERS)
    )
    return (*(_MM_METRICS if mm or not pixels else ()), *(PIXEL_NUMBERS if pixels else ()))


def _has(table: pd.DataFrame, metric: Metric, distances: Sequence[str]) -> bool:
    """Whether a table has what a metric of structures needs; of the distances, those in its unit."""
    if {*metric.columns} & {*_MM_METRICS, *PIXEL_NUMBERS}:
        return {*metric.columns} <= {*distances}
    return {*metric.columns} <= {*table}


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


Ints = NDArray[np.int64]
Key = tuple[str, str]
"""A metric, and the structure that it is of; empty: of the mean over structures, or of the whole case."""


def structure_numbers(level: Level, predictions: Predictions, spec: EvaluationSpec) -> Iterator[Estimate]:
    """Yield the numbers of each structure, of a case's mean over them, and of the topology, by group.

    Beside the groups of `groups_of` each class is a group of its own, so that a diagnosis in which
    structures differ can be seen apart. A patient's value is the mean of the cases'.
    """
    test = predictions.schema_part("test")
    of_test = case_values(test, predictions, spec.metrics)
    if not of_test:
        return
    for group in (*groups_of(test), *_classes(test, predictions.classes)):
        patients = np.unique(group.rows["patient_id"].to_numpy(str), return_inverse=True)[1].astype(np.int64)
        chosen = test.index.isin(group.rows.index)
        values = {key: value[chosen] for key, value in of_test.items()}
        if level == "patient":
            count = len(np.unique(patients))
            values = {key: mean_by_patient(patients, value, count) for key, value in values.items()}
            patients = np.arange(count)
        yield from _means(Place(level, group, spec, predictions.leaks), patients, values)


def _classes(test: pd.DataFrame, classes: Sequence[str]) -> Iterator[Group]:
    found = {str(name) for name in test["label"]} - {""}
    names = [name for name in classes if name in found] or natural_order(found)
    if len(names) > 1:
        yield from (Group("class", name, test[test["label"] == name]) for name in names)


def case_values(
    rows: pd.DataFrame, predictions: Predictions, further: Sequence[str] = ()
) -> Mapping[Key, Floats]:
    """Return the values of each case, (n,), of the program's metrics and of `further` ones; NaN where a case
    has none."""
    values: dict[Key, Floats] = {}
    if predictions.structures is not None:
        values |= structure_values(predictions.structures, rows["case_id"].tolist(), further)
    return values | {(name, ""): value for name, value in _topology(rows, further).items()}


def _topology(rows: pd.DataFrame, further: Sequence[str]) -> Mapping[str, Floats]:
    """Return what the arch and the graph of structures say of each case; NaN where they say nothing."""
    return {
        name: metric.of_cases(rows)
        for name, metric in metrics(further).items()
        if metric.of == "topology" and metric.of_cases is not None and metric.has_cases(rows)
    }


def _means(place: Place, patients: Ints, values: Mapping[Key, Floats]) -> Iterator[Estimate]:
    """Yield the mean of each value over the units that have it.

    Values that the same units have are resampled together: most structures are in every case.

    Args:
        place: what is counted, and where.
        patients: (n,) of the units.
        values: (n,) each.
    """
    together: dict[bytes, list[Key]] = {}
    for key, value in values.items():
        together.setdefault((~np.isnan(value)).tobytes(), []).append(key)
    rows: dict[Key, Estimate] = {}
    for keys in together.values():
        rows |= _means_together(place, patients, {key: values[key] for key in keys})
    yield from (rows[key] for key in values)


def _means_together(place: Place, patients: Ints, values: Mapping[Key, Floats]) -> dict[Key, Estimate]:
    """Return the means of values that the same units have."""
    stacked = np.stack(list(values.values()), axis=1)  # (n, V)
    there = ~np.isnan(stacked[:, 0])
    stacked = stacked[there]
    units = plain_units(patients[there])

    def means(weights: Floats) -> Mapping[Key, Floats]:
        total = weights.sum(axis=1, keepdims=True)  # (R, 1)
        found = np.divide(
            weights @ stacked, total, out=np.full((len(weights), len(values)), np.nan), where=total > 0
        )
        return dict(zip(values, found.T, strict=True))

    points = means(np.ones((1, len(units))))
    intervals = place.bootstrap(means, units)
    rows = {}
    for (name, structure), value in zip(values, stacked.T, strict=True):
        metric = metric_of(name)
        # The number of a case's misses is no share, that of one structure's is.
        is_number = metric.is_counted and not structure
        rows[name, structure] = place.estimate(
            metric,
            float(points[name, structure][0]),
            intervals.get((name, structure)),
            units,
            needed=np.ones(len(units), np.bool_),
            class_name=structure,
            positives=int(value.sum()) if metric.is_share else None,
            is_mean=is_number,
            why=metric.without_one if structure else metric.without,
        )
    return rows
