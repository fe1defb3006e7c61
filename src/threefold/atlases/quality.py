"""How good a propagation is, case by case, and whether it has failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threefold.atlases.failure_score import failure_table
from threefold.atlases.spec import FailureSpec
from threefold.networks.registration_losses import LocalSums, local_correlation
from threefold.networks.warping import jacobian_determinant

Labels = NDArray[np.uint8]

_NAMED = 3
"""Signals that a reason names."""
_FEWEST = 8
"""Registrations that a cohort needs to be compared with."""
_LEAST_SPREAD = 0.03
_RELATIVE = {
    "correlation": -1,
    "tissue_correlation": -1,
    "structure_correlation": -1,
    "jacobian_sd": 1,
    "volume_change": 1,
    "inverse_error": 1,
}
"""Measures that are compared within the cohort, and the direction of failure."""


def field_quality(displacement: Tensor) -> dict[str, float]:
    """Return how a field folds and how unevenly it changes volumes.

    Args:
        displacement: (1, 3, *S), voxels.

    Returns:
        folding_voxels: voxels whose Jacobian determinant is 0 or below; folding_share: of all voxels;
        log_jacobian_sd: standard deviation of the logarithm of the others' determinants.
    """
    determinant = jacobian_determinant(displacement)
    folding = int((determinant <= 0).sum())
    unfolded = determinant[determinant > 0]
    spread = float(unfolded.log().std(correction=0)) if len(unfolded) else float("nan")
    return {
        "folding_voxels": folding,
        "folding_share": folding / determinant.numel(),
        "log_jacobian_sd": spread,
    }


def dice_of(labels: Labels, truth: Labels, structures: Sequence[str]) -> dict[str, float]:
    """Return the Dice coefficient of each structure that the true map holds; others are left out.

    Args:
        labels, truth: label maps of one shape, 1 being the first structure.
        structures: names of the labels.
    """
    count = len(structures) + 1
    both = np.bincount(labels.ravel().astype(np.int64) * count + truth.ravel(), minlength=count * count)
    table = both.reshape(count, count)  # (label, truth)
    found, true = table.sum(1), table.sum(0)
    return {
        name: float(2 * table[k, k] / (found[k] + true[k]))
        for k, name in enumerate(structures, start=1)
        if true[k]
    }


def region_dice(labels: Labels, mask: Labels) -> float:
    """Return the Dice coefficient of the structures' union with a mask; NaN where the mask is empty."""
    region, inside = labels > 0, mask > 0
    return float(2 * (region & inside).sum() / (region.sum() + inside.sum())) if inside.any() else np.nan


def failures(row: Mapping[str, Any], labels: Labels, rule: FailureSpec) -> list[str]:
    """Return why a registration has failed; nothing where it has not.

    Args:
        row: the case's measurements: correlation, correlation_affine, folding_share, score and, where the
            case has a mask, mask_dice.
        labels: what was propagated.
        rule: the limits.
    """
    reasons = []
    if not np.isfinite(row["correlation"]):
        return ["the registration is not finite"]
    if not labels.any():
        reasons.append("no propagated label lies in the image")
    if row["score"] > rule.max_score:
        reasons.append(f"probability of failure {row['score']:.2f}, above {rule.max_score:g}")
    mask_dice = row.get("mask_dice")
    if mask_dice is not None and mask_dice < rule.min_mask_dice:
        reasons.append(f"Dice with the mask {mask_dice:.3f}, below {rule.min_mask_dice:g}")
    if row["folding_share"] > rule.max_folding:
        reasons.append(f"{row['folding_share']:.2%} of the voxels fold, above {rule.max_folding:.2%}")
    gain = row["correlation"] - row["correlation_affine"]
    if gain < rule.min_gain:
        reasons.append(f"local correlation changed by {gain:.3f}, below {rule.min_gain:g}")
    return reasons


def doubts(row: Mapping[str, Any], rule: FailureSpec) -> list[str]:
    """Return why a registration is to be checked; nothing where it is not.

    Args:
        row: the case's measurements.
        rule: the limits.
    """
    reasons = []
    if row["score"] > rule.check_score:
        worst = [name for name, part in failure_table().parts(row).items() if part > 0][:_NAMED]
        values = ", ".join(f"{name} {row[name]:.2f}" for name in worst)
        reasons.append(f"probability of failure {row['score']:.2f} ({values})")
    if row.get("start") == "mirrored":
        reasons.append("only mirrored does the image fit the atlas: left and right may be exchanged")
    change = np.exp(row["volume_change"])
    if change > rule.max_volume_change:
        reasons.append(f"a structure's volume changed by a factor of {change:.1f} more than all")
    inverse = row.get("inverse_error")
    if inverse is not None and inverse > rule.max_inverse_error:
        reasons.append(f"aligned the other way around, it lies elsewhere (inverse_error {inverse:.2f})")
    if row.get("agreement", 1.0) < rule.min_agreement:
        reasons.append(f"the atlases agree with a Dice of {row['agreement']:.2f} only")
    return reasons


def deviations(rows: Mapping[str, Mapping[str, Any]], rule: FailureSpec) -> dict[str, list[str]]:
    """Return why registrations are to be checked that are far from the cohort's others, by case.

    A measure is compared by its distance from the median in robust standard deviations (1.4826 times the
    median absolute deviation, at least `_LEAST_SPREAD`), in the direction that failures have.

    Args:
        rows: measurements by case, of the registrations that have not failed.
        rule: the limit.
    """
    found: dict[str, list[str]] = {}
    if len(rows) < _FEWEST:
        return found
    for name, bad in _RELATIVE.items():
        values = np.array([float(np.nan if row.get(name) is None else row[name]) for row in rows.values()])
        if np.isnan(values).all():
            continue
        middle = np.nanmedian(values)
        spread = max(1.4826 * float(np.nanmedian(np.abs(values - middle))), _LEAST_SPREAD)
        for case, value in zip(rows, values, strict=True):
            if bad * (value - middle) / spread > rule.max_deviation:
                found.setdefault(case, []).append(
                    f"{name} {value:.2f}, where the cohort's median is {middle:.2f}"
                )
    return found


def mean_dice(dice: Mapping[str, float]) -> float | None:
    """Return the mean over structures; None where there is none."""
    return float(np.mean(list(dice.values()))) if dice else None


def correlation_of(values: Tensor, fixed: Tensor, window: int) -> float:
    """Return the local correlation of two volumes, 0..1."""
    with torch.no_grad():
        return float(local_correlation(values, LocalSums.of(fixed, window)))
