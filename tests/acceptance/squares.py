"""A cohort of bright squares that trains in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from threefold.cohorts.cohort import CohortSpec, IntensitySpec, write_cohort
from threefold.core.targets import MaskSpec
from threefold.images.writing import write_nifti

AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])
_PARTS = ("train", "train", "validation", "test")


def write_squares(folder: Path) -> None:
    """Write eight patients of two sites into a new folder: a slice each, all with a mask and a label."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(8):
        image = rng.normal(35, 4, (32, 32)).astype(np.float32)
        image[:4] = -1000
        image[8:20, 8:20] = 65
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = 1
        write_nifti(folder / f"c{number}.nii.gz", image, AFFINE)
        write_nifti(folder / f"c{number}-mask.nii.gz", mask, AFFINE)
        rows.append(
            {
                "case_id": f"c{number}",
                "patient_id": f"p{number}",
                "site": "ab"[number % 2],
                "split": _PARTS[number // 2],
                "image": f"c{number}.nii.gz",
                "mask": f"c{number}-mask.nii.gz",
                "label": ("plain", "holed")[(number // 2 + number) % 2],
            }
        )
    spec = CohortSpec(
        name="squares",
        modality="ct",
        dimensions=2,
        classes=("plain", "holed"),
        mask=MaskSpec(name="square"),
        intensity=IntensitySpec(unit="HU", window=(0, 80)),
    )
    write_cohort(folder, spec, rows)
