"""What `evaluate` leaves: tables and figures of a table of predictions, and of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.cohorts.cohort import Case, Cohort, CohortSpec
from threefold.cohorts.samples import read_image_only
from threefold.cohorts.targets import read_mask
from threefold.evaluation.evaluate import Evaluation, evaluate
from threefold.evaluation.overlap import dice
from threefold.evaluation.predictions import Predictions, probability_column
from threefold.experiment import EvaluationSpec, PreprocessingSpec
from threefold.images.preprocessing import prepare_labels
from threefold.images.reading import read_label_map
from threefold.images.writing import label_map_suffix
from threefold.reporting.figures import (
    Example,
    calibration_figure,
    examples_figure,
    loss_figure,
    roc_figure,
    save,
    shift_figure,
)
from threefold.reporting.structure_tables import disagreement_table
from threefold.reporting.table import markdown
from threefold.reporting.tables import write_tables
from threefold.run import RunFolder, write_atomically

_EXAMPLES_PER_ROW = 6


@dataclass(frozen=True)
class Report:
    """An evaluation and the files that show it."""

    evaluation: Evaluation
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]


def write_report(
    predictions: Predictions,
    spec: EvaluationSpec,
    out: Path,
    *,
    threshold: float | None,
    history: Path | None = None,
    examples: Mapping[str, Sequence[Example]] | None = None,
) -> Report:
    """Evaluate predictions; write OUT/tables and OUT/figures.

    Args:
        predictions: the table.
        spec: replicates, confidence and rules.
        out: the folder that gets `tables` and `figures`.
        threshold: of the positive class; None: chosen on the table's validation part.
        history: metrics.csv of the training, for the loss curves.
        examples: pictures of cases, by row title.
    """
    evaluation = evaluate(predictions, spec, threshold=threshold)
    folder = RunFolder(out)
    drawn = {
        "roc": roc_figure(predictions, spec),
        "calibration": calibration_figure(predictions, spec),
        "shift": shift_figure(evaluation),
        "losses": loss_figure(pd.read_csv(history)) if history is not None and history.is_file() else None,
        "examples": examples_figure(examples) if examples else None,
    }
    figures = tuple(
        save(figure, folder.figures / f"{name}.png") for name, figure in drawn.items() if figure is not None
    )
    tables = write_tables(evaluation, folder.tables)
    disagreements = disagreement_table(predictions)
    path = folder.tables / "disagreements.md"
    if disagreements is not None:
        write_atomically(path, markdown(disagreements))
        tables = (*tables, path)
    elif path.is_file():
        path.unlink()  # of an earlier evaluation
    return Report(evaluation, tables, figures)


def choose_examples(
    predictions: Predictions,
    cohort: Cohort,
    trained: CohortSpec,
    preprocessing: PreprocessingSpec,
    masks: Path,
) -> dict[str, list[Example]]:
    """Return pictures of test cases by site group, from the best to the worst by Dice, truth beside
    prediction; a group without true masks by how wrong the diagnosis was.

    Cases whose files are gone are left out: a report must not fail because scans were moved.

    Args:
        predictions: the table.
        cohort: where the cases' images and masks are.
        trained: meaning of the cohort trained on, whose window shows the images.
        preprocessing: the network's grid, on which they are shown.
        masks: folder of the predicted masks.
    """
    if cohort.spec.dimensions != 2:
        return {}
    cases = {case.case_id: case for case in cohort.cases}
    test = predictions.part("test")
    test = test[test["case_id"].isin(list(cases))]
    groups = test["site_group"].where(test["site_group"] != "", "all sites")
    examples = {}
    for name, rows in test.groupby(groups, sort=False):
        shown = _spread(rows.assign(badness=_badness(rows, predictions)).sort_values("badness"))
        pictures = [
            _example(cases[row["case_id"]], row, predictions, cohort.spec, trained, preprocessing, masks)
            for _, row in shown.iterrows()
            if cases[row["case_id"]].image.exists()
        ]
        examples[str(name)] = pictures
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
    file = masks / f"{case.case_id}{label_map_suffix(image)}"
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
