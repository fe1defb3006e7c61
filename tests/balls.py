"""Volumes with a ball in each, to be registered in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from threefold.cohorts.cohort import AtlasSpec, Cohort, CohortSpec, write_cohort
from threefold.core.targets import MaskSpec
from threefold.images.writing import write_nifti


def write_balls(folder: Path, names: str = "abc", side: int = 16) -> Cohort:
    """Write volumes, an atlas, and the truth of all but the first.

    Args:
        folder: is made.
        names: of the cases, among a, b and c.
        side: voxels along each axis.
    """
    folder.mkdir()
    points = np.stack(np.meshgrid(*[np.arange(float(side))] * 3, indexing="ij"), -1) - (side - 1) / 2
    shifts = {"atlas": 0.0, "a": 1.0, "b": -1.0, "c": 0.5}
    for name in ("atlas", *names):
        away = np.linalg.norm(points - [shifts[name], 0, 0], axis=-1)
        write_nifti(folder / f"{name}.nii.gz", np.exp(-away / 3).astype(np.float32), np.eye(4))
        write_nifti(folder / f"{name}-labels.nii.gz", (away < 3).astype(np.uint8), np.eye(4))
    spec = CohortSpec(
        name="balls",
        modality="mri",
        dimensions=3,
        classes=("left", "right"),
        mask=MaskSpec(name="ball"),
        structures=("ball",),
        atlases=(AtlasSpec(name="mean", image="atlas.nii.gz", structures="atlas-labels.nii.gz"),),
    )
    rows = [
        {
            "case_id": name,
            "patient_id": name,
            "site": "s",
            "image": f"{name}.nii.gz",
            "mask": f"{name}-labels.nii.gz",
            "reference": None if name == "a" else f"{name}-labels.nii.gz",
            "label": "right" if name == "b" else "left",
            "split": {"a": "train", "b": "validation", "c": "test"}[name],
        }
        for name in names
    ]
    return write_cohort(folder, spec, rows)
