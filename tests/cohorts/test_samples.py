from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from threefold.cohorts import sample_cache as store_module
from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.sample_cache import SampleCache
from threefold.cohorts.samples import read_image_only, read_placed, read_sample
from threefold.core.batch import Sample
from threefold.errors import ImageError
from threefold.experiment import PreprocessingSpec
from threefold.images.geometry import slice_affine
from threefold.images.preprocessing import restore
from threefold.images.reading import read_label_map
from threefold.images.writing import write_nifti, write_png

from .cases import retold

AFFINE = np.array([[0, -0.5, 0, 3], [-0.5, 0, 0, 4], [0, 0, 5, -60], [0, 0, 0, 1.0]])
PREPROCESSING = PreprocessingSpec(size=(32, 32))


def spec_of(**changes: Any) -> CohortSpec:
    values = {
        "name": "test",
        "modality": "ct",
        "dimensions": 2,
        "classes": ("no", "yes"),
        "mask": {"name": "lesion", "values": (1, 3)},
        "structures": ("a", "b"),
        "intensity": {"unit": "HU", "window": (0, 80)},
    }
    return CohortSpec.model_validate(values | changes)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 24), np.uint8)
    mask[8:16, 4:9], mask[20:24, 10:12] = 1, 3
    write_nifti(tmp_path / "image.nii.gz", rng.integers(-100, 200, (32, 24)).astype(np.int16), AFFINE)
    write_nifti(tmp_path / "mask.nii.gz", mask, AFFINE)
    write_nifti(tmp_path / "structures.nii.gz", rng.integers(0, 3, (32, 24)).astype(np.uint8), AFFINE)
    return Case(
        "c1",
        "p1",
        "A",
        tmp_path / "image.nii.gz",
        targets={
            "mask": tmp_path / "mask.nii.gz",
            "structures": tmp_path / "structures.nii.gz",
            "label": 1,
        },
    )


def test_a_case_becomes_a_sample_on_one_grid(case: Case) -> None:
    sample, placement = read_placed(case, spec_of(), PREPROCESSING)
    assert sample.case_id == "c1"
    assert sample.targets["label"] == 1
    assert sample.image.shape == (1, 32, 32)
    mask = sample.targets["mask"]
    assert mask.dtype == sample.targets["structures"].dtype == np.uint8
    expected = np.zeros((32, 32), np.uint8)
    expected[8:16, 8:13] = expected[20:24, 14:16] = 1  # both values of the mask; 4 columns of padding
    assert_array_equal(mask, expected)
    assert_array_equal(restore(mask, placement, order="nearest"), expected[:, 4:28])


def test_any_target_may_be_absent(case: Case) -> None:
    sample = read_sample(retold(case, mask=None, structures=None, label=None), spec_of(), PREPROCESSING)
    assert not sample.targets


def test_a_slice_of_a_volume_takes_the_slice_of_its_targets(case: Case, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 80, (32, 24, 5)).astype(np.int16)
    masks = rng.integers(0, 2, (32, 24, 5)).astype(np.uint8)
    write_nifti(tmp_path / "v.nii.gz", volume, AFFINE)
    write_nifti(tmp_path / "m.nii.gz", masks, AFFINE)
    write_nifti(tmp_path / "one.nii.gz", masks[..., 3], slice_affine(AFFINE, 3))
    of_volume = replace(
        retold(case, mask=tmp_path / "m.nii.gz", structures=None),
        image=tmp_path / "v.nii.gz",
        slice_index=3,
    )
    sample = read_sample(of_volume, spec_of(), PREPROCESSING)
    assert_array_equal(sample.targets["mask"][:, 4:28], masks[..., 3])
    assert_array_equal(sample.image[0, :, 4:28], volume[..., 3] / np.float32(80))
    of_slice = retold(of_volume, mask=tmp_path / "one.nii.gz")
    alone = read_sample(of_slice, spec_of(), PREPROCESSING)
    assert_array_equal(alone.targets["mask"], sample.targets["mask"])
    with pytest.raises(ImageError, match="origin shifted by 0 x 0 x 5 mm"):
        read_sample(replace(of_slice, slice_index=2), spec_of(), PREPROCESSING)
    with pytest.raises(ImageError, match=r"case c1: .*v\.nii\.gz: there is no slice 5"):
        read_sample(replace(of_volume, slice_index=5), spec_of(), PREPROCESSING)
    with pytest.raises(ImageError, match=r"expected 2 axes.*name the slice in the `slice` column"):
        read_sample(replace(of_volume, slice_index=None), spec_of(), PREPROCESSING)
    with pytest.raises(ImageError, match=r"expected 3 axes.*give the volume"):
        read_sample(of_volume, spec_of(dimensions=3), PREPROCESSING)


def test_a_target_on_another_grid_is_refused_with_the_difference(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "other.nii.gz"
    moved = AFFINE.copy()
    moved[0, 3] += 2
    for array, affine, says in (
        (np.zeros((24, 32), np.uint8), AFFINE, "shape 24 x 32 instead of 32 x 24"),
        (np.zeros((32, 24), np.uint8), moved, "origin shifted by 2 x 0 x 0 mm"),
        (np.zeros((32, 24), np.uint8), AFFINE @ np.diag([1, -1, 1, 1]), "turned by 0.00, 180.00 degrees"),
    ):
        write_nifti(path, array, affine)
        for target in ("mask", "structures"):
            with pytest.raises(ImageError, match=rf"case c1: .*other\.nii\.gz: not on the grid.*{says}"):
                read_sample(retold(case, **{target: path}), spec_of(), PREPROCESSING)


def test_values_that_the_cohort_does_not_know_are_refused(case: Case) -> None:
    with pytest.raises(
        ImageError, match=r"case c1: .*0 and \[1\], found 3 \(8 voxels\), the first at \(20, 10\)"
    ):
        read_sample(case, spec_of(mask={"values": (1,)}), PREPROCESSING)
    with pytest.raises(ImageError, match=r"case c1: .*0 to 1 \(structures of cohort.yaml\), found 2 \("):
        read_sample(case, spec_of(structures=("a",)), PREPROCESSING)
    with pytest.raises(ImageError, match=r"case c1: .*cohort\.yaml has no `mask`"):
        read_sample(case, spec_of(mask=None), PREPROCESSING)


def test_pictures(case: Case, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (32, 24)).astype(np.uint8)
    mask = (grey > 200).astype(np.uint8) * 255
    write_png(tmp_path / "i.png", grey)
    write_png(tmp_path / "m.png", mask)
    spec = spec_of(
        mask={"values": (255,)},
        intensity={"unit": "grey", "window": (0, 255)},
        spacing=(0.5, 0.5),
        structures=(),
    )
    pictures = replace(retold(case, mask=tmp_path / "m.png", structures=None), image=tmp_path / "i.png")
    sample, placement = read_placed(pictures, spec, PREPROCESSING)
    assert_array_equal(sample.targets["mask"][:, 4:28], mask == 255)
    assert placement.affine[1][0] == -0.5
    # a picture says nothing of its axes' directions, so it can't be laid on a NIfTI
    with pytest.raises(ImageError, match="a picture does not say where it lies"):
        read_sample(replace(pictures, image=case.image), spec, PREPROCESSING)


def test_a_file_that_cannot_be_read_is_named_with_its_case(case: Case) -> None:
    gone = Path("gone.nii")
    for broken in (replace(case, image=gone), retold(case, mask=gone), retold(case, structures=gone)):
        with pytest.raises(ImageError, match=r"case c1: .*gone\.nii: no such file"):
            read_sample(broken, spec_of(), PREPROCESSING)


def test_an_image_alone(case: Case) -> None:
    array, placement, image = read_image_only(case.image, None, spec_of(), PREPROCESSING)
    assert_array_equal(array, read_sample(case, spec_of(), PREPROCESSING).image)
    assert placement.shape == image.array.shape == (32, 24)


@pytest.mark.real("ct_ich")
def test_real_slices_with_their_masks(shared_data: Path) -> None:
    folder = shared_data / "ct_ich"
    spec = spec_of(
        mask={"values": (255,)},
        intensity={"unit": "grey", "window": (0, 255)},
        spacing=(0.45, 0.45),
        structures=(),
    )
    inside, overlaps = [], []
    for image in sorted((folder / "images").iterdir())[::6]:
        mask = folder / "masks" / f"{image.stem}.png"
        found, placement = read_placed(
            Case(image.stem, "p", "A", image, targets={"mask": mask}),
            spec,
            PreprocessingSpec(size=(224, 224)),
        )
        inner = found.targets["mask"]
        back = restore(inner, placement, order="nearest")
        original = read_label_map(mask).array == 255
        overlaps.append(2 * (back & original).sum() / (back.sum() + original.sum()))
        inside.append(found.image[0][inner == 1].mean() - found.image[0][found.image[0] > 0.1].mean())
    assert np.median(overlaps) > 0.93  # the smallest lesion covers 30 voxels of the network's grid only
    assert np.mean(inside) > 0  # blood is brighter than the rest of the head: image and mask lie together


# --- the cache ----------------------------------------------------------------------------------------


class Counted:
    """Counts how often a case is really read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        monkeypatch.setattr(store_module, "read_sample", self._read)

    def _read(self, *arguments: Any) -> Sample:
        self.times += 1
        return read_sample(*arguments)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def assert_same(a: Sample, b: Sample) -> None:
    assert a.case_id == b.case_id
    assert_array_equal(a.image, b.image)
    assert {**a.targets}.keys() == {**b.targets}.keys()
    for name, value in a.targets.items():
        assert_array_equal(value, b.targets[name])


@pytest.mark.parametrize(("kind", "reads", "reads_again"), [("memory", 1, 2), ("disk", 1, 1), ("none", 2, 4)])
def test_each_kind_gives_the_same_sample(
    case: Case, tmp_path: Path, counted: Counted, kind: Any, reads: int, reads_again: int
) -> None:
    expected = read_sample(case, spec_of(), PREPROCESSING)
    for total in (reads, reads_again):
        cache = SampleCache(spec_of(), PREPROCESSING, kind, tmp_path / "cache")
        assert_same(cache.get(case), expected)
        assert_same(cache.get(case), expected)
        assert counted.times == total


def test_an_entry_is_not_used_for_other_content_or_another_meaning(
    case: Case, tmp_path: Path, counted: Counted
) -> None:
    def get(
        spec: CohortSpec | None = None,
        preprocessing: PreprocessingSpec = PREPROCESSING,
        changed: Case = case,
    ) -> int:
        cache = SampleCache(spec or spec_of(), preprocessing, "disk", tmp_path / "cache")
        assert_same(cache.get(changed), read_sample(changed, spec or spec_of(), preprocessing))
        return counted.times

    assert get() == 1
    assert get(changed=retold(replace(case, case_id="renamed"), label=0)) == 1  # not part of the arrays
    assert get(changed=retold(case, mask=None)) == 2
    assert get(spec_of(mask={"values": (1, 2, 3)})) == 3
    assert get(spec_of(intensity={"unit": "HU", "window": (0, 100)})) == 4
    assert get(preprocessing=PreprocessingSpec(size=(16, 16))) == 5
    assert get(preprocessing=PreprocessingSpec(size=(32, 32), windows=("bone",))) == 6
    write_nifti(case.image, np.zeros((32, 24), np.int32), AFFINE)
    assert get() == 7
    assert get() == 7


def test_a_damaged_entry_is_made_again(case: Case, tmp_path: Path, counted: Counted) -> None:
    folder = tmp_path / "cache"
    expected = SampleCache(spec_of(), PREPROCESSING, "disk", folder).get(case)
    (entry,) = (path for path in folder.rglob("*") if path.is_file() and "hashes" not in path.parts)
    entry.write_bytes(entry.read_bytes()[:-3])
    assert_same(SampleCache(spec_of(), PREPROCESSING, "disk", folder).get(case), expected)
    assert counted.times == 2
    SampleCache(spec_of(), PREPROCESSING, "disk", folder).get(case)
    assert counted.times == 2


@pytest.mark.parametrize("with_folder", [True, False])
def test_memory_that_does_not_suffice_is_said_before_it_is_used(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    with_folder: bool,
) -> None:
    monkeypatch.setattr(store_module, "available_memory_bytes", lambda: 10**6)
    folder = tmp_path / "cache" if with_folder else None
    with caplog.at_level(logging.WARNING):
        assert SampleCache(spec_of(), PREPROCESSING, "memory", folder, n_cases=81).kind == "memory"
        assert not caplog.messages
        cache = SampleCache(spec_of(), PREPROCESSING, "memory", folder, n_cases=82)  # 82 x 6144 bytes
    assert cache.kind == ("disk" if with_folder else "none")
    assert "82 prepared cases need" in caplog.messages[0]
    assert ("kept in" in caplog.messages[0]) == with_folder
    assert_same(cache.get(case), read_sample(case, spec_of(), PREPROCESSING))


def test_a_cache_that_cannot_be_written_stops_caching_and_not_the_run(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = SampleCache(spec_of(), PREPROCESSING, "disk", tmp_path / "file" / "cache")
    expected = read_sample(case, spec_of(), PREPROCESSING)
    with caplog.at_level(logging.WARNING):
        assert_same(cache.get(case), expected)
        assert_same(cache.get(case), expected)
    assert cache.kind == "none"
    assert len(caplog.messages) == 1
    assert "going on without" in caplog.messages[0]


def test_errors_of_every_kind_name_the_case(case: Case, tmp_path: Path) -> None:
    for kind in ("memory", "disk", "none"):
        cache = SampleCache(spec_of(), PREPROCESSING, kind, tmp_path / "cache")
        with pytest.raises(ImageError, match=r"case c1: .*gone\.nii"):
            cache.get(replace(case, image=Path("gone.nii")))
    with pytest.raises(ValueError, match="needs a folder"):
        SampleCache(spec_of(), PREPROCESSING, "disk")
