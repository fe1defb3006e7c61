"""Tables for people and programs: metrics by group, metrics by site, variants side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from threefold.csv_tables import frame_text
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation
from threefold.evaluation.groups import Level
from threefold.evaluation.metrics import metrics, shown_in
from threefold.evaluation.overlap import POLICY
from threefold.evaluation.structure_measures import UNION
from threefold.reporting.diagnosis_tables import confusion_table, diagnosis_variants
from threefold.reporting.results import Entry, Part, part_json
from threefold.reporting.structure_tables import WHOLE, structure_tables, title_of, variant_tables
from threefold.reporting.table import LEAK_NOTE, Table, after, cell, legend, page, variant_legend
from threefold.run import write_atomically

PAPER_METRICS = ("f1", "auc")
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
    diagnosed = any(row.metric in PAPER_METRICS for row in rows)
    shown = PAPER_METRICS if diagnosed else ("dice", "missed_lesions")
    if diagnosed and not any(evaluation.positive for evaluation in evaluations.values()):
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
        columns=("variant", *(f"{name} {metrics()[m].title}" for name in names for m in shown)),
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
    diagnosis = any(metrics()[row.metric].is_of_a_case for row in rows)
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
    mask_alone = {name for metric, name in lines if metrics()[metric].of == "structure"} == {UNION}
    for metric, class_name in lines:
        if metrics()[metric].of == "structure" and class_name not in WHOLE:
            continue  # each structure has its line in `structure_tables`
        if mask_alone and metrics()[metric].as_of_mask and ("dice", "") in lines:
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
    shown = [name for name in shown_in("sites") if any(metric == name for _, metric in at_sites)]
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
            f"Positive ({evaluation.positive}) where its probability >= {evaluation.threshold:.4g}, {source}."
        )
    if level == "patient":
        notes.append(f"A patient's probability is the {evaluation.spec.patient_rule} over the cases.")
    if evaluation.find("dice", level=level) is not None:
        notes.append(
            f"Dice (policy {POLICY}): over the {level}s with a lesion, a missed one counting 0; those with "
            "empty true masks are in false alarms only."
        )
    if any(r.level == level and not math.isnan(r.value) and math.isnan(r.low) for r in evaluation.rows):
        notes.append("[no interval]: results.json says why.")
    return (*notes, *evaluation.notes, *((LEAK_NOTE,) if evaluation.leaks else ()))
