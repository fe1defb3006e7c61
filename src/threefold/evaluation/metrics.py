"""The metrics: each is one object with its definition, computation and the tables that show it.

A metric is computed in one of three ways, each for R weightings of n cases at once (ones for the value, the
counts of a bootstrap replicate for its interval):

- for a diagnosis, from one class against the rest (`of_class`) and, with more than two classes, from all of
  them (`of_classes`; without it the mean over the classes);
- as the mean over cases of the values that `of_cases` computes from the table of predictions;
- as the mean over cases of the values that `of_structures` computes from the table of structures.

Others are means of a column of a run's evidence, which `explain` writes under the metric's name. A metric of
one's own is such an object in any module, computed where `evaluation.metrics` or a claim names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.core.registry import find, listed
from threefold.errors import ExperimentError
from threefold.evaluation import overlap
from threefold.evaluation.classification import (
    WeightedClass,
    WeightedClasses,
    accuracy,
    balanced_accuracy,
    f1,
    sensitivity,
    specificity,
)
from threefold.evaluation.predictions import (
    MASK_COLUMNS,
    NUMBER_COLUMNS,
    PREDICTION_SET,
    SET_SEPARATOR,
    VOLUME_INTERVAL,
)

Floats = NDArray[np.float64]
Needs = Literal["cases", "positives", "negatives", "both"]
Of = Literal["diagnosis", "mask", "reconstruction", "structure", "topology", "evidence", "number"]
View = Literal[
    "headline",
    "sites",
    "drawn",
    "shift",
    "values",
    "means",
    "variants",
    "of a class",
    "structures",
    "structure variants",
    "attention",
    "counterfactuals",
    "findings",
    "task",
    "paper",
    "trust",
]
Task = Literal["classification", "segmentation", "reconstruction", "regression"]
_TASKS: Mapping[Of, Task] = {
    "diagnosis": "classification",
    "mask": "segmentation",
    "reconstruction": "reconstruction",
    "structure": "segmentation",
    "topology": "segmentation",
    "evidence": "classification",
    "number": "regression",
}


class Cells(Protocol):
    """Columns of a table of structures by structure and case, (S, n); NaN where a case has no such row."""

    def __call__(self, column: str) -> Floats:
        """Return a column."""
        ...

    @property
    def there(self) -> NDArray[np.bool_]:
        """Whether the structure is present in the truth, (S, n)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric.

    Attributes:
        name: name in files.
        title: title in tables, with its unit if it has one.
        of: the kind of prediction that it measures.
        higher_is_better: False for errors and failure rates; None: neither, and there is no worst site.
        needs: the cases without which a metric of a diagnosis is undefined.
        bounds: range of its values.
        is_share: a proportion of the cases it needs, so that 0 of k and k of k have an exact interval.
        is_counted: for one structure a proportion of the cases, for a case the number of its structures.
        of_class: from weights (R, n) for one class against the rest to values (R,).
        of_classes: the same for several classes; None: the mean of `of_class`, which is also given per class.
        of_cases: from rows of a table of predictions to one value per case, (n,), NaN if undefined; the
            metric is their mean.
        of_patients: from a patient's means of these values to the patient's value, (n,); None: the mean.
        columns: the columns it needs; a table without one of them does not have the metric.
        applies: whether a table with the columns has the metric; None: if any case has a value in the first.
        of_structures: from the columns of a table of structures to one value per structure and case, (S, n).
        without: why it is undefined, in words.
        without_one: the same for one structure.
        as_of_mask: the corresponding metric of a mask.
        trained_by: the task that a network needs for it, if it does not follow from `of`.
        views: the tables and figures that show it, in the order of the metrics.
    """

    name: str
    title: str
    of: Of
    higher_is_better: bool | None = True
    needs: Needs = "cases"
    bounds: tuple[float, float] = (0.0, 1.0)
    is_share: bool = False
    is_counted: bool = False
    of_class: Callable[[WeightedClass], Floats] | None = None
    of_classes: Callable[[WeightedClasses], Floats] | None = None
    of_cases: Callable[[pd.DataFrame], Floats] | None = None
    of_patients: Callable[[Mapping[str, Floats]], Floats] | None = None
    columns: tuple[str, ...] = ()
    applies: Callable[[pd.DataFrame], bool] | None = None
    of_structures: Callable[[Cells], Floats] | None = None
    without: str = "no case with true structures"
    without_one: str = "no case with it"
    as_of_mask: str = ""
    trained_by: Task | None = None
    views: frozenset[View] = frozenset()

    @property
    def is_of_a_case(self) -> bool:
        """Whether it is of a diagnosis, mask or reconstruction as a whole."""
        return self.of in ("diagnosis", "mask", "reconstruction")

    @property
    def is_compared(self) -> bool:
        """Whether it is one number of a run, which a study can hold against another's."""
        return self.of == "evidence" or any((self.of_class, self.of_cases, self.of_structures))

    @property
    def task(self) -> Task:
        """The task that a network needs for it."""
        return self.trained_by or _TASKS[self.of]

    def has_cases(self, table: pd.DataFrame) -> bool:
        """Whether a table of predictions has what `of_cases` needs."""
        if self.of_cases is None or any(name not in table for name in self.columns):
            return False
        return bool(table[self.columns[0]].notna().any()) if self.applies is None else self.applies(table)


def metrics(further: Iterable[str] = ()) -> Mapping[str, Metric]:
    """Return the program's metrics by name, in the order in which tables show them, and after them others.

    Args:
        further: names of those of installed packages, or MODULE:NAME.

    Raises:
        ExperimentError: as `metric_of`.
    """
    others = {name: metric_of(name) for name in further}
    return {**METRICS, **others} if others else METRICS


def metric_of(name: str) -> Metric:
    """Return a metric by its name: the program's own, one of an installed package, or MODULE:NAME.

    Raises:
        ExperimentError: there is none, or it can't be imported.
    """
    return METRICS[name] if name in METRICS else _foreign(name)


@lru_cache(maxsize=64)
def _foreign(name: str) -> Metric:
    """Return someone else's metric by the name that it is asked for by; shown unless it says where."""
    found, _ = find("metrics", name)
    if not isinstance(found, Metric):
        raise ExperimentError(f"metric '{name}': expected a threefold Metric, found {type(found).__name__}.")
    return replace(found, name=name, views=found.views or _views("headline", "sites", "structures", "task"))


def is_named(name: str) -> bool:
    """Whether a name may be a metric: the program's, a package's, or MODULE:NAME, which is not imported."""
    return name in METRICS or ":" in name or any(one.name == name for one in listed("metrics"))


def known_metric(name: str) -> Metric | None:
    """Return a metric; None where it is none, or its code is not here, as of someone else's run."""
    try:
        return metric_of(name)
    except ExperimentError:
        return None


def split_name(name: str) -> tuple[str, str]:
    """Return a metric's own name and the structure of METRIC:STRUCTURE, empty where there is none."""
    own, colon, structure = name.partition(":")
    if not colon or own in METRICS:
        return own, structure
    attribute, _, structure = structure.partition(":")  # MODULE:NAME
    return f"{own}:{attribute}", structure


def own_name(metric: str) -> tuple[str, str]:
    """Return the name of TASK.METRIC, or TASK.FINDING.METRIC, without what it is of; and its structure."""
    own = split_name(metric.rpartition(".")[2])
    if ":" not in metric or own[0] in METRICS:
        return own
    whole, (_, dot, rest) = split_name(metric), metric.partition(".")
    # The module of MODULE:NAME may have dots of its own.
    return split_name(rest) if dot and known_metric(whole[0]) is None else whole


def shown_in(view: View, further: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of the metrics that a table or figure shows, in order.

    Args:
        view: the table or figure.
        further: names of metrics, of which those that are not the program's are looked at too.
    """
    others = {name: known_metric(name) for name in further if name not in METRICS}
    shown = {**METRICS, **others}.items()
    return tuple(name for name, metric in shown if metric is not None and view in metric.views)


def diagnosis_metrics(further: Iterable[str] = ()) -> dict[str, Metric]:
    """Return the metrics of a diagnosis that are computed from its cases, by name; `further` ones too."""
    return {name: metric for name, metric in metrics(further).items() if metric.of_class is not None}


def title(name: str) -> str:
    """Return the title of a metric, or of METRIC:STRUCTURE; what is no metric, in words."""
    name, structure = split_name(name)
    metric = known_metric(name)
    if metric is None:
        return name.replace("_", " ")
    if metric.of == "structure":
        return f"{metric.title} ({structure or 'mean over structures'})"
    return metric.title


def is_share(name: str) -> bool:
    """Whether a metric, METRIC:STRUCTURE or TASK.METRIC, is a share of the cases that it needs."""
    name, structure = own_name(name)
    metric = known_metric(name)
    return metric is not None and metric.is_share and bool(structure or not metric.is_counted)


def largest_difference(name: str) -> float:
    """Return how much two values of a metric, of METRIC:STRUCTURE or of TASK.METRIC, can differ."""
    metric = known_metric(own_name(name)[0])
    return float("inf") if metric is None else metric.bounds[1] - metric.bounds[0]


def _column(name: str) -> Callable[[pd.DataFrame], Floats]:
    return lambda rows: pd.to_numeric(rows[name], errors="coerce").to_numpy(np.float64)


def _errors(rows: pd.DataFrame) -> Floats:
    """Return predicted minus true numbers, (n,)."""
    return _column("predicted")(rows) - _column("truth")(rows)


def _counts(rows: pd.DataFrame) -> list[Floats]:
    """Return the voxels of the true mask, of the predicted one and of both, (n,) each."""
    return [rows[name].to_numpy(np.float64) for name in MASK_COLUMNS]


def _dice(rows: pd.DataFrame) -> Floats:
    return overlap.dice(*_counts(rows))


def _missed_lesions(rows: pd.DataFrame) -> Floats:
    truth, _, both = _counts(rows)
    return overlap.missed_lesions(truth, both)


def _false_alarms(rows: pd.DataFrame) -> Floats:
    truth, predicted, _ = _counts(rows)
    return overlap.false_alarms(truth, predicted)


def _patients_missed(means: Mapping[str, Floats]) -> Floats:
    """Return whether nothing was found in any case of a patient."""
    missed = means["missed_lesions"]
    return np.where(np.isnan(missed), np.nan, missed == 1)


def _patients_alarmed(means: Mapping[str, Floats]) -> Floats:
    """Return whether anything was predicted in any case of a patient without lesion."""
    missed, alarms = means["missed_lesions"], means["false_alarms"]
    return np.where(np.isnan(missed) & ~np.isnan(alarms), alarms > 0, np.nan)


def _there(column: str) -> Callable[[Cells], Floats]:
    return lambda cells: np.where(cells.there, cells(column), np.nan)


def _betti_error(degree: int) -> Callable[[Cells], Floats]:
    def of(cells: Cells) -> Floats:
        error = np.abs(cells(f"predicted_b{degree}") - cells(f"truth_b{degree}"))
        return np.where(cells.there, error, np.nan)

    return of


def _structure_dice(cells: Cells) -> Floats:
    return overlap.dice(*(cells(f"{name}_voxels") for name in ("truth", "predicted", "overlap")))


def _missed_structures(cells: Cells) -> Floats:
    return np.where(cells.there, cells("predicted_voxels") == 0, np.nan)


def _extra_structures(cells: Cells) -> Floats:
    return np.where(cells("truth_voxels") == 0, cells("predicted_voxels") > 0, np.nan)


def _topology_match(rows: pd.DataFrame) -> Floats:
    edits = _column("graph_edits")(rows)
    return np.where(np.isnan(edits), np.nan, edits == 0)


def _topology_right(rows: pd.DataFrame) -> Floats:
    """Return whether the arch says the diagnosis; one that says nothing is not right."""
    spoken, label = (rows[name].fillna("").to_numpy(str) for name in ("topology_class", "label"))
    return np.where(label != "", spoken == label, np.nan)


def _topology_agrees(rows: pd.DataFrame) -> Floats:
    agrees = rows["agrees"].fillna("").to_numpy(str)
    return np.where(agrees != "", agrees == "yes", np.nan)


def _has_set(table: pd.DataFrame) -> bool:
    return bool(((table[PREDICTION_SET].fillna("") != "") & (table["label"] != "")).any())


def _classes_in_set(rows: pd.DataFrame) -> list[list[str]]:
    return [cell.split(SET_SEPARATOR) if cell else [] for cell in rows[PREDICTION_SET].fillna("").astype(str)]


def _coverage(rows: pd.DataFrame) -> Floats:
    """Return whether a case's set contains its class; NaN without a set or a class."""
    labels, sets = rows["label"].to_numpy(str), _classes_in_set(rows)
    found = [name in told if name and told else np.nan for name, told in zip(labels, sets, strict=True)]
    return np.array(found, np.float64)


def _set_size(rows: pd.DataFrame) -> Floats:
    return np.array([len(told) or np.nan for told in _classes_in_set(rows)], np.float64)


def within(rows: pd.DataFrame, truth: str, low: str, high: str) -> Floats:
    """Return whether true numbers are within their intervals, an empty end being no bound; NaN: not known."""
    known, least, most = (_column(name)(rows) for name in (truth, low, high))
    inside = ~(known < least) & ~(known > most)
    return np.where(np.isnan(known), np.nan, inside.astype(np.float64))


def _volume_coverage(rows: pd.DataFrame) -> Floats:
    return within(rows, "mask_truth_volume", *VOLUME_INTERVAL)


def _any_case(table: pd.DataFrame) -> bool:
    return True


def _views(*names: View) -> frozenset[View]:
    return frozenset(names)


_ANY = (0.0, float("inf"))
_SIGNED = (float("-inf"), float("inf"))
_ATTENTION = {
    "share_inside": "Share inside the lesion",
    "attention_iou": "IoU with the lesion",
    "pointing": "Maximum in the lesion",
}
BASELINES = {"": "", "_random": " of random maps", "_centred": " of a centred blob"}
"""Ends of the names of attention's numbers: the network's own, and those of maps that know no image."""

_BUILT_IN = (
    Metric(
        name="f1",
        title="F1",
        of="diagnosis",
        needs="positives",
        of_class=lambda one: f1(one.counts),
        views=_views("headline", "sites", "shift", "variants", "task", "paper"),
    ),
    Metric(
        name="auc",
        title="AUC",
        of="diagnosis",
        needs="both",
        of_class=WeightedClass.auc,
        views=_views(
            *("headline", "sites", "shift", "values", "means", "drawn", "variants", "of a class", "findings"),
            *("task", "paper"),
        ),
    ),
    Metric(
        name="balanced_accuracy",
        title="Balanced accuracy",
        of="diagnosis",
        needs="both",
        of_class=lambda one: balanced_accuracy(one.counts),
        of_classes=lambda several: several.mean(lambda one: sensitivity(one.counts)),
        views=_views("headline", "shift", "values", "means", "variants"),
    ),
    Metric(
        name="sensitivity",
        title="Sensitivity",
        of="diagnosis",
        needs="positives",
        is_share=True,
        of_class=lambda one: sensitivity(one.counts),
        views=_views("task", "sites", "shift", "values", "drawn", "of a class"),
    ),
    Metric(
        name="specificity",
        title="Specificity",
        of="diagnosis",
        needs="negatives",
        is_share=True,
        of_class=lambda one: specificity(one.counts),
        views=_views("task", "sites", "shift", "values", "drawn"),
    ),
    Metric(
        name="average_precision",
        title="Average precision",
        of="diagnosis",
        needs="positives",
        of_class=WeightedClass.average_precision,
        views=_views("findings", "task"),
    ),
    Metric(
        name="accuracy",
        title="Accuracy",
        of="diagnosis",
        is_share=True,
        of_class=lambda one: accuracy(one.counts),
        of_classes=WeightedClasses.accuracy,
        views=_views("values", "variants"),
    ),
    Metric(
        name="brier",
        title="Brier",
        of="diagnosis",
        higher_is_better=False,
        bounds=(0.0, 2.0),
        of_class=WeightedClass.brier,
        of_classes=WeightedClasses.brier,
        views=_views("sites", "task"),
    ),
    Metric(name="log_loss", title="Log loss", of="diagnosis", higher_is_better=False, bounds=_ANY),
    Metric(
        name="calibration_error",
        title="Calibration error",
        of="diagnosis",
        higher_is_better=False,
        of_class=WeightedClass.calibration_error,
        of_classes=WeightedClasses.calibration_error,
        views=_views("shift"),
    ),
    Metric(
        name="calibration_slope",
        title="Calibration slope",
        of="diagnosis",
        higher_is_better=None,
        bounds=_SIGNED,
    ),
    Metric(
        name="calibration_intercept",
        title="Calibration intercept",
        of="diagnosis",
        higher_is_better=None,
        bounds=_SIGNED,
    ),
    Metric(
        name="coverage",
        title="Coverage of the prediction set",
        of="diagnosis",
        is_share=True,
        of_cases=_coverage,
        columns=(PREDICTION_SET, "label"),
        applies=_has_set,
        without="no labelled case with a prediction set",
        views=_views("trust"),
    ),
    Metric(
        name="set_size",
        title="Classes in the prediction set",
        of="diagnosis",
        higher_is_better=False,
        bounds=_ANY,
        of_cases=_set_size,
        columns=(PREDICTION_SET, "label"),
        applies=_has_set,
        without="no prediction set",
        views=_views("trust"),
    ),
    Metric(
        name="flagged",
        title="Flagged as out of distribution",
        of="diagnosis",
        higher_is_better=None,
        is_share=True,
    ),
    Metric(
        name="confusion",
        title="Decided",
        of="diagnosis",
        higher_is_better=None,
        needs="positives",
        is_share=True,
    ),
    Metric(
        name="dice",
        title="Dice",
        of="mask",
        of_cases=_dice,
        columns=MASK_COLUMNS,
        without="no true mask with a lesion",
        views=_views("headline", "sites", "shift", "means", "drawn", "task"),
    ),
    Metric(
        name="missed_lesions",
        title="Missed lesions",
        of="mask",
        higher_is_better=False,
        is_share=True,
        of_cases=_missed_lesions,
        of_patients=_patients_missed,
        columns=MASK_COLUMNS,
        without="no true mask with a lesion",
        views=_views("sites", "shift", "task"),
    ),
    Metric(
        name="false_alarms",
        title="False alarms",
        of="mask",
        higher_is_better=False,
        is_share=True,
        of_cases=_false_alarms,
        of_patients=_patients_alarmed,
        columns=MASK_COLUMNS,
        applies=lambda table: bool((table[MASK_COLUMNS[0]] == 0).any()),
        without="no true mask without one",
    ),
    Metric(
        name="volume_coverage",
        title="Coverage of the volume's interval",
        of="mask",
        is_share=True,
        of_cases=_volume_coverage,
        columns=("mask_truth_volume", *VOLUME_INTERVAL),
        without="no true mask",
        views=_views("trust"),
    ),
    *(
        Metric(
            name=name,
            title=words,
            of="number",
            higher_is_better=better,
            bounds=bounds,
            of_cases=of_cases,
            columns=NUMBER_COLUMNS,
            without="no case with a known number",
        )
        for name, words, better, bounds, of_cases in (
            ("mae", "Mean absolute error", False, _ANY, lambda rows: np.abs(_errors(rows))),
            ("rmse", "Root mean squared error", False, _ANY, None),
            ("r2", "R2", True, (float("-inf"), 1.0), None),
            ("bias", "Bias", None, _SIGNED, _errors),
            ("lower_limit", "Lower limit of agreement", None, _SIGNED, None),
            ("upper_limit", "Upper limit of agreement", None, _SIGNED, None),
            ("interval_coverage", "Coverage of the interval", True, (0.0, 1.0), None),
            ("interval_width", "Width of the interval", False, _ANY, None),
            ("spread_ratio", "Error by the spread on validation", None, _ANY, None),
        )
    ),
    Metric(
        name="psnr",
        title="PSNR (dB)",
        of="reconstruction",
        bounds=_ANY,
        of_cases=_column("psnr"),
        columns=("psnr",),
        without="no reconstruction",
        views=_views("headline", "sites", "shift", "means", "task"),
    ),
    Metric(
        name="ssim",
        title="SSIM",
        of="reconstruction",
        bounds=(-1.0, 1.0),
        of_cases=_column("ssim"),
        columns=("ssim",),
        without="no reconstruction",
    ),
    Metric(
        name="structure_dice",
        title="Dice",
        of="structure",
        of_structures=_structure_dice,
        as_of_mask="dice",
        views=_views("headline", "sites", "shift", "means", "drawn", "structures", "structure variants"),
    ),
    Metric(
        name="asd_mm",
        title="ASD (mm)",
        of="structure",
        higher_is_better=False,
        bounds=_ANY,
        of_structures=_there("asd_mm"),
        columns=("asd_mm",),
        views=_views("structures", "structure variants"),
    ),
    Metric(
        name="hd95_mm",
        title="HD95 (mm)",
        of="structure",
        higher_is_better=False,
        bounds=_ANY,
        of_structures=_there("hd95_mm"),
        columns=("hd95_mm",),
        views=_views("sites", "shift", "structures", "structure variants"),
    ),
    Metric(
        name="asd_px",
        title="ASD (pixels)",
        of="structure",
        higher_is_better=False,
        bounds=_ANY,
        of_structures=_there("asd_px"),
        columns=("asd_px",),
        views=_views("structures", "structure variants"),
    ),
    Metric(
        name="hd95_px",
        title="HD95 (pixels)",
        of="structure",
        higher_is_better=False,
        bounds=_ANY,
        of_structures=_there("hd95_px"),
        columns=("hd95_px",),
        views=_views("sites", "shift", "structures", "structure variants"),
    ),
    Metric(
        name="cl_dice",
        title="clDice",
        of="structure",
        of_structures=_there("cl_dice"),
        views=_views("shift", "structures", "structure variants"),
    ),
    *(
        Metric(
            name=f"b{degree}_error",
            title=f"b{degree} error ({what})",
            of="structure",
            higher_is_better=False,
            bounds=_ANY,
            of_structures=_betti_error(degree),
            views=views,
        )
        for degree, what, views in (
            (0, "pieces", _views("structures")),
            (1, "tunnels", _views("structures", "structure variants")),
            (2, "cavities", _views()),
        )
    ),
    Metric(
        name="missed_structures",
        title="Missed",
        of="structure",
        higher_is_better=False,
        bounds=_ANY,
        is_share=True,
        is_counted=True,
        of_structures=_missed_structures,
        as_of_mask="missed_lesions",
        views=_views("structures"),
    ),
    Metric(
        name="extra_structures",
        title="Extra",
        of="structure",
        higher_is_better=False,
        bounds=_ANY,
        is_share=True,
        is_counted=True,
        of_structures=_extra_structures,
        without="no case lacks a structure",
        without_one="no case lacks it",
        as_of_mask="false_alarms",
    ),
    Metric(
        name="graph_edits",
        title="Graph edits",
        of="topology",
        higher_is_better=False,
        bounds=_ANY,
        of_cases=_column("graph_edits"),
        columns=("graph_edits",),
        applies=_any_case,
    ),
    Metric(
        name="topology_match",
        title="Graph as the truth's",
        of="topology",
        is_share=True,
        of_cases=_topology_match,
        columns=("graph_edits",),
        applies=_any_case,
        views=_views("means"),
    ),
    Metric(
        name="topology_right",
        title="Arch as diagnosed",
        of="topology",
        is_share=True,
        of_cases=_topology_right,
        columns=("topology_class", "label"),
        applies=_any_case,
        without="no case with a diagnosis",
        views=_views("headline", "sites", "shift"),
    ),
    Metric(
        name="topology_agrees",
        title="Arch as classified",
        of="topology",
        is_share=True,
        of_cases=_topology_agrees,
        columns=("agrees",),
        applies=_any_case,
        without="no case where both say something",
    ),
    *(
        Metric(
            name=f"{name}{end}",
            title=f"{words}{whose}",
            of="evidence",
            is_share=name == "pointing",
            views=_views("attention"),
        )
        for name, words in _ATTENTION.items()
        for end, whose in BASELINES.items()
    ),
    Metric(
        name="zero_map", title="Map zero everywhere", of="evidence", higher_is_better=False, is_share=True
    ),
    Metric(
        name="truth_dice",
        title="Dice with the truth kept apart",
        of="evidence",
        trained_by="segmentation",
    ),
    *(
        metric
        for name, is_better in (("shortcut", False), ("marker", True))
        for metric in (
            Metric(
                name=f"{name}_flip",
                title=f"Turned by the {name}",
                of="evidence",
                higher_is_better=is_better,
                is_share=True,
                views=_views("counterfactuals"),
            ),
            Metric(
                name=f"{name}_change",
                title=f"p raised by the {name}",
                of="evidence",
                higher_is_better=None,
                bounds=(-1.0, 1.0),
                views=_views("counterfactuals"),
            ),
        )
    ),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _BUILT_IN}
"""The program's own."""
