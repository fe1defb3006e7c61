"""Tables of what a run's network goes by: attention beside its baselines, and counterfactuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from threefold.csv_tables import frame_text
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evidence import BLOB, DRAWS, QUANTILE, ZERO_MAP, evidence_rows
from threefold.evaluation.metrics import BASELINES, metric_of, shown_in
from threefold.evaluation.predictions import Predictions
from threefold.experiment import EvaluationSpec
from threefold.reporting.results import Entry, frame_of
from threefold.reporting.table import LEAK_NOTE, Table, cell, page
from threefold.run import or_removed, write_atomically

_NAMES = ("attention", "counterfactuals", "truth")
"""Of every table that there may be."""


@dataclass(frozen=True)
class EvidenceTable:
    """A table to read, and the rows that it shows.

    Attributes:
        name: of its files.
        table: as text.
        rows: as numbers.
    """

    name: str
    table: Table
    rows: tuple[Estimate, ...]


def evidence_tables(
    evidence: pd.DataFrame,
    predictions: Predictions,
    spec: EvaluationSpec,
    *,
    things: Mapping[str, str],
    larger: int = 0,
) -> tuple[EvidenceTable, ...]:
    """Return the tables `attention`, `counterfactuals` and `truth`, each where some case has a number for it.

    Args:
        evidence: by case id.
        predictions: of the same run.
        spec: replicates, confidence and seed.
        things: what `shortcut` and `marker` are in this cohort, in words; empty where neither was switched.
        larger: test cases that have no evidence, because their images are larger than the network's grid.
    """
    notes = (
        f"[low, high]: {spec.confidence:.0%} interval over {spec.replicates} resamples of the patients; n: "
        "cases/patients.",
        *((f"Excluded: {larger} test cases larger than the network's grid.",) if larger else ()),
        *((LEAK_NOTE,) if predictions.leaks else ()),
    )
    found = []
    rows = evidence_rows(evidence, predictions, spec, (*shown_in("attention"), ZERO_MAP))
    if rows:
        found.append(EvidenceTable("attention", _attention(rows, (*_attention_notes(rows), *notes)), rows))
    rows = evidence_rows(evidence, predictions, spec, shown_in("counterfactuals"))
    if rows:
        found.append(EvidenceTable("counterfactuals", _counterfactuals(rows, things, notes), rows))
    rows = evidence_rows(evidence, predictions, spec, ("truth_dice",))
    if rows:
        found.append(EvidenceTable("truth", _truth(rows, notes), rows))
    return tuple(found)


def write_evidence_tables(tables: Sequence[EvidenceTable], folder: Path) -> tuple[Path, ...]:
    """Write each table as Markdown to read and as CSV to compute with; return the paths.

    Those that an earlier call left, and that there are not now, are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = dict.fromkeys(_NAMES) | {one.name: one for one in tables}
    texts, numbers = (tuple(or_removed(folder, suffix, content)) for suffix in (".md", ".csv"))
    for path, one in texts:
        write_atomically(path, page([one.table]))
    for path, one in numbers:
        write_atomically(path, frame_text(frame_of(map(Entry, one.rows))))
    return tuple(path for path, _ in (*texts, *numbers))


def _attention(rows: Sequence[Estimate], notes: tuple[str, ...]) -> Table:
    by_group = _by_group(rows)
    own = [name for name in shown_in("attention") if not name.endswith(tuple(filter(None, BASELINES)))]
    return Table(
        title="Attention inside the lesion, test cases",
        columns=("group", "", "network", "random maps", "centred blob"),
        rows=tuple(
            (group, metric_of(name).title, *(cell(found.get(f"{name}{end}")) for end in BASELINES))
            for group, found in by_group.items()
            for name in own
        ),
        notes=notes,
        name="attention",
    )


def _attention_notes(rows: Sequence[Estimate]) -> tuple[str, ...]:
    notes = [
        "Attention: Grad-CAM of the predicted class, on the network's grid. IoU: of the lesion and the "
        f"map's highest {1 - QUANTILE:.0%}. Random maps: uniform noise as coarse as the network's map, "
        f"{DRAWS} per case; centred blob: a Gaussian with a standard deviation of {BLOB:.2f} of each side."
    ]
    zero = [
        f"{row.group} {round(row.value * row.n)} of {row.n}"
        for row in rows
        if row.metric == ZERO_MAP and row.value > 0
    ]
    if zero:
        notes.append(
            "Cases with a lesion whose map is zero everywhere are excluded, also from the baselines: "
            f"{', '.join(zero)}."
        )
    return tuple(notes)


def _counterfactuals(rows: Sequence[Estimate], things: Mapping[str, str], notes: tuple[str, ...]) -> Table:
    named = " or ".join(f"the {name} ({what})" for name, what in things.items())
    return Table(
        title="Counterfactuals, test cases",
        columns=("group", *(metric_of(name).title for name in shown_in("counterfactuals"))),
        rows=tuple(
            (group, *(cell(found.get(name)) for name in shown_in("counterfactuals")))
            for group, found in _by_group(rows).items()
        ),
        notes=(
            f"Turned: proportion of cases whose decision at the run's threshold changes with {named}. p "
            "raised: probability of the positive class with it, minus without it. Everything else, including "
            "the noise, is the same.",
            *notes,
        ),
        name="counterfactuals",
    )


def _truth(rows: Sequence[Estimate], notes: tuple[str, ...]) -> Table:
    return Table(
        title="Masks against the ground truth of the phantom, test cases",
        columns=("group", "Dice"),
        rows=tuple((row.group, cell(row)) for row in rows),
        notes=("All sites, including those without masks in the cohort; cases with a lesion.", *notes),
        name="truth",
    )


def _by_group(rows: Sequence[Estimate]) -> dict[str, Mapping[str, Estimate]]:
    """Return the rows by group and metric, groups in their order."""
    found: dict[str, dict[str, Estimate]] = {}
    for row in rows:
        found.setdefault(row.group, {})[row.metric] = row
    return dict(found)
