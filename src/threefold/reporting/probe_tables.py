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
            "A group of one label has no AUC: its accuracy is the share that was decided right (of the "
            "positive class the sensitivity, of the other the specificity)."
            if binary
            else "A group of one label has no AUC: its accuracy is the share that was decided right.",
            *found.notes,
            *_leaks(each.row for each in found.rows),
        ),
        name="shortcut",
    )


def probe_table(probes: Sequence[Probe], spec: EvaluationSpec) -> Table:
    """Return what linear probes of frozen features tell, a row a column and group."""
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
        "What a linear probe tells from the features",
        ("column, cases", "AUC", "accuracy", "always the commonest value", "note"),
        body,
        (
            interval_legend(spec),
            f"Logistic regression with a ridge of {PENALTY:g} on the frozen features that the classifier "
            f"reads, fitted and tested on the test cases in {FOLDS} folds of patients. Of more than two "
            "values the AUC is the mean of each against the rest, over pairs of a fold. The intervals take "
            f"the probes as fitted. Values of fewer than {FEWEST_PATIENTS} patients are left out.",
            "Over all sites a probe may tell a column by what else differs between sites: read it within a "
            "site group. That a probe tells it does not say that the network's own head uses it.",
            *_leaks(probe.accuracy for probe in probes),
        ),
        name="probes",
    )


def temperature_table(temperature: Estimate, changes: Sequence[Difference], spec: EvaluationSpec) -> Table:
    """Return each measure of calibration before and after the temperature, a row a group and measure.

    Where no temperature is best, what it would change is left out.
    """
    notes = [
        f"Temperature {_temperature(temperature)}, fitted on the validation part (n={temperature.n}/"
        f"{temperature.patients}) to the smallest log loss; above 1 it takes confidence back.",
        interval_legend(spec),
        "The calibration error of few cases is above 0 by chance alone, and that of a resample more so"
        + ("." if math.isnan(temperature.value) else ": read the change."),
        *_leaks(each.first for each in changes),
    ]
    names = [f"{each.first.group}, {metric_of(each.first.metric).title}" for each in changes]
    if math.isnan(temperature.value):
        rows = tuple((name, cell(each.first)) for name, each in zip(names, changes, strict=True))
        title, columns = "Calibration", ("test cases, measure", "as predicted")
        return Table(title, columns, rows, tuple(notes), name="calibration_temperature")
    return Table(
        "Calibration before and after a temperature",
        ("test cases, measure", "before", "after", "change"),
        tuple(
            (name, cell(each.first), cell(each.second), _change(each.change))
            for name, each in zip(names, changes, strict=True)
        ),
        (*notes, "The intervals after take the temperature as given."),
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
