"""Structures that are wrong by a known amount."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from threefold import run
from threefold.cohorts.cohort import Cohort
from threefold.cohorts.degradation import DegradationSpec, degrade, moved
from threefold.errors import CohortError, WriteError
from threefold.images.reading import read_label_map

SPACING = (1.0, 1.5, 0.5)


def _ball() -> np.ndarray[Any, np.dtype[np.uint8]]:
    grid = np.stack(np.meshgrid(*[np.arange(32.0)] * 3, indexing="ij"))
    return (((grid - 15.5) ** 2).sum(axis=0) < 81).astype(np.uint8)


def _dice(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_no_displacement_leaves_the_labels() -> None:
    labels = _ball()
    assert np.array_equal(moved(labels, SPACING, DegradationSpec(displacement=0), "a"), labels)


def test_overlap_falls_with_the_displacement() -> None:
    labels = _ball()
    found = [_dice(labels, moved(labels, SPACING, DegradationSpec(displacement=mm), "a")) for mm in (1, 2, 4)]
    assert found == sorted(found, reverse=True)
    assert 0.75 < found[0] < 0.99
    assert found[2] < 0.8


def test_labels_move_by_the_stated_distance() -> None:
    """Coordinates as labels: where a voxel's label came from is read off it."""
    size, mm = 40, 3.0
    distances = []
    for axis in range(3):
        index = np.indices((size,) * 3)[axis].astype(np.uint8)
        went = moved(index, (1.0, 1.0, 1.0), DegradationSpec(displacement=mm, scale=5), "a")
        distances.append((went.astype(float) - index) ** 2)
    # Rounding to voxels and the faces of the volume cost a little.
    assert np.sqrt(sum(distances).mean()) == pytest.approx(mm, rel=0.1)  # type: ignore[attr-defined]


def test_field_hangs_on_seed_and_name_alone() -> None:
    labels = _ball()
    spec = DegradationSpec(displacement=3)
    first = moved(labels, SPACING, spec, "a")
    assert np.array_equal(first, moved(labels, SPACING, spec, "a"))
    assert not np.array_equal(first, moved(labels, SPACING, spec, "b"))
    assert not np.array_equal(first, moved(labels, SPACING, DegradationSpec(displacement=3, seed=1), "a"))


def test_cohort_refers_to_its_source(make_cohort: Callable[..., Cohort], tmp_path: Path) -> None:
    def give_references(rows: list[dict[str, Any]], folder: Path) -> None:
        for row in rows[:-1]:
            row["reference"] = row["mask"]

    source = make_cohort(give_references, structures=("vessel",))
    made = degrade(source, tmp_path / "worse", DegradationSpec(displacement=0.6, scale=1))
    assert [case.image for case in made.cases] == [case.image for case in source.cases]
    assert made.cases[-1].structures is None
    first = made.cases[0]
    assert first.structures is not None
    assert first.reference is not None
    assert first.structures.is_relative_to(tmp_path / "worse")
    wrong, right = (read_label_map(path).array for path in (first.structures, first.reference))
    assert wrong.shape == right.shape
    assert not np.array_equal(wrong, right)


def test_cohort_without_references(make_cohort: Callable[..., Cohort], tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no case has a reference"):
        degrade(make_cohort(structures=("vessel",)), tmp_path / "worse", DegradationSpec(displacement=1))
    assert not (tmp_path / "worse").exists()


def test_a_disk_that_refuses_one_file_leaves_nothing(
    make_cohort: Callable[..., Cohort], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_references(rows: list[dict[str, Any]], folder: Path) -> None:
        for row in rows:
            row["reference"] = row["mask"]

    source, real = make_cohort(give_references, structures=("vessel",)), run._rename

    def refuse(beside: Path, path: Path) -> None:
        if path.name == f"{source.cases[1].case_id}.nii.gz":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(beside, path)

    spec = DegradationSpec(displacement=0.6, scale=1)
    with monkeypatch.context() as patch:
        patch.setattr(run, "_rename", refuse)
        with pytest.raises(WriteError, match="could not be written"):
            degrade(source, tmp_path / "worse", spec)
    assert not (tmp_path / "worse").exists()
    assert len(degrade(source, tmp_path / "worse", spec).cases) == len(source.cases)
