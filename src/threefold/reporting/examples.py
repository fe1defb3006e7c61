"""Which test cases are looked at: volumes to be drawn, and the best, the worst and the most wrong by name."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.cohorts.cohort import Case, Cohort, CohortSpec
from threefold.cohorts.targets import read_mask, read_structures
from threefold.errors import ImageError
from threefold.evaluation.overlap import dice
from threefold.evaluation.predictions import MASK_COLUMNS, Predictions, probability_column
from threefold.evaluation.structures import MEAN, structure_values, tells_structures
from threefold.experiment import PreprocessingSpec
from threefold.file_names import case_stem
from threefold.images.geometry import Image, describe_difference
from threefold.images.preprocessing import canonical, place, windows_of
from threefold.images.reading import read_image, read_label_map
from threefold.images.writing import label_map_suffix
from threefold.reporting.figures import Example
from threefold.reporting.table import Table
from threefold.reporting.volume_figures import Labels, VolumeExample

DISAGREEMENT, BEST, WORST = "disagreement", "best", "worst"
UNLABELLED = "all"
_TITLE_WIDTH = 90  # letters


def choose_volumes(
    predictions: Predictions, cohort: Cohort, trained: CohortSpec, masks: Path
) -> dict[str, list[Example | VolumeExample]]:
    """Return the test case of median Dice of each class, the best, the worst, and a disagreement.

    The Dice is the mean over structures where there are any, else the mask's; where a class has none, its
    first case stands for it. The best and the worst are of all classes. Of the cases whose topology and
    classifier disagree the one is taken of whose diagnosis the classifier is surest. A case without image,
    or with neither truth nor prediction, gives way to the next.

    Args:
        predictions: the table.
        cohort: where the cases' images and targets are.
        trained: meaning of the cohort trained on, whose structures the predicted labels are.
        masks: folder of the predicted masks.

    Returns:
        By class name (UNLABELLED where no case has a class), BEST, WORST and DISAGREEMENT.
    """
    cases = {case.case_id: case for case in cohort.cases}
    test = predictions.part("test")
    test = test[test["case_id"].isin(list(cases))]
    test = test.assign(quality=case_dice(test, predictions))
    groups = {name: test[test["label"] == name] for name in cohort.spec.classes}
    if not any(len(rows) for rows in groups.values()):
        groups = {UNLABELLED: test}
    wanted = [(name, _from_median(rows)) for name, rows in groups.items()]
    ranked = test[test["quality"].notna()].sort_values("quality", kind="stable")
    wanted += [(BEST, ranked.iloc[::-1]), (WORST, ranked), (DISAGREEMENT, _disagreements(test, predictions))]
    examples: dict[str, list[Example | VolumeExample]] = {}
    for name, rows in wanted:
        example = _first(rows, cases, predictions, cohort.spec, trained, masks)
        if example is not None:
            examples.setdefault(name, []).append(example)
    return examples


def case_dice(rows: pd.DataFrame, predictions: Predictions) -> NDArray[np.float64]:
    """Return each case's mean Dice over structures, else its mask's, (n,); NaN where neither is known."""
    by_mask = dice(*(rows[name].to_numpy(float) for name in MASK_COLUMNS))
    if predictions.structures is None:
        return by_mask
    values = structure_values(predictions.structures, list(rows["case_id"]))
    means = values.get(("structure_dice", MEAN), np.full(len(rows), np.nan))
    return np.where(np.isnan(means), by_mask, means)


def _from_median(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows from the one of median Dice (of two the lower) outwards; those without Dice last."""
    ordered = rows.sort_values("quality", kind="stable")
    middle = (int(ordered["quality"].notna().sum()) - 1) // 2
    distance = np.abs(np.arange(len(ordered)) - max(middle, 0))
    distance[ordered["quality"].isna()] += len(ordered)
    return ordered.iloc[np.argsort(distance, kind="stable")]


def _disagreements(rows: pd.DataFrame, predictions: Predictions) -> pd.DataFrame:
    """Return the cases whose topology and classifier disagree, the surest diagnosis first."""
    if "agrees" not in rows or not predictions.classes:
        return rows.iloc[:0]
    differ = rows[rows["agrees"] == "no"]
    surest = differ[[probability_column(name) for name in predictions.classes]].max(axis=1)
    return differ.loc[surest.sort_values(ascending=False, kind="stable").index]


def _first(
    rows: pd.DataFrame,
    cases: Mapping[str, Case],
    predictions: Predictions,
    spec: CohortSpec,
    trained: CohortSpec,
    masks: Path,
) -> VolumeExample | None:
    for _, row in rows.iterrows():
        try:
            structured = tells_structures(predictions)
            example = _read(cases[row["case_id"]], spec, trained, masks, structured=structured)
        except ImageError:
            continue  # a report must not fail because scans were moved
        if example.maps:
            return replace(example, title=_title(row, predictions))
    return None


def _title(row: pd.Series, predictions: Predictions) -> str:
    """Return id, diagnosis and Dice; below them what the classifier and the topology say."""
    label, quality = str(row["label"]), float(row["quality"])
    first = f"{row['case_id']}: {label or 'no diagnosis'}"
    if np.isfinite(quality):
        first += f", {'mean Dice' if tells_structures(predictions) else 'Dice'} {quality:.2f}"
    said = []
    if predictions.classes:
        chances = {name: float(row[probability_column(name)]) for name in predictions.classes}
        decided = max(chances, key=chances.__getitem__)
        shown = [name for name in dict.fromkeys((decided, label)) if name in chances]
        said.append(f"classifier says {', '.join(f'p({name}) {chances[name]:.2f}' for name in shown)}")
    arch, spoken = (
        text if isinstance(text := row.get(name), str) else "" for name in ("arch", "topology_class")
    )
    if arch:
        said.append(f"topology says {spoken} ({arch})" if spoken else f"topology: {arch}")
    if row.get("agrees") == "no":
        said.append("they disagree")
    return "\n".join((first, *textwrap.wrap("; ".join(said), _TITLE_WIDTH)))


def _read(
    case: Case, spec: CohortSpec, trained: CohortSpec, masks: Path, *, structured: bool
) -> VolumeExample:
    """Read a case's image, truth and prediction, in canonical order.

    Args:
        case, spec: the case and its cohort's meaning.
        trained: names the predicted labels.
        masks: folder of the predicted masks.
        structured: the predicted labels are structures, not a mask.

    Raises:
        ImageError: the image can't be read, or is no volume.
    """
    image = read_image(case.image, slice_index=case.slice_index, spacing=spec.spacing)
    if image.array.ndim != 3:
        raise ImageError(f"{case.image}: has shape {image.array.shape}; expected a volume.")
    placement = place(image, image.array.shape)
    low, high = windows_of(
        image, PreprocessingSpec(), unit=spec.intensity.unit, window=spec.intensity.window
    )[0]
    mask_name = spec.mask.name if spec.mask is not None else "mask"
    names = (*trained.structures, mask_name) if structured else (mask_name,)
    truth, predicted = _truth(case, image, spec, len(names), structured), _predicted(case, image, spec, masks)
    if predicted is not None and predicted.max(initial=0) > len(names):
        predicted = None  # of another run
    i, j, k = (image.spacing[axis] for axis in placement.axes)
    grey = canonical(np.asarray(image.array), placement).astype(np.float32)
    return VolumeExample(
        title=case.case_id,
        image=np.clip((grey - low) / (high - low), 0, 1),
        truth=None if truth is None else canonical(truth, placement),
        predicted=None if predicted is None else canonical(predicted, placement),
        names=names,
        spacing=(i, j, k),
    )


def _truth(case: Case, image: Image, spec: CohortSpec, whole: int, structured: bool) -> Labels | None:
    """Return the reference, else the structures, else the mask, whose label is `whole`."""
    for path in (case.reference, case.structures) if structured else ():
        if path is not None and path.is_file():
            try:
                return read_structures(path, case.slice_index, image, spec).array.astype(np.uint8)
            except ImageError:
                continue
    if case.mask is None or spec.mask is None:
        return None
    try:
        inside = read_mask(case.mask, case.slice_index, image, spec).array
    except ImageError:
        return None
    return np.where(inside != 0, whole, 0).astype(np.uint8)


def _predicted(case: Case, image: Image, spec: CohortSpec, masks: Path) -> Labels | None:
    try:
        labels = read_label_map(
            masks / f"{case_stem(case.case_id)}{label_map_suffix(image)}", spacing=spec.spacing
        )
    except ImageError:
        return None
    if describe_difference(image.array.shape, image.affine, labels.array.shape, labels.affine) is not None:
        return None
    return labels.array.astype(np.uint8)


Floats = NDArray[np.float64]
_SHOWN = 5
_COLUMNS = ("case", "site", "diagnosis")


def extreme_tables(predictions: Predictions, threshold: float | None) -> tuple[Table, ...]:
    """Return the best and the worst test cases by Dice, and those whose diagnosis was most wrong.

    The Dice is the mean over structures where there are any, else the mask's. Tables without a case are left
    out.

    Args:
        predictions: the table.
        threshold: of the positive class of two; None: the most probable class is decided.
    """
    tables = (_by_dice(predictions), _by_diagnosis(predictions, threshold))
    return tuple(table for table in tables if table is not None)


def _by_dice(predictions: Predictions) -> Table | None:
    test = predictions.part("test")
    test = test.assign(quality=case_dice(test, predictions))
    ranked = test[test["quality"].notna()].sort_values("quality", kind="stable", ascending=False)
    if ranked.empty:
        return None
    word = "mean Dice" if tells_structures(predictions) else "Dice"
    shown = ranked
    if len(ranked) > 2 * _SHOWN:
        shown = pd.concat([ranked.head(_SHOWN), ranked.tail(_SHOWN)])
    places = {case: place for place, case in enumerate(ranked["case_id"], start=1)}
    return Table(
        title=f"Best and worst cases by {word}",
        columns=(*_COLUMNS, word, "place"),
        rows=tuple(
            (*_who(row), f"{row['quality']:.3f}", f"{places[row['case_id']]} of {len(ranked)}")
            for _, row in shown.iterrows()
        ),
        notes=(f"Test cases with a {word}, the worst last.",),
        name="cases.dice",
    )


def _by_diagnosis(predictions: Predictions, threshold: float | None) -> Table | None:
    test = predictions.part("test")
    test = test[test["label"] != ""]
    if test.empty or not predictions.classes:
        return None
    chances = test[[probability_column(name) for name in predictions.classes]].to_numpy(np.float64)
    true = np.array([predictions.classes.index(name) for name in test["label"]])
    positive = predictions.positive_index
    if positive is None or threshold is None:
        decided, support = chances.argmax(axis=1), chances
        said = "The cases with the lowest probability of the true class"
    else:
        is_positive = chances[:, positive] >= threshold
        decided = np.where(is_positive, positive, 1 - positive)
        support = _from_the_cut(chances[:, positive], threshold, positive)
        said = f"The cases furthest on the wrong side of p({predictions.positive}) >= {threshold:.3g}"
    worst = np.argsort(support[np.arange(len(test)), true], kind="stable")[:_SHOWN]
    return Table(
        title="Most confident wrong diagnoses",
        columns=(*_COLUMNS, "its probability", "decided"),
        rows=tuple(
            (
                *_who(test.iloc[place]),
                f"{chances[place, true[place]]:.3f}",
                predictions.classes[int(decided[place])],
            )
            for place in worst.tolist()
        ),
        notes=(f"{said}, of {len(test)} labelled test cases.",),
        name="cases.diagnosis",
    )


def _from_the_cut(chance: Floats, threshold: float, positive: int) -> Floats:
    """Return how much p (n,) speaks for each of two classes, (n, 2): 0.5 at the threshold, 1 when certain."""
    below = chance / max(2 * threshold, np.finfo(np.float64).tiny)
    above = 1 - (1 - chance) / max(2 * (1 - threshold), np.finfo(np.float64).tiny)
    of_positive = np.where(chance < threshold, below, above)
    both = (of_positive, 1 - of_positive) if positive == 0 else (1 - of_positive, of_positive)
    return np.stack(both, axis=1)


def _who(row: pd.Series) -> tuple[str, str, str]:
    return str(row["case_id"]), str(row["site"]) or "not known", str(row["label"]) or "not known"
