"""The tables of an evaluation: by group, site, class, structure; shifts; variants and steps side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from threefold.csv_tables import frame_text
from threefold.evaluation.estimate import Difference, Estimate
from threefold.evaluation.evaluate import Evaluation, confusion_name
from threefold.evaluation.groups import GroupKind, Level
from threefold.evaluation.metrics import metric_of, metrics, shown_in
from threefold.evaluation.overlap import POLICY
from threefold.evaluation.paired import Gain
from threefold.evaluation.predictions import Predictions, probability_column
from threefold.evaluation.structure_measures import POLICY as STRUCTURE_POLICY
from threefold.evaluation.structure_measures import UNION
from threefold.evaluation.structures import MEAN
from threefold.experiment import EvaluationSpec
from threefold.reporting.results import Entry, Part, part_json
from threefold.reporting.table import (
    LEAK_MARK,
    LEAK_NOTE,
    Number,
    Table,
    after,
    cell,
    legend,
    page,
    variant_legend,
)
from threefold.run import write_atomically

_LEVELS: Mapping[Level, str] = {"case": "per case", "patient": "per patient"}


def evaluation_tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """Return, per case and per patient, the metrics by group and by site; per case, the confusion of several
    classes and the structures."""
    tables = []
    for level, words in _LEVELS.items():
        rows = [row for row in evaluation.rows if row.level == level]
        if any(row.n for row in rows):
            tables.append(_by_group(evaluation, rows, words))
            if any(row.group_kind == "site" for row in rows):
                tables.append(_by_site(evaluation, rows, words))
    confused = confusion_table(evaluation)
    return (*tables, *((confused,) if confused is not None else ()), *structure_tables(evaluation))


def comparison_table(evaluations: Mapping[str, Evaluation], level: Level = "case") -> Table:
    """Return variants side by side in the paper's layout: per site group F1 and AUC (without a diagnosis:
    Dice and missed lesions), one row a variant.

    Args:
        evaluations: by the variant's name, in order.
        level: what is counted.
    """
    rows = [row for evaluation in evaluations.values() for row in evaluation.rows]
    groups = list(dict.fromkeys(row.group for row in rows if row.group_kind == "site group"))
    kind, names = ("site group", groups) if groups else ("all", ["all"])
    shown = shown_in("paper")
    diagnosed = any(row.metric in shown for row in rows)
    if not diagnosed:
        shown = ("dice", "missed_lesions")
    elif not any(evaluation.positive for evaluation in evaluations.values()):
        shown = ("balanced_accuracy", "auc")
    body = []
    for variant, evaluation in evaluations.items():
        cells = [
            cell(evaluation.find(metric, level=level, group_kind=kind, group=name))  # type: ignore[arg-type]
            for name in names
            for metric in shown
        ]
        body.append((variant, *cells))
    return Table(
        title=f"Variants by {kind}, {_LEVELS[level]}",
        columns=("variant", *(f"{name} {metric_of(m).title}" for name in names for m in shown)),
        rows=tuple(body),
        notes=variant_legend(evaluations, level),
    )


def comparison_tables(evaluations: Mapping[str, Evaluation]) -> tuple[Table, ...]:
    """Return variants side by side, in the papers' layouts: the diagnosis by site group; of several classes,
    each class; the structures by structure and by class. Tables that no variant has numbers for are left out.

    Args:
        evaluations: by the variant's name, in order.
    """
    rows = [row for evaluation in evaluations.values() for row in evaluation.rows]
    diagnosis = any(metric_of(row.metric).is_of_a_case for row in rows)
    by_class = diagnosis_variants(evaluations)
    return (
        *((comparison_table(evaluations),) if diagnosis else ()),
        *((by_class,) if by_class is not None else ()),
        *variant_tables(evaluations),
    )


def evaluation_part(
    evaluation: Evaluation, tables: Sequence[Table] = (), pictures: Sequence[str] = ()
) -> Part:
    """Return an evaluation as a part of results.json.

    Args:
        evaluation: whose numbers it has.
        tables: as they are read.
        pictures: names of the figures.
    """
    facts = {
        "threshold": evaluation.threshold,
        "threshold_source": evaluation.threshold_source,
        "classes": list(evaluation.classes),
        "positive": evaluation.positive,
        "leaks": evaluation.leaks,
        "overlap_policy": POLICY,
        "settings": evaluation.spec.model_dump(mode="json"),
        "notes": list(evaluation.notes),
        "left_out": dict(evaluation.left_out),
    }
    return Part(facts, tuple(map(Entry, evaluation.rows)), tuple(tables), tuple(pictures))


def evaluation_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation's facts and numbers as plain data, as results.json has them."""
    part = part_json(evaluation_part(evaluation))
    return {**part["facts"], "numbers": part["numbers"]}


def write_tables(evaluation: Evaluation, folder: Path) -> tuple[Path, ...]:
    """Write metrics.csv (long form) and metrics.md; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "metrics.csv": frame_text(evaluation.table),
        "metrics.md": page(evaluation_tables(evaluation)),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return tuple(folder / name for name in contents)


def write_comparison(evaluations: Mapping[str, Evaluation], folder: Path) -> tuple[Path, ...]:
    """Write the tables of variants, comparison.md, and every number of theirs, comparison.csv, whose column
    `variant` says whose it is; return their paths.

    Args:
        evaluations: by the variant's name, in order.
        folder: made where it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = pd.concat(
        [each.table.assign(variant=name) for name, each in evaluations.items()], ignore_index=True
    )
    numbers = numbers[["variant", *numbers.columns.drop("variant")]]
    contents = {
        "comparison.md": page(comparison_tables(evaluations)),
        "comparison.csv": frame_text(numbers),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return tuple(folder / name for name in contents)


def _by_group(evaluation: Evaluation, rows: Sequence[Estimate], words: str) -> Table:
    groups = list(
        dict.fromkeys((r.group_kind, r.group) for r in rows if r.group_kind in ("all", "site group"))
    )
    worst = {(r.metric, r.class_name): r for r in rows if r.group_kind == "worst site"}
    found = {(r.group_kind, r.group, r.metric, r.class_name): r for r in rows}
    body = []
    if evaluation.positive is not None and any(r.metric == "auc" for r in rows):
        counts = [_positives(found.get((kind, name, "auc", ""))) for kind, name in groups]
        body.append((f"Positive ({evaluation.positive})", *counts, *(("",) if worst else ())))
    lines = dict.fromkeys((r.metric, r.class_name) for r in rows)
    mask_alone = {name for metric, name in lines if metric_of(metric).of == "structure"} == {UNION}
    for metric, class_name in lines:
        if metric_of(metric).of == "structure" and class_name not in WHOLE:
            continue  # each structure has its line in `structure_tables`
        if mask_alone and metric_of(metric).as_of_mask and ("dice", "") in lines:
            continue  # the mask's own lines say it
        if metric == "confusion":
            continue  # has a table of its own
        cells = [cell(found.get((kind, name, metric, class_name))) for kind, name in groups]
        if worst:
            row = worst.get((metric, class_name))
            cells.append(after(f"{row.group}: ", cell(row)) if row and row.group else cell(row))
        body.append((title_of(metric, class_name, alone=mask_alone), *cells))
    return Table(
        title=f"Test cases by group, {words}",
        columns=("metric", *(name for _, name in groups), *(("worst site",) if worst else ())),
        rows=tuple(body),
        notes=_notes(evaluation, rows[0].level),
        name=f"groups.{rows[0].level}",
    )


def _by_site(evaluation: Evaluation, rows: Sequence[Estimate], words: str) -> Table:
    at_sites = {(r.group, r.metric): r for r in rows if r.group_kind == "site" and not r.class_name}
    there = [metric for _, metric in at_sites]
    shown = [name for name in shown_in("sites", there) if name in there]
    sites = dict.fromkeys(site for site, _ in at_sites)
    counted = evaluation.positive is not None and "auc" in shown
    return Table(
        title=f"Test cases by site, {words}",
        columns=("site", *(("positive",) if counted else ()), *(title_of(name, "") for name in shown)),
        rows=tuple(
            (
                site,
                *((_positives(at_sites.get((site, "auc"))),) if counted else ()),
                *(cell(at_sites.get((site, name))) for name in shown),
            )
            for site in sites
        ),
        notes=_notes(evaluation, rows[0].level),
        name=f"sites.{rows[0].level}",
    )


def _positives(row: Estimate | None) -> str:
    return "" if row is None else f"{row.positives} of {row.n}"


def _notes(evaluation: Evaluation, level: Level) -> tuple[str, ...]:
    notes = [*legend(evaluation, level)]
    if evaluation.threshold is not None:
        source = {
            "given": "as given",
            "validation": f"chosen on the validation part by {evaluation.spec.threshold}",
            "default": "by default",
        }[evaluation.threshold_source]
        notes.append(
            f"Positive ({evaluation.positive}) if its probability >= {evaluation.threshold:.4g}, {source}."
        )
    if level == "patient":
        notes.append(f"A patient's probability is the {evaluation.spec.patient_rule} over the cases.")
    if evaluation.find("dice", level=level) is not None:
        notes.append(
            f"Dice (policy {POLICY}): over the {level}s with a lesion, missed ones counting 0; {level}s with "
            "empty true masks count only in false alarms."
        )
    if any(r.level == level and not math.isnan(r.value) and math.isnan(r.low) for r in evaluation.rows):
        notes.append("[no interval]: the reason is in results.json.")
    return (*notes, *evaluation.notes, *((LEAK_NOTE,) if evaluation.leaks else ()))


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


WHOLE = (MEAN, UNION)
_OVER_STRUCTURES = "mean over structures"


def title_of(metric: str, class_name: str, *, alone: bool = False) -> str:
    """Return what a number is called: its metric, and the class or structure that it is about.

    Args:
        metric: its name.
        class_name: as in `Estimate`.
        alone: a mask is all that was predicted, so that its metrics need no structure's name.
    """
    title = metric_of(metric).title
    if alone and class_name == UNION:
        return title
    if metric_of(metric).of == "structure":
        return f"{title}, {class_name or _OVER_STRUCTURES}"
    return f"{title}, {class_name}" if class_name else title


def structure_tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """Return, per case, the metrics of each structure, and structures and topology by class; none without."""
    rows = [row for row in evaluation.rows if row.level == "case" and not metric_of(row.metric).is_of_a_case]
    names = dict.fromkeys(r.class_name for r in rows if metric_of(r.metric).of == "structure")
    if not names:
        return ()
    there = {row.metric for row in rows}
    columns = [name for name in shown_in("structures", (row.metric for row in rows)) if name in there]
    by_structure = Table(
        title="Structures, per case",
        columns=("structure", *(metric_of(name).title for name in columns)),
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
    f"Policy {STRUCTURE_POLICY}: over the cases with the structure; a missed one has Dice and clDice 0 and "
    "the image's diagonal as its distance. Betti errors are absolute differences. Union: all structures "
    "together, or the whole mask."
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
    if not any(metric_of(row.metric).of == "structure" for row in rows):
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
        title="For review: topology and classifier disagree",
        columns=("case", "arch", "topology says", "classifier says", "its probability", "diagnosis"),
        rows=tuple(
            (
                str(row["case_id"]),
                str(row.get("arch") or ""),
                str(row.get("topology_class") or ""),
                predictions.classes[k],
                f"{row[columns[k]]:.2f}",
                str(row["label"]) or "unknown",
            )
            for (_, row), k in zip(rows.iterrows(), decided.tolist(), strict=True)
        ),
        name="disagreements",
    )


def shift_table(rows: Sequence[Difference], spec: EvaluationSpec) -> Table | None:
    """Return metrics at two site groups and their difference, one row each; None without any.

    Args:
        rows: all against the same first group.
        spec: replicates and confidence.
    """
    if not rows:
        return None
    first, others = rows[0].first.group, list(dict.fromkeys(row.second.group for row in rows))
    several = len(others) > 1
    last = "other group" if several else others[0]
    return Table(
        title=f"Shift: {', '.join(others)} against {first}, per case",
        columns=("metric", first, last, f"{last} − {first}"),
        rows=tuple(
            (
                title_of(row.change.metric, ""),
                _value(row.first),
                after(f"{row.second.group}: " if several else "", _value(row.second)),
                _difference(row.change),
            )
            for row in rows
        ),
        notes=(
            f"[low, high]: {spec.confidence:.0%} interval over {spec.replicates} resamples of the patients "
            "of both groups independently; n: cases/patients.",
            *((LEAK_NOTE,) if any(row.change.leaks for row in rows) else ()),
        ),
        name="shift",
    )


def _digits(metric: str) -> int:
    return 3 if metric_of(metric).bounds[1] <= 2 else 2  # 0.123, but 12.34 mm or dB


def _value(at: Estimate) -> str:
    if not math.isfinite(at.value):
        return f"not estimable ({at.why})"
    digits, mark = _digits(at.metric), LEAK_MARK if at.leaks else ""
    shown = "[no interval]" if at.why else f"[{at.low:.{digits}f}, {at.high:.{digits}f}]"
    return Number(at, f"{at.value:.{digits}f}{mark}", shown, f"n={at.n}/{at.patients}")


def _difference(change: Estimate) -> str:
    if not math.isfinite(change.value):
        return f"not estimable ({change.why})"
    digits, mark = _digits(change.metric), LEAK_MARK if change.leaks else ""
    ends = f"[{change.low:+.{digits}f}, {change.high:+.{digits}f}]"
    shown = f"[no interval: {change.why}]" if change.why else ends
    return Number(change, f"{change.value:+.{digits}f}{mark}", shown)


def gain_table(gains: Sequence[Gain], spec: EvaluationSpec) -> Table:
    """Return the gain of each step, one row each."""
    return Table(
        title="Gain of each step, paired by case",
        columns=("measure", "step", "before", "after", "difference"),
        rows=tuple(
            (
                each.measure,
                f"{each.after} over {each.before}",
                f"{each.first.value:.3f}",
                f"{each.second.value:.3f}",
                _gain(each.change),
            )
            for each in gains
        ),
        notes=(
            f"[low, high]: {spec.confidence:.0%} interval of the difference over {spec.replicates} resamples "
            "of the patients; n: cases/patients with both values. Registration is measured on all registered "
            "cases, including those registered with their mask; the other steps on the test cases, whose "
            "masks are not used.",
            *((LEAK_NOTE,) if any(each.change.leaks for each in gains) else ()),
        ),
    )


def _gain(change: Estimate) -> str:
    count = f"n={change.n}/{change.patients}"
    if not change.n:
        return change.note
    interval = f"[{change.note}]" if change.why else f"[{change.low:+.3f}, {change.high:+.3f}]"
    return Number(change, f"{change.value:+.3f}{LEAK_MARK if change.leaks else ''}", interval, count)
