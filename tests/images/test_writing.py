from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from threefold.errors import ImageError
from threefold.images.reading import read_image, read_label_map
from threefold.images.writing import label_map_suffix, write_label_map, write_nifti, write_png
from threefold.run import partial_of

AFFINE = np.array([[-0.5, 0.1, 0.0, 3], [0.1, 0.48, -0.3, -7], [0.03, 0.2, 2.0, 11], [0, 0, 0, 1]])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int32, np.int64, np.float32])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_written_is_read(tmp_path: Path, dtype: type, shape: tuple[int, ...], name: str) -> None:
    array = (np.random.default_rng(0).random(shape) * 2).astype(dtype)
    write_nifti(tmp_path / name, array, AFFINE)
    read = read_image(tmp_path / name)
    assert_array_equal(read.array, array)
    assert_allclose(read.affine, AFFINE, atol=1e-6)
    other = nibabel.load(tmp_path / name)
    assert_array_equal(np.asanyarray(other.dataobj).reshape(shape), array)
    assert_allclose(other.affine, AFFINE, atol=1e-6)
    assert_allclose(other.header.get_zooms()[:3], np.linalg.norm(AFFINE[:3, :3], axis=0), rtol=1e-5)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    contents = set()
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, array, AFFINE)
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1


def test_what_nifti_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"ends in \.nii"):
        write_nifti(tmp_path / "a.png", np.zeros((4, 4)), AFFINE)
    with pytest.raises(ValueError, match="int32"):
        write_nifti(tmp_path / "a.nii", np.full((4, 4), 2**40), AFFINE)
    with pytest.raises(ValueError, match="slice or a volume"):
        write_nifti(tmp_path / "a.nii", np.zeros(4), AFFINE)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)])
def test_a_label_map_goes_on_the_grid_of_its_image(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_nifti(tmp_path / "image.nii.gz", np.zeros(shape, np.int16), AFFINE)
    image = read_image(tmp_path / "image.nii.gz")
    labels = np.random.default_rng(0).integers(0, 4, shape)
    path = tmp_path / f"labels{label_map_suffix(image)}"
    assert path.name == "labels.nii.gz"
    write_label_map(path, labels, image, labels=3)
    read = read_label_map(path)
    assert_array_equal(read.array, labels)
    assert_array_equal(read.affine, image.affine)


def test_a_label_map_of_a_picture_is_a_picture(tmp_path: Path) -> None:
    write_png(tmp_path / "image.png", np.zeros((6, 5), np.uint8))
    image = read_image(tmp_path / "image.png")
    mask = np.random.default_rng(0).random((6, 5)) > 0.5
    path = tmp_path / f"mask{label_map_suffix(image)}"
    assert path.suffix == ".png"
    write_label_map(path, mask, image)
    with PIL.Image.open(path) as picture:
        assert_array_equal(np.asarray(picture), mask * 255)
    write_label_map(path, mask * 2, image, labels=2)
    assert_array_equal(read_label_map(path).array, mask * 2)
    with pytest.raises(ValueError, match="labels 0 to 1, found 0 to 2"):
        write_label_map(path, mask * 2, image)
    with pytest.raises(ValueError, match="its image"):
        write_label_map(path, mask[:5], image)


def test_colour_pictures(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (6, 5, 3)).astype(np.uint8)
    write_png(tmp_path / "a.png", colour)
    with PIL.Image.open(tmp_path / "a.png") as picture:
        assert_array_equal(np.asarray(picture), colour)
    with pytest.raises(ValueError, match="expected uint8"):
        write_png(tmp_path / "a.png", colour.astype(float))  # type: ignore[arg-type]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("gone", "file"):
        with pytest.raises(ImageError, match="could not be written"):
            write_nifti(tmp_path / folder / "a.nii", np.zeros((4, 4)), AFFINE)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, np.zeros((4, 4), np.uint8), AFFINE)
    before = path.read_bytes()
    beside = partial_of(path)
    beside.symlink_to("/dev/full")  # every write to it fails with "no space left on device"
    with pytest.raises(ImageError, match=r"a\.nii: could not be written \(No space left on device\)"):
        write_nifti(path, np.ones((64, 64), np.uint8), AFFINE)
    assert path.read_bytes() == before
    assert not beside.exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="this user may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ImageError, match="Permission denied"):
        write_nifti(tmp_path / "a.nii", np.zeros((4, 4)), AFFINE)
