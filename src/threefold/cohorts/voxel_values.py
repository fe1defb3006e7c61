"""What the voxels of an image show, as a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HU_RANGE = (-1100.0, 32767.0)
"""What a CT scanner can give: air is -1000, and files hold 16 bits."""
AIR = -500.0
"""CT numbers below it are air or lung; an image in HU without any was cut to a window, or is not in HU."""
DENSE = 500.0
"""CT numbers above it are bone, metal or dense contrast medium."""
WATER_STORED = (900.0, 1150.0)
"""Where soft tissue lies when 1000 or 1024 was added to its CT numbers, as scanners store them."""
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


def measure(array: NDArray[Any]) -> Values:
    """Return what the voxels of an image (I, J) or (I, J, K) show."""
    low, high = float(array.min()), float(array.max())
    # An odd step, or a grid whose rows are powers of two would be looked at in one column.
    some = array.ravel(order="K")[:: array.size // _MOST_VOXELS | 1].astype(np.float64)
    p1, p50, p75, p99 = (float(value) for value in np.percentile(some, (1, 50, 75, 99)))
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
        correlation=float("nan") if low == high else _neighbours(array),
    )


def _neighbours(array: NDArray[Any]) -> float:
    """Return the mean correlation of voxels with their next along the first two axes; NaN of few voxels."""
    planes = array[..., None] if array.ndim == 2 else array
    planes = planes[..., :: max(1, planes.size // (8 * _MOST_VOXELS))]
    found = []
    for axis in (0, 1):
        lines = np.moveaxis(planes, axis, 0)
        lines = lines[:, :: max(1, planes.size // _MOST_VOXELS)].astype(np.float64)
        a, b = lines[:-1].ravel(), lines[1:].ravel()
        spread = a.std() * b.std() if a.size >= _FEWEST_VOXELS else 0.0
        if spread > 0:
            found.append(float(((a - a.mean()) * (b - b.mean())).mean() / spread))
    return float(np.mean(found)) if found else float("nan")
