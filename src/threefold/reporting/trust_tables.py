"""Tables of how far predictions can be trusted: calibration, coverage and flagged images, by site."""

from __future__ import annotations

from collections.abc import Sequence

from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation
from threefold.evaluation.metrics import metric_of, shown_in
from threefold.evaluation.reliability import MEASURES, Reliability, Which
from threefold.experiment import EvaluationSpec
from threefold.reporting.results import Entry
from threefold.reporting.table import LEAK_NOTE, Table, after, cell, interval_legend

_KINDS = ("all", "site group", "site", "worst site")


def reliability_table(found: Sequence[Reliability], spec: EvaluationSpec) -> Table | None:
    """Return slope, intercept and calibration error, raw and calibrated, a row a group; None without any."""
    if not any(each.row.n for each in found):
        return None
    groups = list(dict.fromkeys((each.row.group_kind, each.row.group) for each in found))
    versions: list[Which] = list(dict.fromkeys(each.which for each in found))
    at = {(each.row.group_kind, each.row.group, each.row.metric, each.which): each.row for each in found}
    columns = [(name, which) for name in MEASURES for which in versions]
    return Table(
        "Calibration of the test cases",
        ("test cases", *(f"{metric_of(name).title}, {which}" for name, which in columns)),
        tuple((name, *(cell(at.get((kind, name, *column))) for column in columns)) for kind, name in groups),
        (
            interval_legend(spec),
            "Slope below 1: overconfident. Intercept above 0: the event is more frequent than predicted. "
            + (
                "Calibrated: at the temperature that was fitted on the validation part."
                if "calibrated" in versions
                else "The predictions have no calibrated probabilities."
            ),
            *((LEAK_NOTE,) if any(each.row.leaks for each in found) else ()),
        ),
        name="calibration_by_site",
    )


def coverage_table(evaluation: Evaluation, flagged: Sequence[Estimate]) -> Table | None:
    """Return the coverage of sets and intervals and the share of flagged images, a row a group; None without.

    Args:
        evaluation: of a table of predictions that has sets or intervals, or none.
        flagged: shares of images that are out of distribution.
    """
    shown = shown_in("trust")
    rows = [row for row in evaluation.rows if row.level == "case" and row.metric in shown] + [*flagged]
    rows = [row for row in rows if row.group_kind in _KINDS and not row.class_name]
    names = [name for name in (*shown, "flagged") if any(row.metric == name for row in rows)]
    if not names:
        return None
    found = {(row.group_kind, row.group, row.metric): row for row in rows if row.group_kind != "worst site"}
    worst = {row.metric: row for row in rows if row.group_kind == "worst site"}
    groups = list(dict.fromkeys((kind, group) for kind, group, _ in found))
    body = [(group, *(cell(found.get((kind, group, name))) for name in names)) for kind, group in groups]
    if worst:
        cells = (worst.get(name) for name in names)
        body.append(
            (
                "worst site",
                *(
                    "" if row is None else after(f"{row.group}: " if row.group else "", cell(row))
                    for row in cells
                ),
            )
        )
    nominal = f"{evaluation.spec.coverage:.0%}"
    return Table(
        f"Prediction sets and intervals, nominal coverage {nominal}, and images out of distribution",
        ("test cases", *(metric_of(name).title for name in names)),
        tuple(body),
        (
            interval_legend(evaluation.spec),
            f"{nominal} holds for new patients like the validation part's; at other sites the coverage is "
            "what is measured here. About 5 % of images like the validation cases are flagged.",
            *((LEAK_NOTE,) if evaluation.leaks else ()),
        ),
        name="coverage",
    )


def trust_entries(found: Sequence[Reliability], flagged: Sequence[Estimate]) -> tuple[Entry, ...]:
    """Return the numbers of the two tables that are none of the evaluation."""
    return (
        *(Entry(each.row, {"probabilities": each.which}) for each in found),
        *(Entry(row) for row in flagged),
    )
