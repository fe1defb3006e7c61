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
        higher_is_better: False for errors and rates of failure.
        needs: the cases without which it does not exist.
        bounds: the values it can take.
    """

    name: str
    title: str
    higher_is_better: bool = True
    needs: Needs = "cases"
    bounds: tuple[float, float] = (0.0, 1.0)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("f1", "F1", needs="positives"),
        Metric("auc", "AUC", needs="both"),
        Metric("balanced_accuracy", "Balanced accuracy", needs="both"),
        Metric("sensitivity", "Sensitivity", needs="positives"),
        Metric("specificity", "Specificity", needs="negatives"),
        Metric("average_precision", "Average precision", needs="positives"),
        Metric("accuracy", "Accuracy"),
        Metric("brier", "Brier", higher_is_better=False, bounds=(0.0, 2.0)),
        Metric("calibration_error", "Calibration error", higher_is_better=False),
        Metric("dice", "Dice"),
        Metric("missed_lesions", "Missed lesions", higher_is_better=False),
        Metric("false_alarms", "False alarms", higher_is_better=False),
        Metric("psnr", "PSNR (dB)", bounds=(0.0, float("inf"))),
        Metric("ssim", "SSIM", bounds=(-1.0, 1.0)),
    )
}
