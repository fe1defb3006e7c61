"""What the voxels of an image show, as a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import IntensitySpec

HU_RANGE = (-1100.0, 32767.0)
"""What a CT scanner can give: air is -1000, and files hold 16 bits."""
AIR = -500.0
"""CT numbers below it are air or lung; an image in HU without any was cut to a window, or is not in HU."""
DENSE = 500.0
"""CT numbers above it are bone, metal or dense contrast medium."""
WATER_STORED = (900.0, 1150.0)
"""Where soft tissue lies when 1000 or 1024 was added to its CT numbers, as scanners store them."""
NOISE = 0.1
"""Correlation of neighbouring voxels, at and below which an image shows nothing."""
_BACKGROUND = 0.05
"""Of the way from the lowest value to the 99th percentile: below it is background, where values aren't HU."""
_SAME = 0.01
"""Of a window: values that differ less show no difference."""
_FAR_APART = 16
"""Voxels a side's 16th part apart (4 at least) tell an object's shape from noise that was smoothed."""
_FEWEST_VOXELS = 256
_MOST_VOXELS = 100_000
"""Shares, percentiles and correlations come from about as many voxels at most, evenly spread."""


@dataclass(frozen=True)
class Values:
    """What the voxels of an image show.

    Attributes:
        low, high: the extremes.
        p1, p50, p75, p99: percentiles.
        air, dense, offset: shares of voxels from HU_RANGE's lowest to AIR, above DENSE, and where water lies
            in values that were stored with 1000 or 1024 added.
        whole: all are whole numbers.
        correlation: Pearson's, of neighbouring voxels; NaN where it can't be told (constant, few voxels).
        coherence: the same of voxels a 16th of a side apart; None where it can't be told.
        body50, body75: percentiles of what is neither air nor padding, cut to the window; None: nothing is.
        shown: share of these voxels that lie within the window; None without a window.
        varied: share of all voxels that differ from the median, as the window shows them.
    """

    low: float
    high: float
    p1: float
    p50: float
    p75: float
    p99: float
    air: float
    dense: float
    offset: float
    whole: bool
    correlation: float
    coherence: float | None
    body50: float | None
    body75: float | None
    shown: float | None
    varied: float


def measure(array: NDArray[Any], meant: IntensitySpec) -> Values:
    """Return what the voxels of an image (I, J) or (I, J, K) show.

    Args:
        array: the voxels.
        meant: unit, which tells what is air, and window, of which what follows it is measured.
    """
    low, high = float(array.min()), float(array.max())
    # An odd step, or a grid whose rows are powers of two would be looked at in one column.
    some = array.ravel(order="K")[:: array.size // _MOST_VOXELS | 1].astype(np.float64)
    p1, p50, p75, p99 = (float(value) for value in np.percentile(some, (1, 50, 75, 99)))
    threshold = AIR if meant.unit == "HU" else low + _BACKGROUND * (p99 - low)
    body, cut, same = some[some > threshold], some, 0.0
    body50 = body75 = shown = None
    if meant.window is not None:
        first, last = meant.window
        cut, same = some.clip(first, last), _SAME * (last - first)
        shown = float(((body >= first) & (body <= last)).mean()) if body.size else None
        body = body.clip(first, last)
    if body.size:
        body50, body75 = (float(value) for value in np.percentile(body, (50, 75)))
    coherence = float("nan") if low == high else _correlation(array, apart=_FAR_APART)
    return Values(
        low=low,
        high=high,
        p1=p1,
        p50=p50,
        p75=p75,
        p99=p99,
        air=float(((some >= HU_RANGE[0]) & (some < AIR)).mean()),
        dense=float((some > DENSE).mean()),
        offset=float(((some >= WATER_STORED[0]) & (some <= WATER_STORED[1])).mean()),
        whole=array.dtype.kind in "iub" or bool((some == np.rint(some)).all()),
        correlation=float("nan") if low == high else _correlation(array),
        coherence=None if np.isnan(coherence) else coherence,
        body50=body50,
        body75=body75,
        shown=shown,
        varied=float((np.abs(cut - np.median(cut)) > same).mean()),
    )


def _correlation(array: NDArray[Any], apart: int | None = None) -> float:
    """Return the mean correlation of voxels along the first two axes; NaN of few voxels.

    Args:
        array: the voxels.
        apart: with those a side's `apart`-th part further (4 voxels at least); None: with the next.
    """
    planes = array[..., None] if array.ndim == 2 else array
    planes = planes[..., :: max(1, planes.size // (8 * _MOST_VOXELS))]
    found = []
    for axis in (0, 1):
        lines = np.moveaxis(planes, axis, 0)
        lines = lines[:, :: max(1, planes.size // _MOST_VOXELS)].astype(np.float64)
        step = 1 if apart is None else max(4, len(lines) // apart)
        a, b = lines[:-step].ravel(), lines[step:].ravel()
        spread = a.std() * b.std() if a.size >= _FEWEST_VOXELS else 0.0
        if spread > 0:
            found.append(float(((a - a.mean()) * (b - b.mean())).mean() / spread))
    return float(np.mean(found)) if found else float("nan")
