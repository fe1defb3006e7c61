"""What a cohort of public head-CT scans says: whether there is a haemorrhage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from threefold.cohorts.cohort import CohortSpec, IntensitySpec
from threefold.core.targets import MaskSpec, TargetSpec

CLASSES = ("none", "haemorrhage")
BRAIN_WINDOW = (0.0, 80.0)
"""HU."""


def haemorrhage_spec(
    name: str,
    *,
    dimensions: Literal[2, 3],
    columns: Mapping[str, str] | None = None,
    targets: Mapping[str, TargetSpec] | None = None,
    mask_values: tuple[int, ...] | None = None,
    window: tuple[float, float] = BRAIN_WINDOW,
) -> CohortSpec:
    """Return what a cohort of head-CT scans with and without haemorrhage says.

    Args:
        name: of the cohort.
        dimensions: 2: a case is a slice. 3: a volume.
        columns: meaning of the table's further columns.
        targets: beside the label and the mask.
        mask_values: values of a mask that are haemorrhage; None: the set has no masks.
        window: HU between which the images are read.
    """
    return CohortSpec(
        name=name,
        modality="ct",
        dimensions=dimensions,
        classes=CLASSES,
        positive=CLASSES[1],
        mask=None if mask_values is None else MaskSpec(name="haemorrhage", values=mask_values),
        intensity=IntensitySpec(unit="HU", window=window),
        targets=dict(targets or {}),
        columns=dict(columns or {}),
    )
