"""Tables of what a network relies on and knows: by the values of a shortcut, probes, temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from threefold.evaluation.by_value import ByValue, ValueRow
from threefold.evaluation.estimate import Difference, Estimate
from threefold.evaluation.metrics import metric_of, shown_in
from threefold.evaluation.probes import FEWEST_PATIENTS, FOLDS, PENALTY, Probe
from threefold.experiment import EvaluationSpec
from threefold.reporting.results import Entry
from threefold.reporting.table import LEAK_NOTE, Number, Table, cell, interval_legend


def value_table(found: ByValue, spec: EvaluationSpec, *, binary: bool) -> Table:
    """Return the diagnosis by the values of a column, a row a group of cases.

    Args:
        found: the numbers.
        spec: replicates and confidence.
        binary: there are two classes, so that sensitivity is of one of them.
    """
    of_one = ("positives", "negatives")  # class of two
    names = [name for name in shown_in("values") if binary or metric_of(name).needs not in of_one]
    groups = list(dict.fromkeys((each.within, each.value, each.label) for each in found.rows))
    at = {(each.within, each.value, each.label, each.row.metric): each.row for each in found.rows}
    body = [
        (
            _name(found.column, *group),
            *("" if (row := at.get((*group, metric))) is None else cell(row) for metric in names),
        )
        for group in groups
    ]
    body += [
        (f"worst group of {_name(found.column, *_group(each))}", *[""] * (len(names) - 1), cell(each.row))
        for each in found.worst
    ]
    return Table(
        f"Test cases by {found.column}",
        ("group", *(metric_of(name).title for name in names)),
        tuple(body),
        (
            interval_legend(spec),
            "A group with one label has no AUC; its accuracy is the sensitivity (positive class) or the "
            "specificity."
            if binary
            else "A group with one label has no AUC.",
            *found.notes,
            *_leaks(each.row for each in found.rows),
        ),
        name="shortcut",
    )


def probe_table(probes: Sequence[Probe], spec: EvaluationSpec) -> Table:
    """Return the results of linear probes, one row per column and group."""
    body = tuple(
        (
            f"{probe.target}, {probe.auc[0].group}",
            cell(probe.auc[0]),
            cell(probe.accuracy),
            cell(probe.majority),
            probe.note,
        )
        for probe in probes
    )
    return Table(
        "Linear probes of the features",
        ("column, cases", "AUC", "accuracy", "always the commonest value", "note"),
        body,
        (
            interval_legend(spec),
            f"Logistic regression with an L2 penalty of {PENALTY:g} on the frozen features of the "
            f"classifier, cross-validated on the test cases in {FOLDS} folds of patients. For more than two "
            "values the AUC is the mean of each against the rest, over pairs within a fold. The intervals do "
            "not include the variance of the fits. Values with fewer than "
            f"{FEWEST_PATIENTS} patients are excluded.",
            "Over all sites, a probe may predict a column from other differences between sites: compare "
            "within a site group. A decodable column is not necessarily used by the network's own head.",
            *_leaks(probe.accuracy for probe in probes),
        ),
        name="probes",
    )


def temperature_table(temperature: Estimate, changes: Sequence[Difference], spec: EvaluationSpec) -> Table:
    """Return each measure of calibration before and after temperature scaling, by group and measure.

    Without an optimal temperature, only the values before are given.
    """
    notes = [
        f"Temperature {_temperature(temperature)}, fitted on the validation part (n={temperature.n}/"
        f"{temperature.patients}) by log loss; above 1, the network is overconfident.",
        interval_legend(spec),
        "With few cases the calibration error is biased upwards, and more so in a resample"
        + ("." if math.isnan(temperature.value) else ": look at the change."),
        *_leaks(each.first for each in changes),
    ]
    names = [f"{each.first.group}, {metric_of(each.first.metric).title}" for each in changes]
    if math.isnan(temperature.value):
        rows = tuple((name, cell(each.first)) for name, each in zip(names, changes, strict=True))
        title, columns = "Calibration", ("test cases, measure", "as predicted")
        return Table(title, columns, rows, tuple(notes), name="calibration_temperature")
    return Table(
        "Calibration before and after temperature scaling",
        ("test cases, measure", "before", "after", "change"),
        tuple(
            (name, cell(each.first), cell(each.second), _change(each.change))
            for name, each in zip(names, changes, strict=True)
        ),
        (*notes, "The intervals after scaling treat the temperature as fixed."),
        name="calibration_temperature",
    )


def value_entries(found: ByValue) -> list[Entry]:
    """Return the numbers by value."""
    of_worst = {_group(each) for each in found.worst}
    return [
        Entry(
            each.row,
            {
                "within": each.within,
                "column": found.column,
                "column_value": each.value,
                "label": each.label,
                "worst": _group(each) in of_worst,
            },
        )
        for each in found.rows
    ]


def probe_entries(probes: Sequence[Probe]) -> list[Entry]:
    """Return the probes' numbers."""
    return [
        Entry(row, {"target": probe.target, "of": of, "left_out": probe.note})
        for probe in probes
        for of, row in (
            *(("probe", row) for row in probe.auc),
            ("probe", probe.accuracy),
            ("commonest value", probe.majority),
        )
    ]


def temperature_entries(temperature: Estimate, changes: Sequence[Difference]) -> list[Entry]:
    """Return the temperature, then each measure before, after and as a change."""
    return [
        Entry(temperature, {"when": "fitted"}),
        *(
            Entry(row, {"when": when})
            for each in changes
            for when, row in (("before", each.first), ("after", each.second), ("change", each.change))
        ),
    ]


def _group(each: ValueRow) -> tuple[str, str, str]:
    return each.within, each.value, each.label


def _name(column: str, within: str, value: str, label: str) -> str:
    of_value = value if value in ("aligned", "conflicting") else f"{column} {value}"
    return f"{within}: {of_value}{f', {label}' if label else ''}"


def _temperature(found: Estimate) -> str:
    if math.isnan(found.value):
        return found.note
    shown = "[no interval]" if math.isnan(found.low) else f"[{found.low:.3f}, {found.high:.3f}]"
    return f"{found.value:.3f} {shown}{f' ({found.note})' if found.note else ''}"


def _change(row: Estimate) -> str:
    if math.isnan(row.value) or math.isnan(row.low):
        return cell(row)
    return Number(row, f"{row.value:+.3f}", f"[{row.low:+.3f}, {row.high:+.3f}]")


def _leaks(rows: Any) -> tuple[str, ...]:
    return (LEAK_NOTE,) if any(row.leaks for row in rows) else ()
