"""Tables of a diagnosis of more than two classes: which was taken for which, and variants side by side."""

from __future__ import annotations

from collections.abc import Mapping

from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation, confusion_name
from threefold.evaluation.metrics import shown_in
from threefold.reporting.structure_tables import title_of
from threefold.reporting.table import LEAK_NOTE, Table, after, cell, legend, variant_legend


def confusion_table(evaluation: Evaluation) -> Table | None:
    """Return which class the cases of each class were taken for; None without several classes.

    Rows are true classes. A cell has the number of cases, and their share of the true class with its
    interval.
    """
    classes = evaluation.classes
    cells = {
        (true, decided): evaluation.find("confusion", class_name=confusion_name(true, decided))
        for true in classes
        for decided in classes
    }
    if not any(cells.values()):
        return None
    return Table(
        title="Confusion, per case",
        columns=("truth", *(f"decided {name}" for name in classes)),
        rows=tuple((true, *(_counted(cells[true, decided]) for decided in classes)) for true in classes),
        notes=(
            "number of cases: their share of the true class.",
            *legend(evaluation, "case"),
            *((LEAK_NOTE,) if evaluation.leaks else ()),
        ),
        name="confusion",
    )


def _counted(row: Estimate | None) -> str:
    return cell(row) if row is None or not row.n else after(f"{row.positives}: ", cell(row))


def diagnosis_variants(evaluations: Mapping[str, Evaluation]) -> Table | None:
    """Return the diagnosis of variants side by side, each class apart; None without several classes.

    Args:
        evaluations: by the variant's name, in order.
    """
    classes = dict.fromkeys(
        name for each in evaluations.values() if each.positive is None for name in each.classes
    )
    if not classes:
        return None
    shown = [(metric, "") for metric in shown_in("variants")]
    shown += [(metric, name) for name in classes for metric in shown_in("of a class")]
    return Table(
        title="Variants by diagnosis, per case",
        columns=("metric", *evaluations),
        rows=tuple(
            (
                title_of(metric, name),
                *(cell(each.find(metric, class_name=name)) for each in evaluations.values()),
            )
            for metric, name in shown
        ),
        notes=variant_legend(evaluations, "case"),
    )
