"""Propagation between two real fetal brains, four weeks apart."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from threefold.atlases.propagation import propagate
from threefold.atlases.spec import PropagationSpec
from threefold.cohorts.cohort import AtlasSpec, CohortSpec, write_cohort
from threefold.core.targets import MaskSpec

SYN = 0.757  # mean Dice of antspyx 0.6.3 with its defaults on this pair


@pytest.mark.real("fetal_brain")
def test_labels_of_one_brain_fit_another(shared_data: Path, tmp_path: Path) -> None:
    data = Path(os.path.relpath(shared_data / "fetal_brain", tmp_path / "cohort"))

    def path(name: str, file: str) -> str:
        return str(data / name / f"{file}.nii.gz")

    moving, fixed = "GA26_operated", "GA30_operated"
    spec = CohortSpec(
        name="brains",
        modality="mri",
        dimensions=3,
        mask=MaskSpec(name="brain"),
        structures=tuple(f"label {number}" for number in range(1, 9)),
        atlases=(AtlasSpec(name=moving, image=path(moving, "srr"), structures=path(moving, "parcellation")),),
    )
    row = {
        "case_id": fixed,
        "patient_id": fixed,
        "site": "operated",
        "image": path(fixed, "srr"),
        "mask": path(fixed, "mask"),
        "reference": path(fixed, "parcellation"),
    }
    cohort = write_cohort(tmp_path / "cohort", spec, [row], allow_outside=True)
    quick = PropagationSpec(size=(56, 56, 56), epochs=0, refinement_steps=12)
    propagate(cohort, tmp_path / "out", quick, copy=False)
    with (tmp_path / "out" / "quality.csv").open(newline="") as stream:
        found = next(csv.DictReader(stream))
    assert float(found["dice_unregistered"]) == pytest.approx(0.409, abs=0.001)  # as others measured it
    assert 0.62 < float(found["dice_affine"]) < 0.70
    assert float(found["dice"]) > SYN
    assert float(found["folding_share"]) == 0
    assert float(found["mask_dice"]) > 0.9
