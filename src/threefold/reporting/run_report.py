"""What `evaluate` leaves: tables and figures of a table of predictions, and of a run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.cohorts.cohort import Case, Cohort, CohortSpec
from threefold.cohorts.samples import read_image_only
from threefold.cohorts.targets import read_mask
from threefold.csv_tables import as_numbers
from threefold.errors import ImageError, RunError, bounded
from threefold.evaluation.by_task import KnownTasks
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation, evaluate
from threefold.evaluation.overlap import dice
from threefold.evaluation.predictions import Predictions, probability_column
from threefold.evaluation.reliability import flagged, reliability
from threefold.evaluation.shift import shifts
from threefold.experiment import EvaluationSpec, PreprocessingSpec
from threefold.file_names import case_stem
from threefold.images.preprocessing import prepare_labels
from threefold.images.reading import read_label_map
from threefold.images.writing import label_map_suffix
from threefold.paths import refuse_links_out
from threefold.reporting.examples import choose_volumes, extreme_tables
from threefold.reporting.figures import (
    Example,
    calibration_figure,
    confusion_figure,
    examples_figure,
    loss_figure,
    roc_figure,
    save,
    shift_figure,
)
from threefold.reporting.results import Entry, pictures_of, write_part
from threefold.reporting.table import Table, page
from threefold.reporting.tables import (
    disagreement_table,
    evaluation_part,
    evaluation_tables,
    shift_table,
    write_tables,
)
from threefold.reporting.task_reports import write_task_reports
from threefold.reporting.trust_tables import coverage_table, reliability_table, trust_entries
from threefold.reporting.volume_figures import VolumeExample, volume_figure
from threefold.run import RunFolder, or_removed, write_atomically
from threefold.validation import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES_PER_ROW = 6

Pictures = Mapping[str, Sequence[Example | VolumeExample]]
"""Cases to draw: slices by site group, a row each; volumes by class, a page each."""


@dataclass(frozen=True)
class Report:
    """An evaluation, the table of predictions that it is of, and the files that show it.

    Attributes:
        tasks: the main numbers of each task that has columns of its own.
        by_task: every number of each of them, by the task's name.
    """

    evaluation: Evaluation
    predictions: Predictions
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    tasks: tuple[Table, ...] = ()
    by_task: Mapping[str, tuple[Estimate, ...]] = field(default_factory=dict)


def write_report(
    predictions: Predictions,
    spec: EvaluationSpec,
    out: Path,
    *,
    threshold: float | None,
    history: Path | None = None,
    examples: Pictures | None = None,
    known: KnownTasks | None = None,
) -> Report:
    """Evaluate predictions; write OUT/tables, OUT/figures and, last, OUT/results.json.

    Tasks with columns of their own have the same in OUT/tasks/TASK.

    Args:
        predictions: the table.
        spec: replicates, confidence and rules.
        out: the folder that gets them.
        threshold: of the positive class; None: chosen on the table's validation part.
        history: metrics.csv of the training, for the loss curves.
        examples: pictures of cases.
        known: what the table does not say of tasks that have columns of their own.
    """
    report = _write_one(predictions, spec, out, threshold=threshold, history=history, examples=examples)
    tasks = write_task_reports(
        predictions.table,
        spec,
        out,
        known=known or KnownTasks(),
        leaks=predictions.leaks,
        write_one=lambda one, folder, cut: _write_one(one, spec, folder, threshold=cut).evaluation,
    )
    return replace(
        report,
        tasks=tuple(one.shown for one in tasks),
        by_task={one.task: one.rows for one in tasks},
    )


def _write_one(
    predictions: Predictions,
    spec: EvaluationSpec,
    out: Path,
    *,
    threshold: float | None,
    history: Path | None = None,
    examples: Pictures | None = None,
) -> Report:
    """Write what there is of the columns that no task has to itself."""
    refuse_links_out(out)
    evaluation = evaluate(predictions, spec, threshold=threshold)
    folder = RunFolder(out)
    slices = {
        name: [one for one in cases if isinstance(one, Example)] for name, cases in (examples or {}).items()
    }
    several = len(predictions.classes) > 2  # the tables have the counts of two
    drawn = {
        "roc": roc_figure(predictions, spec),
        "calibration": calibration_figure(predictions, spec),
        "shift": shift_figure(evaluation),
        "losses": _losses(history) if history is not None and history.is_file() else None,
        "confusion": confusion_figure(predictions, threshold=evaluation.threshold) if several else None,
        "examples": examples_figure(slices),
    }
    figures = tuple(save(figure, path) for path, figure in or_removed(folder.figures, ".png", drawn))
    if examples is not None:
        figures = (*figures, *_write_volumes(examples, folder.figures))
    tables = write_tables(evaluation, folder.tables)
    moved = shifts(predictions, spec, threshold=evaluation.threshold)
    extremes = extreme_tables(predictions, evaluation.threshold)
    honest, unlike = reliability(predictions, spec), flagged(predictions, spec)
    trust = (reliability_table(honest, spec), coverage_table(evaluation, unlike))
    further = {
        "trust": tuple(table for table in trust if table is not None),
        "shift": _if_there(shift_table(moved, spec)),
        "cases": extremes,
        "disagreements": _if_there(disagreement_table(predictions)),
    }
    texts = {name: page(shown) or None for name, shown in further.items()}
    for path, text in or_removed(folder.tables, ".md", texts):
        write_atomically(path, text)
        tables = (*tables, path)
    shown = (*evaluation_tables(evaluation), *(table for each in further.values() for table in each))
    part = evaluation_part(evaluation, shown, pictures_of(figures))
    differences = (each.change for each in moved)
    of_shift = (Entry(each, {"difference": f"{each.group} - {moved[0].first.group}"}) for each in differences)
    numbers = (*part.numbers, *of_shift, *trust_entries(honest, unlike))
    write_part(out, "evaluate", replace(part, numbers=numbers))  # last: all else is there
    return Report(evaluation, predictions, tables, figures)


def _if_there(table: Table | None) -> tuple[Table, ...]:
    return () if table is None else (table,)


def _write_volumes(examples: Pictures, folder: Path) -> Iterator[Path]:
    """Draw volumes, one after the other: volumes-<class>.png; remove those of an earlier evaluation."""
    earlier = {*folder.glob("volumes-*.png")}
    used: Counter[str] = Counter()
    for name, cases in examples.items():
        for example in cases:
            if isinstance(example, VolumeExample):
                stem = re.sub(r"[^\w.-]+", "-", f"volumes-{name}")
                used[stem] += 1
                path = folder / f"{stem}{f'-{used[stem]}' if used[stem] > 1 else ''}.png"
                yield save(volume_figure(example), path)
                earlier.discard(path)
    for path in earlier:
        path.unlink()


def choose_examples(
    predictions: Predictions,
    cohort: Cohort,
    trained: CohortSpec,
    preprocessing: PreprocessingSpec,
    masks: Path,
) -> dict[str, list[Example | VolumeExample]]:
    """Return pictures of test cases, truth beside prediction.

    Slices: by site group, from the best to the worst by Dice of those with a lesion; a group without true
    masks by how wrong the diagnosis was. Volumes: a typical case of each class, the best, the worst and a
    disagreement (`choose_volumes`).
    Cases whose files are gone or can't be read are left out: no number needs them any more.

    Args:
        predictions: the table.
        cohort: where the cases' images and masks are.
        trained: meaning of the cohort trained on, whose window shows the images.
        preprocessing: the network's grid, on which they are shown.
        masks: folder of the predicted masks.
    """
    if cohort.spec.dimensions != 2:
        return choose_volumes(predictions, cohort, trained, masks)
    cases = {case.case_id: case for case in cohort.cases}
    test = predictions.part("test")
    test = test[test["case_id"].isin(list(cases))]
    groups = test["site_group"].where(test["site_group"] != "", "all sites")
    examples: dict[str, list[Example | VolumeExample]] = {}
    for name, rows in test.groupby(groups, sort=False):
        ranked = rows.assign(badness=_badness(rows, predictions)).sort_values("badness")
        shown = _spread(ranked[ranked["badness"].notna()] if ranked["badness"].notna().any() else ranked)
        examples[str(name)] = []
        for _, row in shown.iterrows():
            case = cases[row["case_id"]]
            with suppress(ImageError):
                example = _example(case, row, predictions, cohort.spec, trained, preprocessing, masks)
                examples[str(name)].append(example)
    return examples


def _badness(rows: pd.DataFrame, predictions: Predictions) -> NDArray[np.float64]:
    """Return how wrong each row is: 1 - Dice where there are true masks, else 1 - p(true class)."""
    counts = rows[["mask_truth_voxels", "mask_predicted_voxels", "mask_overlap_voxels"]].to_numpy(float)
    by_mask = 1 - dice(*counts.T)
    if np.isfinite(by_mask).any():
        return by_mask
    wrong = np.zeros(len(rows))
    for name in predictions.classes:
        of_class = (rows["label"] == name).to_numpy()
        wrong[of_class] = 1 - rows[probability_column(name)].to_numpy(float)[of_class]
    return wrong


def _spread(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows from the first to the last, evenly spread."""
    places = np.unique(np.linspace(0, len(rows) - 1, _EXAMPLES_PER_ROW).round().astype(int))
    return rows.iloc[places]


def _example(
    case: Case,
    row: pd.Series,
    predictions: Predictions,
    spec: CohortSpec,
    trained: CohortSpec,
    preprocessing: PreprocessingSpec,
    masks: Path,
) -> Example:
    array, placement, image = read_image_only(case.image, case.slice_index, trained, preprocessing)
    truth = predicted = None
    if case.mask is not None and case.mask.exists():
        truth = prepare_labels(read_mask(case.mask, case.slice_index, image, spec), placement) > 0
    file = masks / f"{case_stem(case.case_id)}{label_map_suffix(image)}"
    if file.is_file():
        predicted = prepare_labels(read_label_map(file, spacing=spec.spacing), placement) > 0
    lines = [case.case_id]
    if predictions.positive is not None:
        chance = float(row[probability_column(predictions.positive)])
        lines.append(f"{row['label'] or 'no label'}, p({predictions.positive}) {chance:.2f}")
    if truth is not None:
        counts = (row[f"mask_{what}_voxels"] for what in ("truth", "predicted", "overlap"))
        lines.append(f"Dice {float(dice(*(np.array([float(c)]) for c in counts))[0]):.2f}")
    return Example("\n".join(lines), array[0], truth, predicted)


def _losses(history: Path) -> Figure | None:
    """Return the figure of a run's metrics.csv.

    Raises:
        RunError: it is damaged.
    """
    remedy = "Put it back, or remove it: the figure of the losses is then left out."
    table = read_table(history, RunError, remedy)
    try:
        return loss_figure(as_numbers(table))
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{history}: not losses by epoch ({bounded(str(error))}). {remedy}") from error


def comparison(reports: Sequence[tuple[str, Report]]) -> dict[str, Report]:
    """Return reports by name, a number added to names that come twice."""
    named: dict[str, Report] = {}
    for name, report in reports:
        unique, number = name, 2
        while unique in named:
            unique, number = f"{name} ({number})", number + 1
        named[unique] = report
    return named
