"""Small cohorts on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec, write_cohort
from threefold.core.targets import MaskSpec
from threefold.images.writing import write_nifti

AFFINE = np.diag([-0.5, -0.5, 5.0, 1.0])


@pytest.fixture
def refuse_to_list(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Take the permission to list a folder, from root too."""

    def refuse(folder: Path) -> None:
        listed = os.scandir

        def refusing(path: Any = ".") -> Any:
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(os, "scandir", refusing)

    return refuse


@pytest.fixture
def spec() -> CohortSpec:
    return CohortSpec(
        name="small",
        modality="ct",
        dimensions=2,
        classes=("absent", "present"),
        mask=MaskSpec(),
        intensity=IntensitySpec(unit="HU", window=(0, 80)),
    )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the files once: each write waits for the disk."""
    folder = tmp_path_factory.mktemp("template")
    rng = np.random.default_rng(0)
    for case in (f"p{patient:02d}-{number}" for patient in range(12) for number in range(2)):
        image = rng.normal(30, 10, (8, 6)).astype(np.float32)
        image[0] = -1000
        write_nifti(folder / f"{case}.nii.gz", image, AFFINE)
        write_nifti(folder / f"{case}-mask.nii.gz", (image > 35).astype(np.uint8), AFFINE)
    return folder


@pytest.fixture
def make_cohort(tmp_path: Path, template: Path, spec: CohortSpec) -> Callable[..., Cohort]:
    """Make 12 patients of 2 sites, 2 slices each, labels and masks; `change` may alter rows and files."""

    def make(
        change: Callable[[list[dict[str, Any]], Path], None] | None = None, **spec_update: Any
    ) -> Cohort:
        folder = Path(shutil.copytree(template, tmp_path / "cohort"))
        rows: list[dict[str, Any]] = [
            {
                "case_id": f"p{patient:02d}-{number}",
                "patient_id": f"p{patient:02d}",
                "site": "ab"[patient % 2],
                "image": f"p{patient:02d}-{number}.nii.gz",
                "mask": f"p{patient:02d}-{number}-mask.nii.gz",
                "label": ("absent", "present")[patient // 2 % 2],
            }
            for patient in range(12)
            for number in range(2)
        ]
        if change is not None:
            change(rows, folder)
        return write_cohort(folder, spec.model_copy(update=spec_update), rows, allow_outside=True)

    return make
