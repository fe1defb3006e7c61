"""The metrics by name: what each needs to exist, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Needs = Literal["cases", "positives", "negatives", "both"]


@dataclass(frozen=True)
class Metric:
    """A metric as tables and figures know it.

    Attributes:
        name: in files.
        title: in print, with its unit where it has one.
        higher_is_better: False for errors and rates of failure; None: neither way, and no site is the worst.
        needs: the cases without which it does not exist.
        bounds: the values it can take.
        is_share: a share of the cases that it needs, so that 0 of k and k of k have an exact interval.
        of: case: a diagnosis, mask or reconstruction. structure: one structure, or the mean over a case's.
            topology: which structures touch, and the arch. evidence: what a network goes by.
            number: a predicted number, in its unit.
    """

    name: str
    title: str
    higher_is_better: bool | None = True
    needs: Needs = "cases"
    bounds: tuple[float, float] = (0.0, 1.0)
    is_share: bool = False
    of: Literal["case", "structure", "topology", "evidence", "number"] = "case"


_ANY = (0.0, float("inf"))
_SIGNED = (float("-inf"), float("inf"))
_ATTENTION = {
    "share_inside": "Share inside the lesion",
    "attention_iou": "IoU with the lesion",
    "pointing": "Maximum in the lesion",
}
BASELINES = {"": "", "_random": " of random maps", "_centred": " of a centred blob"}
"""Ends of the names of attention's numbers: the network's own, and those of maps that know no image."""

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("f1", "F1", needs="positives"),
        Metric("auc", "AUC", needs="both"),
        Metric("balanced_accuracy", "Balanced accuracy", needs="both"),
        Metric("sensitivity", "Sensitivity", needs="positives", is_share=True),
        Metric("specificity", "Specificity", needs="negatives", is_share=True),
        Metric("average_precision", "Average precision", needs="positives"),
        Metric("accuracy", "Accuracy", is_share=True),
        Metric("brier", "Brier", higher_is_better=False, bounds=(0.0, 2.0)),
        Metric("log_loss", "Log loss", higher_is_better=False, bounds=_ANY),
        Metric("calibration_error", "Calibration error", higher_is_better=False),
        Metric("confusion", "Decided", higher_is_better=None, needs="positives", is_share=True),
        Metric("dice", "Dice"),
        Metric("missed_lesions", "Missed lesions", higher_is_better=False, is_share=True),
        Metric("false_alarms", "False alarms", higher_is_better=False, is_share=True),
        Metric("mae", "Mean absolute error", False, bounds=_ANY, of="number"),
        Metric("rmse", "Root mean squared error", False, bounds=_ANY, of="number"),
        Metric("r2", "R2", bounds=(float("-inf"), 1.0), of="number"),
        Metric("bias", "Bias", None, bounds=_SIGNED, of="number"),
        Metric("lower_limit", "Lower limit of agreement", None, bounds=_SIGNED, of="number"),
        Metric("upper_limit", "Upper limit of agreement", None, bounds=_SIGNED, of="number"),
        Metric("psnr", "PSNR (dB)", bounds=(0.0, float("inf"))),
        Metric("ssim", "SSIM", bounds=(-1.0, 1.0)),
        Metric("structure_dice", "Dice", of="structure"),
        Metric("asd_mm", "ASD (mm)", False, bounds=_ANY, of="structure"),
        Metric("hd95_mm", "HD95 (mm)", False, bounds=_ANY, of="structure"),
        Metric("asd_px", "ASD (pixels)", False, bounds=_ANY, of="structure"),
        Metric("hd95_px", "HD95 (pixels)", False, bounds=_ANY, of="structure"),
        Metric("cl_dice", "clDice", of="structure"),
        Metric("b0_error", "b0 error (pieces)", False, bounds=_ANY, of="structure"),
        Metric("b1_error", "b1 error (tunnels)", False, bounds=_ANY, of="structure"),
        Metric("b2_error", "b2 error (cavities)", False, bounds=_ANY, of="structure"),
        Metric("missed_structures", "Missed", False, bounds=_ANY, is_share=True, of="structure"),
        Metric("extra_structures", "Extra", False, bounds=_ANY, is_share=True, of="structure"),
        Metric("graph_edits", "Graph edits", False, bounds=_ANY, of="topology"),
        Metric("topology_match", "Graph as the truth's", is_share=True, of="topology"),
        Metric("topology_right", "Arch as diagnosed", is_share=True, of="topology"),
        Metric("topology_agrees", "Arch as classified", is_share=True, of="topology"),
        *(
            Metric(f"{name}{end}", f"{title}{words}", is_share=name == "pointing", of="evidence")
            for name, title in _ATTENTION.items()
            for end, words in BASELINES.items()
        ),
        Metric("zero_map", "Map zero everywhere", False, is_share=True, of="evidence"),
        Metric("truth_dice", "Dice with the truth kept apart", of="evidence"),
        Metric("shortcut_flip", "Turned by the shortcut", False, is_share=True, of="evidence"),
        Metric("shortcut_change", "p raised by the shortcut", None, bounds=(-1.0, 1.0), of="evidence"),
        Metric("marker_flip", "Turned by the marker", is_share=True, of="evidence"),
        Metric("marker_change", "p raised by the marker", None, bounds=(-1.0, 1.0), of="evidence"),
    )
}


def title(name: str) -> str:
    """Return the title of a metric, or of METRIC:STRUCTURE; what is no metric, in words."""
    name, _, structure = name.partition(":")
    if name not in METRICS:
        return name.replace("_", " ")
    if METRICS[name].of == "structure":
        return f"{METRICS[name].title} ({structure or 'mean over structures'})"
    return METRICS[name].title


COUNTED = ("missed_structures", "extra_structures")
"""Of one structure a share of the cases, of a case a number of structures."""


def is_share(name: str) -> bool:
    """Whether a metric, or METRIC:STRUCTURE, is a share of the cases that it needs."""
    name, _, structure = name.partition(":")
    metric = METRICS.get(name)
    return metric is not None and metric.is_share and bool(structure or name not in COUNTED)


def largest_difference(name: str) -> float:
    """Return how much two values of a metric, or of METRIC:STRUCTURE, can differ."""
    metric = METRICS.get(name.partition(":")[0])
    return float("inf") if metric is None else metric.bounds[1] - metric.bounds[0]
