"""Units (cases or patients) and the groups of them that get numbers of their own.

A patient's probabilities are the mean of the labelled cases', or with rule `max` the highest of the positive
class (more than two classes: the highest of each class, divided by their sum). A patient is positive if any
case is; with more than two classes the patient's label is the commonest, the first class winning ties. Dice,
PSNR and SSIM of a patient are the mean of the cases'. A patient's lesion is missed if nothing of it was found
in any case; a patient without lesion is a false alarm if anything was predicted in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.evaluation.metrics import metric_of, metrics
from threefold.evaluation.predictions import Predictions, probability_column

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Level = Literal["case", "patient"]
GroupKind = Literal["all", "site group", "site", "class", "value", "worst site", "named"]
"""`named`: as a claim names it, a site group, a site or a class."""

# Fewer patients than this say too little of a site to call it the worst.
WORST_SITE_PATIENTS = 5

MOST_GROUPS = 100
"""Site groups, and sites, that get numbers of their own: more are no table that anyone reads."""


@dataclass(frozen=True)
class Group:
    """Cases that get numbers of their own.

    Attributes:
        kind: all, site group, site, class, or value (of a further column).
        name: of the group.
        rows: the cases' rows of the table.
    """

    kind: GroupKind
    name: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class SampleUnits:
    """What is counted: n cases or n patients.

    Attributes:
        patients: (n,) the patient of each unit, numbered without gaps.
        labels: (n,) class index; -1 where there is none.
        probabilities: (n, K).
        values: (n,) by metric that is a mean over cases; NaN where it does not apply.
    """

    patients: Ints
    labels: Ints
    probabilities: Floats
    values: Mapping[str, Floats]

    def __len__(self) -> int:
        """Return n."""
        return len(self.patients)

    def where(self, chosen: NDArray[np.bool_] | Ints) -> SampleUnits:
        """Return the chosen units, by mask or by place, their patients numbered anew."""
        return SampleUnits(
            patients=numbered_anew(self.patients[chosen]),
            labels=self.labels[chosen],
            probabilities=self.probabilities[chosen],
            values={name: value[chosen] for name, value in self.values.items()},
        )


def count_patients(patients: Ints) -> int:
    """Return how many patients some units are of, by the numbers of these; no sort is needed."""
    return int(np.count_nonzero(np.bincount(patients)))


def numbered_anew(patients: Ints) -> Ints:
    """Return the numbers of some of the patients without gaps, in the same order; no sort is needed."""
    there = np.bincount(patients) > 0
    return (np.cumsum(there) - 1)[patients]


def groups_of(rows: pd.DataFrame) -> tuple[Group, ...]:
    """Return all cases, then each site group, then each site; cases that name none are in `all` only.

    Of more than `MOST_GROUPS` of a kind those with the most patients (`group_notes` says so).
    """
    groups = [Group("all", "all", rows)]
    for kind, column in _KINDS:
        places = rows.groupby(column, sort=False).indices
        shown = _largest(rows, column)
        groups += [Group(kind, name, rows.iloc[places[name]]) for name in natural_order(shown)]
    return tuple(groups)


_KINDS: tuple[tuple[GroupKind, str], ...] = (("site group", "site_group"), ("site", "site"))


def _largest(rows: pd.DataFrame, column: str) -> set[str]:
    """Return the names of a column that get numbers of their own: all, or those with the most patients."""
    named = rows[rows[column] != ""]
    if named[column].nunique() <= MOST_GROUPS:
        return {str(name) for name in named[column].unique()}
    patients = named.groupby(column)["patient_id"].nunique()
    return {str(name) for name in patients.sort_values(kind="stable", ascending=False).index[:MOST_GROUPS]}


def group_notes(rows: pd.DataFrame) -> tuple[str, ...]:
    """Say which site groups and sites have no numbers of their own, where there are too many to show."""
    counts = ((kind, rows.loc[rows[column] != "", column].nunique()) for kind, column in _KINDS)
    return tuple(
        f"{count} {kind}s: those {MOST_GROUPS} with the most patients have numbers of their own, and the "
        "worst is of these; all count in the numbers over all cases."
        for kind, count in counts
        if count > MOST_GROUPS
    )


def wide_groups(rows: pd.DataFrame) -> tuple[Group, ...]:
    """Return all cases, then each site group where there are several."""
    everyone, *others = (group for group in groups_of(rows) if group.kind != "site")
    return (everyone, *others) if len(others) > 1 else (everyone,)


def group_kind_of(name: str) -> GroupKind:
    """Return the kind of a group that a claim names."""
    return "all" if name == "all" else "value" if "=" in name else "named"


def natural_order(names: set[str]) -> list[str]:
    """Sort names so that 'site 10' follows 'site 9', and 'internal' comes before 'external'."""

    def key(name: str) -> tuple[bool, list[tuple[int, str]]]:
        chunks = "".join(c if c.isdigit() else f"\0{c}\0" for c in name).split("\0")
        return name != "internal", [(int(c), "") if c.isdecimal() else (-1, c) for c in chunks if c]

    return sorted(names, key=key)


def case_units(rows: pd.DataFrame, predictions: Predictions, further: Sequence[str] = ()) -> SampleUnits:
    """Return each case as a unit, with its values of the program's metrics and of `further` ones."""
    classes = pd.Index(predictions.classes, dtype=object)
    return SampleUnits(
        patients=pd.factorize(rows["patient_id"].to_numpy(object), sort=True)[0].astype(np.int64),
        labels=classes.get_indexer(pd.Index(rows["label"], dtype=object)).astype(np.int64),  # -1: none
        probabilities=rows[[probability_column(name) for name in predictions.classes]].to_numpy(np.float64),
        values={
            name: metric.of_cases(rows)
            for name, metric in metrics(further).items()
            if metric.is_of_a_case and metric.of_cases is not None and {*metric.columns} <= {*rows}
        },
    )


def plain_units(patients: Ints) -> SampleUnits:
    """Return units of which nothing but the patient matters, their patients numbered anew."""
    numbered = np.unique(patients, return_inverse=True)[1].astype(np.int64)
    count = len(numbered)
    return SampleUnits(numbered, labels=np.full(count, -1), probabilities=np.zeros((count, 0)), values={})


def patient_units(cases: SampleUnits, *, positive: int | None, rule: Literal["mean", "max"]) -> SampleUnits:
    """Return each patient as a unit, by the rules at the top of this module.

    Args:
        cases: units that are cases.
        positive: index of the positive class of two; None for any other number of classes.
        rule: how the probabilities of a patient's labelled cases become the patient's.
    """
    count = int(cases.patients.max()) + 1 if len(cases) else 0
    labelled = cases.labels >= 0
    means = {name: mean_by_patient(cases.patients, values, count) for name, values in cases.values.items()}
    rules = [metric_of(name).of_patients for name in means]
    return SampleUnits(
        patients=np.arange(count),
        labels=_patient_labels(cases, labelled, count, positive),
        probabilities=_patient_probabilities(cases, labelled, count, positive, rule),
        values={
            name: mean if of_patients is None else of_patients(means)
            for (name, mean), of_patients in zip(means.items(), rules, strict=True)
        },
    )


def _patient_labels(
    cases: SampleUnits, labelled: NDArray[np.bool_], count: int, positive: int | None
) -> Ints:
    votes = np.zeros((count, cases.probabilities.shape[1]))
    np.add.at(votes, (cases.patients[labelled], cases.labels[labelled]), 1)
    if not votes.shape[1]:
        return np.full(count, -1, np.int64)
    labels = votes.argmax(axis=1)
    if positive is not None:
        labels = np.where(votes[:, positive] > 0, positive, labels)
    return np.where(votes.sum(axis=1) > 0, labels, -1).astype(np.int64)


def _patient_probabilities(
    cases: SampleUnits, labelled: NDArray[np.bool_], count: int, positive: int | None, rule: str
) -> Floats:
    patients, probabilities = cases.patients[labelled], cases.probabilities[labelled]
    if rule == "mean":
        columns = [mean_by_patient(patients, column, count) for column in probabilities.T]
        return np.nan_to_num(np.stack(columns, axis=1)) if columns else np.zeros((count, 0))
    highest = np.zeros((count, probabilities.shape[1]))
    np.maximum.at(highest, patients, probabilities)
    if positive is not None:
        highest[:, 1 - positive] = 1 - highest[:, positive]
        return highest
    sums = highest.sum(axis=1, keepdims=True)
    np.divide(highest, sums, out=highest, where=sums > 0)
    return highest


def mean_by_patient(patients: Ints, values: Floats, count: int) -> Floats:
    """Return the mean of each patient's values that are there, (count,); NaN where none is.

    Args:
        patients: (n,) 0..count-1.
        values: (n,) NaN where absent.
        count: number of patients.
    """
    there = ~np.isnan(values)
    sums = np.bincount(patients[there], weights=values[there], minlength=count)
    numbers = np.bincount(patients[there], minlength=count)
    means = np.full(count, np.nan)
    np.divide(sums, numbers, out=means, where=numbers > 0)
    return means
