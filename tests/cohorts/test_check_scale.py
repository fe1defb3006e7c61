"""What a check costs grows with the files: each volume is read once, and one at a time is in memory."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from threefold.audits import voxel_checks
from threefold.audits.audit import audit
from threefold.audits.voxel_checks import check_files
from threefold.cohorts.cohort import Cohort, CohortSpec, write_cohort
from threefold.cohorts.findings import Finding
from threefold.core.targets import MaskSpec
from threefold.images.writing import write_nifti
from threefold.reporting.audit_texts import shown_findings


def slices(folder: Path, volumes: int, depth: int) -> Cohort:
    """A cohort whose cases are the slices of volumes with masks; the rows of the volumes are mixed."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for number in range(volumes):
        values = generator.normal(size=(4, 4, depth)).astype(np.float32)
        write_nifti(folder / f"{number}.nii.gz", values, np.eye(4))
        write_nifti(folder / f"{number}-mask.nii.gz", (values > 0).astype(np.uint8), np.eye(4))
        rows += [
            {
                "case_id": f"{number}-{index}",
                "patient_id": str(number),
                "site": f"s{number % 3}",
                "image": f"{number}.nii.gz",
                "mask": f"{number}-mask.nii.gz",
                "slice": index,
            }
            for index in range(depth)
        ]
    generator.shuffle(rows)
    spec = CohortSpec(name="c", modality="mri", dimensions=2, mask=MaskSpec())
    return write_cohort(folder, spec, rows)


def test_each_volume_is_read_once_and_one_at_a_time_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = slices(tmp_path / "cohort", volumes=4, depth=5)
    read: list[str] = []
    kept: list[weakref.ref[Any]] = []
    most = 0

    def counted(real: Any) -> Any:
        def reading(path: Path, **options: Any) -> Any:
            nonlocal most
            image = real(path, **options)
            read.append(path.name)
            kept.append(weakref.ref(image))
            gc.collect()
            most = max(most, sum(each() is not None for each in kept))
            return image

        return reading

    for name in ("read_image", "read_label_map"):
        monkeypatch.setattr(voxel_checks, name, counted(getattr(voxel_checks, name)))
    opened = check_files(cohort, read_voxels=True)
    assert not opened.problems
    assert sorted(read) == sorted({*read})
    assert len(read) == 8
    # An image and its mask, and the next of one of them while it replaces the last.
    assert most <= 3


def test_many_sites_and_findings_are_told_in_few_lines(tmp_path: Path) -> None:
    cohort = slices(tmp_path / "cohort", volumes=3, depth=2)
    result = audit(cohort)
    assert [(site.site, site.cases) for site in result.sites] == [("s0", 2), ("s1", 2), ("s2", 2)]
    many = [Finding("warn", "duplicates", str(number)) for number in range(1000)]
    shown = list(shown_findings([*many, Finding("note", "targets", "one")]))
    assert [finding.message for finding in shown[:20]] == [str(number) for number in range(20)]
    assert [finding.message for finding in shown[20:]] == [
        "and 980 more of these; `--json` lists all.",
        "one",
    ]
