"""What is measured of each structure of one case: voxels, overlap, surface distances, centreline, topology.

Policy `missed-at-diagonal`:
  truth present, nothing predicted   missed: Dice and clDice 0, distances the image's diagonal
  truth absent, something predicted  false alarm: no Dice, no distance
  both absent                        outside every count
  no truth known                     what was predicted is counted, and nothing is compared
Misses and false alarms are counted: a missed structure neither drops out of a mean nor makes it infinite.

Distances are in mm where the image's spacing is stated; where it is not (a PNG, say) they are in pixels, and
have columns of their own: a number in one unit is never averaged with one in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.centrelines import cl_dice
from threefold.evaluation.surfaces import surface_distances, voxel_counts
from threefold.topology import betti_numbers

POLICY = "missed-at-diagonal"
UNION = "union"
"""Name of the row of all structures together: the binary region."""


@dataclass(frozen=True)
class StructureMeasures:
    """One structure of one case: the columns of a run's `structures.csv` beside `case_id`. None: not known.

    Attributes:
        structure: its name, or `union`.
        truth_voxels, predicted_voxels, overlap_voxels: counts.
        asd_mm, hd95_mm: see `threefold.evaluation.surfaces`, under the policy of this module.
        cl_dice: centreline Dice, see `threefold.evaluation.centrelines`.
        truth_b0, truth_b1, truth_b2: components, tunnels and cavities of the true structure.
        predicted_b0, predicted_b1, predicted_b2: those of the predicted one.
        asd_px, hd95_px: in pixels (voxels), in place of `asd_mm` and `hd95_mm` where no spacing is stated.
    """

    structure: str
    truth_voxels: int | None
    predicted_voxels: int
    overlap_voxels: int | None
    asd_mm: float | None
    hd95_mm: float | None
    cl_dice: float | None
    truth_b0: int | None
    truth_b1: int | None
    truth_b2: int | None
    predicted_b0: int
    predicted_b1: int
    predicted_b2: int
    asd_px: float | None = None
    hd95_px: float | None = None


def structure_rows(
    truth: NDArray[np.generic] | None,
    predicted: NDArray[np.generic],
    names: Sequence[str],
    spacing: Sequence[float] | None,
    *,
    region: NDArray[np.generic] | None = None,
) -> list[StructureMeasures]:
    """Return the measures of each structure, and of their union last.

    A pure function of its arguments, which threads and processes may call side by side.

    Args:
        truth: true label map (I, J) or (I, J, K), 0..len(names); None: not known.
        predicted: predicted label map of the same shape.
        names: of the structures of label 1, 2, ...
        spacing: mm of a voxel along each axis; None: not stated, distances are in pixels.
        region: the true binary region (not zero: inside), of the same shape, for the union of a case whose
            `truth` is not known; where it is, the union is that of its structures.

    Raises:
        ValueError: shapes differ, a label map is not of integers 0..len(names), or a spacing is not
            positive.
    """
    whole = region if truth is None else truth
    return [*_measured(truth, predicted, names, spacing), union_row(whole, predicted, spacing)]


def union_row(
    truth: NDArray[np.generic] | None, predicted: NDArray[np.generic], spacing: Sequence[float] | None
) -> StructureMeasures:
    """Return the measures of the binary region alone, as the last of `structure_rows`.

    Args:
        truth: true region (not zero: inside), (I, J) or (I, J, K); None: not known.
        predicted: predicted region of the same shape.
        spacing: mm of a voxel along each axis; None: not stated, distances are in pixels.

    Raises:
        ValueError: shapes differ, or a spacing is not positive.
    """
    return _measured(None if truth is None else truth != 0, predicted != 0, [UNION], spacing)[0]


def _measured(
    truth: NDArray[np.generic] | None,
    predicted: NDArray[np.generic],
    names: Sequence[str],
    spacing: Sequence[float] | None,
) -> list[StructureMeasures]:
    count = len(names)
    found = betti_numbers(predicted, count)
    if truth is None:
        voxels = voxel_counts(predicted, predicted, count)[1]
        return [
            StructureMeasures(
                name, None, int(voxels[i]), None, None, None, None, None, None, None, *_ints(found[i])
            )
            for i, name in enumerate(names)
        ]
    true = betti_numbers(truth, count)
    in_truth, in_predicted, in_both = voxel_counts(truth, predicted, count)
    sides = (1.0,) * truth.ndim if spacing is None else spacing
    distances = surface_distances(truth, predicted, count, sides)
    centreline = cl_dice(truth, predicted, count)
    diagonal = float(np.linalg.norm(np.multiply(truth.shape, sides)))
    rows = []
    for i, name in enumerate(names):
        between = distances[i]
        asd, hd95 = (None, None) if between is None else (between.average(), between.hausdorff())
        if in_truth[i] and not in_predicted[i]:
            asd = hd95 = diagonal
        counts = int(in_truth[i]), int(in_predicted[i]), int(in_both[i])
        in_mm, in_pixels = ((asd, hd95), (None, None))[:: 1 if spacing is not None else -1]
        betti = (*_ints(true[i]), *_ints(found[i]))
        rows.append(StructureMeasures(name, *counts, *in_mm, centreline[i], *betti, *in_pixels))
    return rows


def _ints(numbers: NDArray[np.int64]) -> tuple[int, int, int]:
    b0, b1, b2 = (int(number) for number in numbers)
    return b0, b1, b2
