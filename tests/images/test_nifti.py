from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from threefold.errors import ImageError
from threefold.images.reading import read_header, read_image, read_label_map

OBLIQUE = np.array([[-0.5, 0.1, 0.0, 3], [0.1, 0.48, -0.3, -7], [0.03, 0.2, 2.0, 11], [0, 0, 0, 1]])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def rotated() -> np.ndarray:
    """A rigid affine (which a qform can hold) with a reflection."""
    q, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = np.eye(4)
    affine[:3, :3] = q * (0.7, 0.8, 3.0)
    affine[:3, 3] = (4, 5, -6)
    return affine


@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "i8", "u8", "<f4", ">f4", "f8"]
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_voxels_and_affine_are_those_that_nibabel_reads(
    tmp_path: Path, rng: np.random.Generator, version: type, dtype: str, suffix: str
) -> None:
    array = rng.integers(0, 100, (5, 4, 3)).astype(dtype)
    header = version.header_class(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    path = tmp_path / f"image{suffix}"
    nibabel.save(version(array, OBLIQUE, header), path)
    read, reference = read_image(path), nibabel.load(path)
    assert_array_equal(read.array, np.asanyarray(reference.dataobj))
    assert read.array.dtype.isnative
    assert_allclose(read.affine, reference.affine, atol=1e-6)
    header_read = read_header(path)
    assert header_read.shape == (5, 4, 3)
    assert_array_equal(header_read.affine, read.affine)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (0, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("reflected", [False, True])
def test_orientation_comes_from_sform_then_qform_then_analyze(
    tmp_path: Path, sform: int, qform: int, reflected: bool
) -> None:
    q_affine = rotated()
    if reflected:
        q_affine[:, 2] *= -1
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), None)
    image.set_qform(q_affine, code=qform)
    image.set_sform(OBLIQUE, code=sform)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "image.nii")
    read = read_image(tmp_path / "image.nii")
    if sform or qform:
        assert_allclose(read.affine, OBLIQUE if sform else q_affine, atol=1e-5)
    assert_allclose(read.affine, nibabel.load(tmp_path / "image.nii").affine, atol=1e-6)
    said = {(1, 1): "place the voxels differently", (1, 0): "pixdim says", (0, 0): "no orientation"}
    notes = read.notes
    assert len(notes) == len(read_header(tmp_path / "image.nii").notes) == ((sform, qform) in said)
    assert said.get((sform, qform), "") in "".join(notes)


def test_slope_and_intercept_are_applied(tmp_path: Path, rng: np.random.Generator) -> None:
    array = rng.normal(0, 300, (6, 5, 4)).astype(np.float32)
    image = nibabel.Nifti1Image(array, OBLIQUE)
    image.header.set_data_dtype(np.int16)  # nibabel picks slope and intercept
    nibabel.save(image, tmp_path / "image.nii.gz")
    reference = nibabel.load(tmp_path / "image.nii.gz")
    assert reference.dataobj.slope != 1
    read = read_image(tmp_path / "image.nii.gz")
    assert read.array.dtype == np.float32
    assert_allclose(read.array, reference.get_fdata(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_slice_is_that_slice_of_the_volume(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    array = rng.integers(0, 100, (5, 4, 3)).astype(np.int16)
    path = tmp_path / f"image{suffix}"
    nibabel.save(nibabel.Nifti1Image(array, OBLIQUE), path)
    read = read_image(path, slice_index=2)
    assert_array_equal(read.array, array[:, :, 2])
    corner = (4, 3, 0, 1)
    assert_allclose(read.affine @ corner, OBLIQUE @ (4, 3, 2, 1), atol=1e-5)
    assert_allclose(read_header(path, slice_index=2).affine, read.affine)
    assert read_header(path, slice_index=2).shape == (5, 4)
    for wrong in (3, -1):
        with pytest.raises(ImageError, match=r"no slice -?\d; it has 3 \(0 to 2"):
            read_image(path, slice_index=wrong)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 1, 1)])
def test_a_file_with_one_slice_is_a_slice(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "slice.nii"
    nibabel.save(nibabel.Nifti1Image(np.arange(20, dtype=np.int16).reshape(shape), OBLIQUE), path)
    read = read_image(path)
    assert_array_equal(read.array, np.arange(20).reshape(5, 4))
    assert_array_equal(read_image(path, slice_index=0).array, read.array)
    with pytest.raises(ImageError, match="no slice 1"):
        read_image(path, slice_index=1)


def test_a_slice_need_not_say_its_thickness(tmp_path: Path) -> None:
    flat = np.diag([2.0, 3, 0, 1])
    image = nibabel.Nifti1Image(np.zeros((4, 4), np.int16), None)
    image.header["sform_code"] = 1
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = flat[:3]
    nibabel.save(image, tmp_path / "flat.nii")
    assert_allclose(read_image(tmp_path / "flat.nii").affine, np.diag([2.0, 3, 1, 1]))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("dim", (3, 30000, 30000, 30000, 1, 1, 1, 1), "promises"),
        ("dim", (3, -5, 4, 3, 1, 1, 1, 1), "dim is"),
        ("dim", (0, 5, 4, 3, 1, 1, 1, 1), "dim is"),
        ("dim", (4, 5, 4, 1, 3, 1, 1, 1), "expected a slice"),
        ("datatype", 32, "datatype 32"),
        ("datatype", 128, "datatype 128"),
        ("vox_offset", np.nan, "start at byte nan"),
        ("vox_offset", 2000, "promises"),
        ("scl_inter", np.nan, "scl_inter nan"),
        ("srow_x", (0, 0, 0, 0), "affine is not usable"),
        ("srow_x", (np.inf, 0, 0, 0), "affine is not usable"),
        ("scl_slope", np.inf, "scl_slope inf"),
        ("magic", b"ni1", r"header of a \.hdr/\.img pair"),
        ("magic", b"no", "not a one-file NIfTI"),
        ("sizeof_hdr", 17, "not an image of a known format"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_makes_no_sense_is_refused(
    tmp_path: Path, field: str, value: object, says: str, suffix: str
) -> None:
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.eye(4))
    header = np.frombuffer(bytearray(image.to_bytes()[:348]), image.header.template_dtype).copy()
    header["scl_slope"] = 2
    header["scl_inter"] = 1
    header[field] = value
    data = header.tobytes() + bytes(4 + 120)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == ".nii.gz" else data)
    if (suffix, field, value) == (".nii.gz", "vox_offset", 2000):
        says = "truncated"
    with pytest.raises(ImageError, match=says):
        read_image(path)


def test_truncated_and_changed_files_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    array = rng.integers(0, 1000, (30, 20, 10)).astype(np.int16)
    plain, packed = tmp_path / "a.nii", tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), plain)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), packed)
    plain.write_bytes(plain.read_bytes()[:-1])
    with pytest.raises(ImageError, match=r"a\.nii: truncated.*12352 bytes.*the file has 12351"):
        read_image(plain)
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="truncated"):
        read_image(packed)
    packed.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])  # its checksum
    with pytest.raises(ImageError, match="CRC"):
        read_image(packed)


@pytest.mark.parametrize("slice_index", [None, 2])
def test_a_flipped_bit_of_a_gzipped_file_is_refused_or_changes_nothing(
    tmp_path: Path, rng: np.random.Generator, slice_index: int | None
) -> None:
    path = tmp_path / "a.nii.gz"
    smooth = np.cumsum(rng.integers(0, 2, (12, 10, 8)), axis=0).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(smooth, np.eye(4)), path)
    whole, expected = path.read_bytes(), read_image(path, slice_index=slice_index)
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            found = read_image(path, slice_index=slice_index)
        except ImageError:
            refused += 1
        else:
            np.testing.assert_array_equal(found.array, expected.array)
            np.testing.assert_array_equal(found.affine, expected.affine)
    assert refused > 0.9 * len(whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted_and_refused(tmp_path: Path, bad: float) -> None:
    array = np.zeros((5, 4, 3), np.float32)
    array[2, 1, 0] = array[3, 3, 2] = bad
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "image.nii.gz")
    counts = "2 NaN and 0 infinite" if np.isnan(bad) else "0 NaN and 2 infinite"
    for read in (read_image, read_label_map):
        with pytest.raises(ImageError, match=rf"{counts} voxels of 60, the first at \(2, 1, 0\)"):
            read(tmp_path / "image.nii.gz")


def test_a_label_map_may_be_stored_as_floats_but_must_hold_whole_numbers(tmp_path: Path) -> None:
    array = np.zeros((5, 4, 3), np.float64)
    array[1, 2, 0] = 3
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "labels.nii")
    read = read_label_map(tmp_path / "labels.nii").array
    assert read.dtype == np.int32
    assert_array_equal(read, array)
    array[4, 2, 1] = 0.25
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "labels.nii")
    with pytest.raises(ImageError, match=r"found 0\.25 at voxel \(4, 2, 1\) \(1 such"):
        read_label_map(tmp_path / "labels.nii")
    array[4, 2, 1] = 1e12
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "labels.nii")
    with pytest.raises(ImageError, match=r"1e\+12, which is no label"):
        read_label_map(tmp_path / "labels.nii")


@pytest.mark.real("aortic_arch_ct", "fetal_brain")
def test_real_files_read_as_nibabel_reads_them(shared_data: Path) -> None:
    paths = sorted(shared_data.glob("aortic_arch_ct/*.nii.gz")) + [
        shared_data / "fetal_brain/GA26_operated" / name for name in ("srr.nii.gz", "parcellation.nii.gz")
    ]
    assert len(paths) == 6
    for path in paths:
        read, reference = read_image(path), nibabel.load(path)
        assert_array_equal(read.array, np.asanyarray(reference.dataobj))
        assert_allclose(read.affine, reference.affine, atol=1e-6)
