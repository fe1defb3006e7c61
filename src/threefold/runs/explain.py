"""What a finished run goes by: where its network looks, and what turns its decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from threefold.checksums import verify_table, write_table
from threefold.cohorts.failures import left_out_notes, write_failures
from threefold.cohorts.splits import read_split
from threefold.csv_tables import as_numbers, frame_text
from threefold.errors import PredictionsError
from threefold.evaluation.groups import natural_order
from threefold.reporting.attention_figures import AttentionPicture, attention_figure, plane_of
from threefold.reporting.evidence_tables import EvidenceTable, evidence_tables, write_evidence_tables
from threefold.reporting.figures import save
from threefold.reporting.results import Entry, Part, pictures_of, write_part
from threefold.run import RunFolder, or_removed
from threefold.runs.evaluate import cohort_of_run, read_run_predictions
from threefold.runs.probe import Probed, probe_run
from threefold.validation import read_table

if TYPE_CHECKING:
    from threefold.cohorts.cohort import Case, Cohort
    from threefold.inference.evidence import Explainer

Progress = Callable[[int, int], None]

FAILED_NAME = "evidence_failed.csv"
"""Of the test cases that could not be used, among a run's tables; absent where there are none."""
_PICTURES = 3
"""Cases of a site group that are drawn."""


@dataclass(frozen=True)
class Explanation:
    """What `explain_run` found and wrote.

    Attributes:
        evidence: by case id; NaN where a case has none.
        tables: of the numbers.
        notes: what has no number, and why, in sentences.
        probed: what else was asked of the run.
        files: every file that was written.
        left_out: why test cases could not be used, by id; they are in no number.
    """

    evidence: pd.DataFrame
    tables: tuple[EvidenceTable, ...]
    notes: tuple[str, ...]
    probed: Probed
    files: tuple[Path, ...]
    left_out: Mapping[str, str]


def explain_run(
    run: RunFolder,
    cohort: Cohort | None = None,
    *,
    task: str | None = None,
    device: str = "cpu",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Explanation:
    """Look into the test cases of a finished run that classifies; write RUN/evidence.csv, tables, a figure.

    What `probe_run` finds (the diagnosis by the shortcut's values, probes, calibration) is written as well.

    Attention is held against the lesion that is known of each case: the truth that a phantom keeps apart, of
    all its sites, else the cohort's mask, reference or structures. The cases of a phantom with
    switches (head-ct: clip and hypodensities; object-background: background and outline) are rendered again
    with the shortcut switched and with the marker switched, the noise the same, and prepared as the run's
    images are. Images larger than the network's grid, which are predicted in parts, have none of this.
    A case whose files can't be used is left out; RUN/tables/evidence_failed.csv says which and why.
    Tables and a figure that an earlier call left, and that there are not now, are removed. evidence.csv is
    written last: where it is, all is.

    Args:
        run: a finished run.
        task: of several classification tasks the one whose decision is explained, by its name or its
            target's; None: the first.
        cohort: that it was trained on; None: where it was then.
        device: for the network.
        batch_size: slices a pass; volumes go one at a time.
        progress: told of the cases done.

    Raises:
        RunError: not a run, not finished, or without a classification.
        CohortError: the cohort was moved or changed, or can't be rendered again.
        ImageError: no test case can be read.
    """
    from threefold.inference.evidence import Explainer, explain_cases
    from threefold.inference.predictor import Predictor

    predictions = read_run_predictions(run)
    cohort = cohort_of_run(run, cohort)
    explainer = Explainer.of(Predictor.from_run(run.path, device=device), cohort, run.masks, task)
    cases = read_split(run.split).cases(explainer.cohort, "test")
    explained = explain_cases(explainer, cases, batch_size=batch_size, progress=progress)
    evidence, larger = explained.evidence, explained.larger
    spec = explainer.predictor.experiment.evaluation
    tables = evidence_tables(evidence, predictions, spec, things=explainer.things, larger=larger)
    files = list(write_evidence_tables(tables, run.tables))
    figure = attention_figure(dict(_pictures(explainer, cases, evidence)))
    files += [save(one, path) for path, one in or_removed(run.figures, ".png", {"attention": figure})]
    probed = probe_run(run, task=task, cohort=cohort, device=device, batch_size=batch_size)
    left_out = {**probed.left_out, **explained.failed}
    write_failures(run.tables / FAILED_NAME, left_out)
    blind = explainer.blind
    notes = (
        *((f"Nothing is said of attention. {blind}",) if blind else ()),
        *left_out_notes(explained.failed, len(cases)),
        *_notes(explainer, len(evidence), larger, measured=bool(tables)),
    )
    part = Part(
        facts={"switched": dict(explainer.things), "notes": list(notes), "left_out": dict(explained.failed)},
        numbers=tuple(Entry(row) for table in tables for row in table.rows),
        tables=tuple(table.table for table in tables),
        pictures=pictures_of(files),
    )
    write_part(run.path, "explain", part)
    write_table(run.evidence, frame_text(evidence, index=True))
    return Explanation(evidence, tables, notes, probed, (*files, *probed.files, run.evidence), left_out)


def read_evidence(run: RunFolder) -> pd.DataFrame:
    """Return a run's table of evidence by case id; empty where `explain_run` has not been called.

    Raises:
        PredictionsError: the table is damaged.
    """
    again = f"Remove it and run `threefold explain {run.path}`."
    verify_table(run.evidence, PredictionsError, again)
    if not run.evidence.is_file():
        return pd.DataFrame()
    table = read_table(run.evidence, PredictionsError, again)
    try:
        if table["case_id"].duplicated().any():
            raise ValueError("a case is there twice")
        return as_numbers(table.astype({"case_id": str}).set_index("case_id"))
    except (ValueError, KeyError, TypeError) as error:
        raise PredictionsError(f"{run.evidence}: can't be read ({error}). {again}") from error


def _notes(explainer: Explainer, cases: int, larger: int, *, measured: bool) -> Iterator[str]:
    """Yield how many of the test cases are larger than the grid, and why nothing at all was measured."""
    if larger:
        size = " x ".join(map(str, explainer.predictor.experiment.data.preprocessing.size))
        yield (
            f"{larger} of {cases} test cases are larger than the network's grid ({size}) and are predicted "
            "in parts: nothing is said of attention, counterfactuals and truth in them."
        )
    if cases > larger and not measured:
        whose = f"None of the other {cases - larger} test cases" if larger else "No test case"
        yield f"{whose} has a known lesion, and the cohort can't be rendered again."


def _pictures(
    explainer: Explainer, cases: Sequence[Case], evidence: pd.DataFrame
) -> Iterator[tuple[str, list[AttentionPicture]]]:
    """Yield of each site group cases from best to worst attention, each with the shortcut switched too."""
    if "share_inside" not in evidence:
        return
    spec = explainer.cohort.spec
    groups = {case.case_id: spec.site_group(case.site) or "all sites" for case in cases}
    by_id = {case.case_id: case for case in cases}
    for group in natural_order({*groups.values()}):
        chosen = evidence["share_inside"][[groups[str(name)] == group for name in evidence.index]].dropna()
        ordered = chosen.sort_values(ascending=False, kind="stable").index
        places = np.unique(np.linspace(0, max(len(ordered) - 1, 0), _PICTURES).round().astype(int))
        names = [str(ordered[place]) for place in places if len(ordered)]
        yield group, [picture for name in names for picture in _pictures_of(explainer, by_id[name])]


def _pictures_of(explainer: Explainer, case: Case) -> Iterator[AttentionPicture]:
    """Yield a case as it is and, of a phantom, with the shortcut switched."""
    one = explainer.prepare(case)
    lesion = explainer.lesion(case, one)
    variants = [("", one.array)]
    if case.case_id in explainer.phantoms:
        has_it = explainer.phantoms[case.case_id].has("shortcut")
        variants = [
            (f", {'with' if has_it else 'without'} shortcut", one.array),
            (f", {'without' if has_it else 'with'} shortcut", explainer.switched(case, one, "shortcut")),
        ]
    classes = explainer.question.classes
    known = case.targets.get(explainer.question.target or "label")
    label = "no label" if known is None else classes[known]
    for (words, array), found in zip(variants, explainer.look([a for _, a in variants]), strict=True):
        shown = plane_of(lesion, found.map.shape)
        chance = found.probabilities[found.decided]
        yield AttentionPicture(
            f"{case.case_id}{words}\nis {label}; p({classes[found.decided]}) = {chance:.2f}",
            shown(array[0]),
            shown(found.map),
            None if lesion is None else shown(lesion),
        )
