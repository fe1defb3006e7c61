"""Overlap of predicted and true masks, from voxel counts, and the policy for empty masks.

Policy `lesion-cases`:
  true mask, nothing of it predicted   Dice 0, and counted as a missed lesion
  empty true mask, nothing predicted   correctly empty: no Dice; counts against the false alarms
  empty true mask, something predicted no Dice; counted as a false alarm
  no true mask                         outside every count
So Dice is averaged over the cases that have a lesion: neither easy empty cases nor dropped misses raise it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

POLICY = "lesion-cases"


def dice(truth_voxels: ArrayLike, predicted_voxels: ArrayLike, overlap_voxels: ArrayLike) -> Floats:
    """Dice coefficient 2 |T and P| / (|T| + |P|) of each case with a lesion.

    Args:
        truth_voxels: (n,) voxels of the true mask; NaN: there is none.
        predicted_voxels: (n,) voxels of the predicted mask.
        overlap_voxels: (n,) voxels in both.

    Returns:
        (n,) 0..1; 0 for a missed lesion; NaN where the true mask is empty or absent.
    """
    truth, predicted, overlap = _counts(truth_voxels, predicted_voxels, overlap_voxels)
    has_lesion = truth > 0
    return np.divide(2 * overlap, truth + predicted, out=np.full_like(truth, np.nan), where=has_lesion)


def missed_lesions(truth_voxels: ArrayLike, overlap_voxels: ArrayLike) -> Floats:
    """Whether nothing of the lesion was found: (n,) 0 or 1; NaN where the true mask is empty or absent."""
    truth, overlap = _counts(truth_voxels, overlap_voxels)
    return np.where(truth > 0, overlap == 0, np.nan)


def false_alarms(truth_voxels: ArrayLike, predicted_voxels: ArrayLike) -> Floats:
    """Whether anything was predicted where nothing is: (n,) 0 or 1; NaN unless the true mask is empty."""
    truth, predicted = _counts(truth_voxels, predicted_voxels)
    return np.where(truth == 0, predicted > 0, np.nan)


def _counts(*columns: ArrayLike) -> tuple[Floats, ...]:
    return tuple(np.atleast_1d(np.asarray(column, np.float64)) for column in columns)
