"""Whether what a network decides and what it segments say the same of an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import CohortSpec
from threefold.cohorts.trained_on import TrainedOn
from threefold.images.geometry import Image, voxel_volume


def contradiction(
    decision: str | None,
    mask: NDArray[np.uint8] | None,
    image: Image,
    trained: CohortSpec,
    seen: TrainedOn | None,
) -> str | None:
    """Say how a decision between two classes contradicts the mask; None where it does not.

    It can only where the training cases' own labels and masks go together: positive cases have something in
    their mask, and negative ones nothing (`TrainedOn.mask_follows_label`).

    Args:
        decision: the class decided for; None: the network decides nothing.
        mask: on the image's own grid; None: the network segments nothing.
        image: gives the volume of a voxel.
        trained: names the positive class and the mask.
        seen: what the network's training cases were.
    """
    if decision is None or mask is None or seen is None or not seen.mask_follows_label:
        return None
    if trained.positive_class is None or trained.mask is None:
        return None
    positive, count = decision == trained.classes[trained.positive_class], int((mask > 0).sum())
    if positive == (count > 0):
        return None
    if positive:
        return f"contradiction: decided for '{decision}', but the mask of '{trained.mask.name}' is empty"
    return (
        f"contradiction: decided for '{decision}', but the mask of '{trained.mask.name}' has {count} "
        f"{'voxels' if mask.ndim == 3 else 'pixels'}{_volume(count, image)}"
    )


def _volume(count: int, image: Image) -> str:
    size, unit = voxel_volume(image)
    return f" ({count * size:.3g} mL)" if unit == "mL" and image.facts.spacing_stated else ""
