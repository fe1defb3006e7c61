"""Tables of structures and topology: by structure, by class, variants side by side, cases to be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation
from threefold.evaluation.groups import GroupKind
from threefold.evaluation.metrics import metrics, shown_in
from threefold.evaluation.predictions import Predictions, probability_column
from threefold.evaluation.structure_measures import POLICY, UNION
from threefold.evaluation.structures import MEAN
from threefold.reporting.table import Table, cell, legend, variant_legend

WHOLE = (MEAN, UNION)
_OVER_STRUCTURES = "mean over structures"


def title_of(metric: str, class_name: str, *, alone: bool = False) -> str:
    """Return what a number is called: its metric, and the class or structure that it is about.

    Args:
        metric: its name.
        class_name: as in `Estimate`.
        alone: a mask is all that was predicted, so that its metrics need no structure's name.
    """
    title = metrics()[metric].title
    if alone and class_name == UNION:
        return title
    if metrics()[metric].of == "structure":
        return f"{title}, {class_name or _OVER_STRUCTURES}"
    return f"{title}, {class_name}" if class_name else title


def structure_tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """Return, per case, the metrics of each structure, and structures and topology by class; none without."""
    rows = [row for row in evaluation.rows if row.level == "case" and not metrics()[row.metric].is_of_a_case]
    names = dict.fromkeys(r.class_name for r in rows if metrics()[r.metric].of == "structure")
    if not names:
        return ()
    there = {row.metric for row in rows}
    columns = [name for name in shown_in("structures") if name in there]
    by_structure = Table(
        title="Structures, per case",
        columns=("structure", *(metrics()[name].title for name in columns)),
        rows=tuple(
            (
                name or _OVER_STRUCTURES,
                *(cell(evaluation.find(metric, class_name=name)) for metric in columns),
            )
            for name in sorted(names, key=WHOLE.__contains__)
        ),
        notes=(*legend(evaluation, "case"), _STRUCTURES_NOTE),
        name="structures",
    )
    return (by_structure, *_by_class(evaluation, rows))


_STRUCTURES_NOTE = (
    f"Policy {POLICY}: over the cases that truly have the structure; a missed one counts Dice and "
    "clDice 0 and the image's diagonal as its distance. Betti errors are absolute differences. Union: all "
    "structures together, or the whole mask."
)


def _by_class(evaluation: Evaluation, rows: Sequence[Estimate]) -> tuple[Table, ...]:
    classes = list(dict.fromkeys(r.group for r in rows if r.group_kind == "class"))
    if not classes:
        return ()
    wanted = [(m, w) for w in WHOLE for m in shown_in("structures")] + [(m, "") for m in _topology()]
    there = {(r.metric, r.class_name) for r in rows}
    return (
        Table(
            title="Structures and topology by class, per case",
            columns=("metric", "all", *classes),
            rows=tuple(
                (
                    title_of(metric, name),
                    cell(evaluation.find(metric, class_name=name)),
                    *(
                        cell(evaluation.find(metric, class_name=name, group_kind="class", group=group))
                        for group in classes
                    ),
                )
                for metric, name in wanted
                if (metric, name) in there
            ),
            notes=legend(evaluation, "case"),
            name="structures.class",
        ),
    )


def variant_tables(evaluations: Mapping[str, Evaluation]) -> tuple[Table, ...]:
    """Return variants side by side: Dice by structure, and structures and topology by class; none without.

    Args:
        evaluations: by the variant's name, in order.
    """
    rows = [row for evaluation in evaluations.values() for row in evaluation.rows]
    if not any(metrics()[row.metric].of == "structure" for row in rows):
        return ()
    return (_variants_by_structures(evaluations), _variants_by_class(evaluations))


def _variants_by_structures(evaluations: Mapping[str, Evaluation]) -> Table:
    names = dict.fromkeys(
        row.class_name
        for evaluation in evaluations.values()
        for row in evaluation.rows
        if row.metric == "structure_dice"
    )
    ordered = sorted(names, key=WHOLE.__contains__)
    return Table(
        title="Variants by structure: Dice, per case",
        columns=("structure", *evaluations),
        rows=tuple(
            (
                name or _OVER_STRUCTURES,
                *(cell(each.find("structure_dice", class_name=name)) for each in evaluations.values()),
            )
            for name in ordered
        ),
        notes=variant_legend(evaluations, "case"),
    )


def _variants_by_class(evaluations: Mapping[str, Evaluation]) -> Table:
    # In a diagnosis's own order, which a variant without classifier does not know.
    classes = dict.fromkeys(name for each in evaluations.values() for name in each.classes)
    classes |= dict.fromkeys(
        row.group for each in evaluations.values() for row in each.rows if row.group_kind == "class"
    )
    shown = [(metric, whole) for whole in WHOLE for metric in shown_in("structure variants")]
    shown += [(metric, "") for metric in _topology()]
    body = []
    for group in ("all", *classes):
        kind: GroupKind = "all" if group == "all" else "class"
        for metric, name in shown:
            found = [
                each.find(metric, class_name=name, group_kind=kind, group=group)
                for each in evaluations.values()
            ]
            if any(row is not None for row in found):
                body.append((f"{group}: {title_of(metric, name)}", *(cell(row) for row in found)))
    return Table(
        title="Variants by class: structures and topology, per case",
        columns=("class and metric", *evaluations),
        rows=tuple(body),
        notes=(*variant_legend(evaluations, "case"), _STRUCTURES_NOTE),
    )


def _topology() -> list[str]:
    return [name for name, metric in metrics().items() if metric.of == "topology"]


def disagreement_table(predictions: Predictions) -> Table | None:
    """Return the test cases whose topology and classifier say different things; None where none does."""
    test = predictions.part("test")
    if "agrees" not in test or not predictions.classes:
        return None
    rows = test[test["agrees"] == "no"]
    if rows.empty:
        return None
    columns = [probability_column(name) for name in predictions.classes]
    decided = rows[columns].to_numpy(float).argmax(axis=1)
    return Table(
        title="To be looked at: topology and classifier disagree",
        columns=("case", "arch", "topology says", "classifier says", "its probability", "diagnosis"),
        rows=tuple(
            (
                str(row["case_id"]),
                str(row.get("arch") or ""),
                str(row.get("topology_class") or ""),
                predictions.classes[k],
                f"{row[columns[k]]:.2f}",
                str(row["label"]) or "not known",
            )
            for (_, row), k in zip(rows.iterrows(), decided.tolist(), strict=True)
        ),
        name="disagreements",
    )
