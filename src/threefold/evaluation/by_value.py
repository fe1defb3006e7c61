"""The diagnosis by the values of a further column: does it hold where a shortcut misleads?

A column that goes with the label in the training data (a clip, a scanner, a hospital) is a shortcut: a
network may decide by it. Then it does well on cases that are **aligned** (the column says what the label
says) and badly on those that are **conflicting**. The group of one label and one value that is told worst is
the worst group (Sagawa et al. 2020, arXiv 1911.08731).

In a group of one label there is no AUC and no specificity beside sensitivity, only the share of cases that
were decided right. Over all labels of a value, and over the aligned and the conflicting cases, every metric
is there where both classes are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.errors import PredictionsError
from threefold.evaluation.classification import weighted_mean
from threefold.evaluation.diagnosis import diagnosis_estimates
from threefold.evaluation.estimate import Estimate, Place
from threefold.evaluation.evaluate import decision_threshold
from threefold.evaluation.groups import (
    WORST_SITE_PATIENTS,
    Group,
    case_units,
    natural_order,
    wide_groups,
)
from threefold.evaluation.intervals import SAME_VALUE, bootstrap
from threefold.evaluation.metrics import shown_in
from threefold.evaluation.predictions import (
    MASK_COLUMNS,
    RECONSTRUCTION_COLUMNS,
    Predictions,
    probability_column,
)
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

MOST_VALUES = 20
ALIGNED, CONFLICTING = "aligned", "conflicting"


@dataclass(frozen=True)
class ValueRow:
    """One number of one group of cases.

    Attributes:
        within: all, or the site group.
        label: the true class; empty: every class.
        value: of the column, or aligned or conflicting.
        row: the number.
    """

    within: str
    label: str
    value: str
    row: Estimate


@dataclass(frozen=True)
class ByValue:
    """The diagnosis by the values of a column.

    Attributes:
        column: its name.
        rows: every number.
        worst: of each site group, and of all, the worst group of one label and one value; of those with
            enough patients.
        notes: what a reader has to know, in sentences.
    """

    column: str
    rows: tuple[ValueRow, ...]
    worst: tuple[ValueRow, ...]
    notes: tuple[str, ...]


def by_value(
    predictions: Predictions, column: str, spec: EvaluationSpec, *, threshold: float | None = None
) -> ByValue:
    """Evaluate the test part by the values of a further column.

    Args:
        predictions: with probabilities and the column.
        column: its name; cases without a value are left out.
        spec: replicates, confidence, seed and the rule of the threshold.
        threshold: of the positive class's probability; None: by the rule, on the validation part.

    Raises:
        PredictionsError: no such column, none of its cells has a value, or they are no categories; or there
            is no diagnosis.
    """
    test = _test_cases(predictions, column)
    cut, source, notes = decision_threshold(predictions, spec, threshold)
    values = natural_order({*test[column]})
    speaks_for, spoken = _association(predictions, column, spec)
    rows: list[ValueRow] = []
    for group in wide_groups(test):
        for label, value, chosen in _selections(group.rows, predictions, column, values, speaks_for):
            place = Place("case", Group("value", f"{column} {value}", chosen), spec, predictions.leaks)
            names = ("accuracy",) if label else shown_in("values")
            rows += [
                ValueRow(group.name, label, value, row)
                for row in diagnosis_estimates(place, case_units(chosen, predictions), predictions, cut)
                if row.metric in names and not row.class_name
            ]
    said = list(notes)
    if predictions.positive is not None:
        how = {"validation": "chosen on the validation part", "given": "as given", "default": "by default"}
        said.append(f"Positive ({predictions.positive}) where its probability >= {cut:.4g}, {how[source]}.")
    return ByValue(column, tuple(rows), tuple(_worst(rows)), (*spoken, *said, *predictions.notes))


def _test_cases(predictions: Predictions, column: str) -> pd.DataFrame:
    """Return the test cases that have a label and a value."""
    if not predictions.classes:
        raise PredictionsError("the table has no probabilities: there is no diagnosis to evaluate by value.")
    require_column(predictions, column)
    test = predictions.part("test")
    test = test[(test["label"] != "") & (test[column].astype(str) != "")]
    values = test[column].nunique()
    if not values or values > MOST_VALUES:
        raise PredictionsError(
            f"column {column}: expected 1 to {MOST_VALUES} values among the labelled test cases, found "
            f"{values}. Name a column of categories."
        )
    told = test.copy()
    told[column] = test[column].astype(str)
    return told


def require_column(predictions: Predictions, column: str) -> None:
    """Refuse a column that the table lacks.

    Raises:
        PredictionsError: naming those that hold categories.
    """
    table = predictions.table
    if column not in table:
        numbers = (*MASK_COLUMNS, *RECONSTRUCTION_COLUMNS, *map(probability_column, predictions.classes))
        known = [str(name) for name in table if name not in numbers and table[name].nunique() <= MOST_VALUES]
        raise PredictionsError(
            f"there is no column '{column}' in the predictions, which have those of the cohort's table. With "
            f"at most {MOST_VALUES} values: {', '.join(known)}."
        )


def _selections(
    rows: pd.DataFrame,
    predictions: Predictions,
    column: str,
    values: list[str],
    speaks_for: Mapping[str, str],
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield label (empty: all), value, and the cases."""
    for value in values:
        of_value = rows[rows[column] == value]
        yield "", value, of_value
        for label in predictions.classes:
            yield label, value, of_value[of_value["label"] == label]
    if speaks_for:
        known = rows[rows[column].isin(list(speaks_for))]
        agrees = known["label"] == known[column].map(dict(speaks_for))
        yield "", ALIGNED, known[agrees]
        yield "", CONFLICTING, known[~agrees]


def _association(
    predictions: Predictions, column: str, spec: EvaluationSpec
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Return the label that each value speaks for, and in words how strongly.

    A value speaks for the class whose share among the validation cases with the value is furthest above its
    share among those without, if the interval of that difference is above 0. The validation part is drawn as
    the training part is; the test part may not be.
    """
    known = predictions.part("validation")
    known = known[(known["label"] != "") & (known[column].astype(str) != "")]
    cells, labels = known[column].astype(str).to_numpy(str), known["label"].to_numpy(str)
    patients = np.unique(known["patient_id"].to_numpy(str), return_inverse=True)[1].astype(np.int64)
    values = natural_order({*cells})
    speaks_for, words = {}, []
    for value in values if len(values) > 1 else ():
        has = cells == value
        shares = {name: np.mean(labels[has] == name) for name in predictions.classes}
        label = max(shares, key=lambda name: shares[name] - float(np.mean(labels[~has] == name)))
        if _goes_with(has, labels == label, patients, spec):
            speaks_for[value] = label
            words.append(f"{label} in {shares[label]:.0%} of {has.sum()} cases with {column} {value}")
    if len({*speaks_for.values()}) < 2:
        return {}, (
            f"The validation part ({len(known)} cases) shows no association of {column} with the label "
            "beyond chance: no case is called aligned or conflicting.",
        )
    said = (
        f"Aligned: the label is the one that the value speaks for in the validation part ({'; '.join(words)})"
    )
    return speaks_for, (f"{said}.",)


def _goes_with(has: Bools, positive: Bools, patients: Ints, spec: EvaluationSpec) -> bool:
    """Whether a label is commoner with a value than without it, by the interval of the difference."""

    def more(weights: Floats) -> dict[str, Floats]:
        shares = [
            weighted_mean(positive[chosen].astype(np.float64), weights[:, chosen]) for chosen in (has, ~has)
        ]
        return {"more": shares[0] - shares[1]}

    interval = bootstrap(
        more, patients, replicates=spec.replicates, confidence=spec.confidence, seed=spec.seed
    )["more"]
    if interval.reason == SAME_VALUE:
        return float(more(np.ones((1, len(has))))["more"][0]) > 0
    return interval.ends is not None and interval.ends[0] > 0


def _worst(rows: list[ValueRow]) -> Iterator[ValueRow]:
    """Yield the worst group of one label and one value, of all and of each site group."""
    for within in dict.fromkeys(row.within for row in rows):
        eligible = [
            each
            for each in rows
            if each.within == within
            and each.label
            and each.row.patients >= WORST_SITE_PATIENTS
            and not np.isnan(each.row.value)
        ]
        if len(eligible) > 1:
            yield min(eligible, key=lambda each: each.row.value)
