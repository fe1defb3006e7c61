"""Images on a grid of given spacing: padded, cropped about a place, or kept whole, and back."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydantic import ValidationError

from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.samples import read_placed
from threefold.errors import ImageError
from threefold.experiment import PreprocessingSpec
from threefold.images.cache import estimate_bytes
from threefold.images.geometry import Image
from threefold.images.preprocessing import (
    Placement,
    centre_of,
    place,
    prepare_image,
    prepare_labels,
    restore,
    window_start,
)
from threefold.images.writing import write_nifti

OBLIQUE = np.array([[0.78, 0.12, -0.1, -20], [-0.13, 0.79, 0.05, 4], [0.09, -0.02, 1.2, 7], [0, 0, 0, 1.0]])


def volume(shape: tuple[int, ...] = (14, 11, 9), affine: np.ndarray | None = None) -> Image:
    array = np.random.default_rng(0).random(shape, np.float32)
    return Image(array, np.eye(4) if affine is None else affine, Path("case.nii.gz"))


def prepared(image: Image, spec: PreprocessingSpec, **options: object) -> tuple[np.ndarray, Placement]:
    array, placement = prepare_image(image, spec, unit="arbitrary", window=(0, 1), **options)  # type: ignore[arg-type]
    return array[0], placement


def stored_as(image: Image, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Image:
    """The same voxels at the same places in the patient, in another order of the file."""
    array, affine = np.asarray(image.array).transpose(axes), image.affine.copy()
    affine[:3, :3] = image.affine[:3, :3][:, axes]
    for axis in np.flatnonzero(flips):
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
        array = np.flip(array, axis)
    return Image(np.ascontiguousarray(array), affine, image.source)


def test_at_the_images_own_spacing_voxels_are_padded_or_cropped_and_not_changed() -> None:
    image = volume()
    spec = PreprocessingSpec(size=(16, 8, 9), spacing=1.0)
    array, placement = prepared(image, spec)
    assert (placement.scaled, placement.offset, placement.size) == ((14, 11, 9), (1, -2, 0), (16, 8, 9))
    assert placement.crops
    assert_array_equal(array[1:15], image.array[:, 2:10])
    assert not array[[0, 15]].any()
    back = restore(array, placement, order="nearest")
    assert_array_equal(back[:, 2:10], image.array[:, 2:10])
    assert not back[:, :2].any()
    assert not back[:, 10:].any()
    assert_array_equal(restore(array, placement, order="linear"), back)


def test_whole_images_come_back_complete() -> None:
    image = volume()
    array, placement = prepared(image, PreprocessingSpec(size=(16, 8, 6), spacing=1.0), whole=True)
    assert placement.size == array.shape == (16, 11, 9)
    assert not placement.crops
    assert_array_equal(restore(array, placement, order="nearest"), image.array)
    fits, placement = prepared(image, PreprocessingSpec(size=(16, 12, 10), spacing=1.0), whole=True)
    assert placement.size == fits.shape == (16, 12, 10)
    without, placement = prepared(image, PreprocessingSpec(size=(7, 7, 7)), whole=True)
    assert placement.size == without.shape == (7, 7, 7)


@pytest.mark.parametrize(
    ("focus", "start"), [(None, 3), (0, 0), (6.0, 2), (6.5, 3), (13, 6), (-4, 0)], ids=str
)
def test_a_crop_is_about_its_focus_as_far_as_the_border_allows(focus: float | None, start: int) -> None:
    place_in = None if focus is None else (focus, 5.0, 4.0)
    array, placement = prepared(volume(), PreprocessingSpec(size=(8, 11, 9), spacing=1.0), focus=place_in)
    assert placement.offset[0] == -start
    assert_array_equal(array, volume().array[start : start + 8])


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product([False, True], repeat=3)))
def test_a_crop_is_the_same_however_the_volume_was_stored(
    axes: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    image = volume(affine=OBLIQUE)
    spec = PreprocessingSpec(size=(7, 8, 12), spacing=(1.1, 0.7, 1.0))
    focus = np.array([9.2, 3.1, 5.3])
    reference, _ = prepared(image, spec, focus=focus)
    stored = stored_as(image, axes, flips)
    there = [
        stored.array.shape[new] - 1 - focus[old] if flip else focus[old]
        for new, (old, flip) in enumerate(zip(axes, flips, strict=True))
    ]
    inverse = np.linalg.inv(stored.affine) @ OBLIQUE @ [*focus, 1]
    assert_allclose(inverse[:3], there, atol=1e-9)  # the same place in the patient
    array, placement = prepared(stored, spec, focus=there)
    assert_array_equal(array, reference)
    assert restore(array, placement, order="linear").shape == stored.array.shape


def test_spacing_is_what_was_asked_for_up_to_whole_voxels() -> None:
    image = volume((40, 30, 20), np.diag([0.5, 0.8, 1.5, 1.0]))  # 20 x 24 x 30 mm
    for spacing, expected in ((1.0, (20, 24, 30)), ((2.0, 0.8, 1.5), (10, 30, 20)), (0.75, (27, 32, 40))):
        assert place(image, (64, 64, 64), spacing=spacing).scaled == expected
    assert place(image, (8, 8, 8), spacing=100.0).scaled == (1, 1, 1)


def test_a_shape_keeps_its_size_in_mm_and_comes_back() -> None:
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in (50, 44, 30)), indexing="ij")
    ball = (sum(((g - 0.1) / 0.6) ** 2 for g in grids) <= 1).astype(np.uint8)
    image = Image(ball, np.diag([0.6, 0.7, 1.0, 1.0]), Path("ball.nii.gz"))
    spec = PreprocessingSpec(size=(24, 24, 24), spacing=1.0)
    array, placement = prepared(image, spec, whole=True)
    assert array.sum() == pytest.approx(ball.sum() * 0.6 * 0.7 * 1.0, rel=0.01)
    back = restore(array, placement, order="linear") > 0.5
    assert 2 * (back & (ball > 0)).sum() / (back.sum() + ball.sum()) > 0.97
    labels = prepare_labels(image, placement)
    assert 2 * ((array > 0.5) & (labels > 0)).sum() / ((array > 0.5).sum() + labels.sum()) > 0.97


def test_the_middle_of_labels_is_their_mean_place() -> None:
    labels = np.zeros((9, 8, 7), np.uint8)
    assert centre_of(labels) is None
    labels[2:5, 6, 1:3] = 4
    labels[0, 0, 0] = 1
    assert_allclose(centre_of(labels), np.argwhere(labels).mean(axis=0))
    assert [window_start(10, 4, centre) for centre in (0, 2, 5, 8.4, 99)] == [0, 0, 3, 6, 6]


@pytest.mark.parametrize("targets", ["mask", "structures", "empty mask", "none"])
def test_a_case_is_cropped_about_its_own_target(tmp_path: Path, targets: str) -> None:
    array = np.random.default_rng(1).random((20, 18, 16), np.float32)
    labels = np.zeros(array.shape, np.uint8)
    labels[13:19, 2:6, 10:14] = 1
    write_nifti(tmp_path / "image.nii.gz", array, np.eye(4))
    write_nifti(tmp_path / "labels.nii.gz", labels, np.eye(4))
    write_nifti(tmp_path / "empty.nii.gz", labels * 0, np.eye(4))
    spec = CohortSpec.model_validate(
        {
            "name": "test",
            "modality": "mri",
            "dimensions": 3,
            "mask": {},
            "structures": ["vessel"],
            "intensity": {"window": [0, 1]},
        }
    )
    files = {
        "mask": {"mask": tmp_path / "labels.nii.gz"},
        "structures": {"structures": tmp_path / "labels.nii.gz"},
        "empty mask": {"mask": tmp_path / "empty.nii.gz", "structures": tmp_path / "labels.nii.gz"},
        "none": {},
    }[targets]
    case = Case("c", "p", "s", tmp_path / "image.nii.gz", targets=files)
    sample, placement = read_placed(case, spec, PreprocessingSpec(size=(8, 8, 8), spacing=1.0))
    start = (6, 5, 4) if targets == "none" else (12, 0, 8)
    assert placement.offset == tuple(-first for first in start)
    inside = tuple(slice(first, first + 8) for first in start)
    assert_allclose(sample.image[0], array[inside], atol=1e-6)
    if targets in ("mask", "structures"):
        assert_array_equal(sample.targets[targets], labels[inside])
        assert int(sample.targets[targets].sum()) == int(labels.sum())


def test_a_spacing_has_one_number_or_one_per_axis() -> None:
    with pytest.raises(ValidationError, match="spacing has 2 numbers and size 3"):
        PreprocessingSpec(size=(8, 8, 8), spacing=(1, 1))
    with pytest.raises(ValidationError, match="greater than 0"):
        PreprocessingSpec(size=(8, 8, 8), spacing=0)


# --- cases of volumes ---------------------------------------------------------------------------------

MEANING = CohortSpec.model_validate(
    {"name": "test", "modality": "mri", "dimensions": 3, "mask": {}, "structures": ["a", "b", "c"]}
)


def case_with(folder: Path, labels: np.ndarray, affine: np.ndarray = OBLIQUE) -> Case:
    """A volume with structures, stored by nibabel as they are given."""
    image = np.random.default_rng(1).random(labels.shape, np.float32)
    nibabel.save(nibabel.Nifti1Image(image, OBLIQUE), folder / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), folder / "labels.nii.gz")
    return Case("c3", "p", "s", folder / "image.nii.gz", targets={"structures": folder / "labels.nii.gz"})


def test_labels_stored_as_floats_are_labels_and_others_are_refused_with_count_and_place(
    tmp_path: Path,
) -> None:
    labels = np.zeros((7, 6, 5))
    labels[2:4, 1:5, 2] = 3.0
    spec = PreprocessingSpec(size=(7, 6, 7), spacing=(0.8, 0.8, 1.2))
    sample, _ = read_placed(case_with(tmp_path, labels), MEANING, spec)
    assert int((sample.targets["structures"] == 3).sum()) > 0
    assert set(np.unique(sample.targets["structures"])) == {0, 3}
    labels[5, 4, 3] = labels[6, 5, 4] = 0.5
    with pytest.raises(ImageError, match=r"case c3: .*found 0\.5 at voxel \(5, 4, 3\) \(2 such voxels\)"):
        read_placed(case_with(tmp_path, labels), MEANING, spec)
    labels[labels == 0.5] = np.nan
    with pytest.raises(ImageError, match=r"case c3: .*2 NaN and 0 infinite .* first at \(5, 4, 3\)"):
        read_placed(case_with(tmp_path, labels), MEANING, spec)
    labels = np.nan_to_num(labels)
    labels[0, 0, 0] = 4
    with pytest.raises(ImageError, match=r"case c3: .*values 0 to 3 .* found 4\.?0? \(1 voxels\)"):
        read_placed(case_with(tmp_path, labels), MEANING, spec)
    moved = OBLIQUE.copy()
    moved[0, 3] += 5
    with pytest.raises(ImageError, match=r"case c3: .*not on the grid of its image"):
        read_placed(case_with(tmp_path, labels * 0, moved), MEANING, spec)


def test_the_memory_of_prepared_volumes_is_estimated_to_the_byte(tmp_path: Path) -> None:
    case = case_with(tmp_path, np.ones((7, 6, 5), np.uint8))
    nibabel.save(nibabel.Nifti1Image(np.ones((7, 6, 5), np.uint8), OBLIQUE), tmp_path / "mask.nii.gz")
    spec = PreprocessingSpec(size=(10, 9, 4), spacing=0.9, windows=((0, 1), (0.2, 0.4)))
    both = replace(case, targets={**case.targets, "mask": tmp_path / "mask.nii.gz"})
    sample, _ = read_placed(both, MEANING, spec)
    held = sample.image.nbytes + sum(sample.targets[name].nbytes for name in ("mask", "structures"))
    assert estimate_bytes(5, 2, spec.size, 2) == 5 * held
