"""Where a NIfTI lies: nibabel's rule, by whatever forms, codes and units; and masks that lie there too."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.quaternions import quat2mat
from numpy.testing import assert_allclose, assert_array_equal

from threefold.errors import ImageError
from threefold.images.reading import read_header, read_image, read_label_map
from threefold.images.writing import write_label_map

SHAPE = (5, 4, 3)
SCALE = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
CODES = [0, 1, 2, 4, 5, 7, -1]


def rigid(seed: int, sides: tuple[float, ...] = (0.7, 0.8, 3.0)) -> np.ndarray:
    """A random rotation, perhaps with a reflection, of voxels with given sides."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * sides
    affine[:3, 3] = rng.normal(0, 40, 3)
    return affine


def write(
    path: Path, sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int] = (1, 1), unit: int = 2,
    array: np.ndarray | None = None, version: Any = nibabel.Nifti1Image, **fields: Any,
) -> Path:  # fmt: skip
    """Write a NIfTI with any header; nibabel by itself would write only a valid one."""
    array = np.zeros(SHAPE, np.int16) if array is None else array
    image = version(array, None)
    image.set_qform(qform, code=1)
    image.set_sform(sform, code=1)
    data = bytearray(image.to_bytes())
    header = np.frombuffer(data, image.header.template_dtype, 1)
    fields = {"sform_code": codes[0], "qform_code": codes[1], "xyzt_units": unit} | fields
    for name, value in fields.items():
        header[name][0] = value
    path.write_bytes(data)
    return path


def by_qform(path: Path) -> np.ndarray:
    """Where a tool that goes by the qform puts the voxels, from the bytes (nifti1.h, METHOD 2)."""
    header = nibabel.load(path).header
    b, c, d = (float(header[f"quatern_{x}"]) for x in "bcd")
    rotation = quat2mat([np.sqrt(max(0, 1 - b * b - c * c - d * d)), b, c, d])
    qfac = -1 if header["pixdim"][0] < 0 else 1
    affine = np.eye(4)
    affine[:3, :3] = rotation * header["pixdim"][1:4] * (1, 1, qfac)
    affine[:3, 3] = [header[f"qoffset_{x}"] for x in "xyz"]
    return affine


def by_sform(path: Path) -> np.ndarray:
    header = nibabel.load(path).header
    return np.array([header["srow_x"], header["srow_y"], header["srow_z"], [0, 0, 0, 1]], float)


@pytest.mark.parametrize(("sform_code", "qform_code"), list(product(CODES, CODES)))
def test_the_affine_is_the_one_that_nibabel_takes_in_millimetres(
    tmp_path: Path, sform_code: int, qform_code: int
) -> None:
    for unit, version in product(SCALE, (nibabel.Nifti1Image, nibabel.Nifti2Image)):
        sides = tuple(side / SCALE[unit] for side in (0.7, 0.8, 3.0))
        sform, qform = rigid(9 + sform_code), rigid(50 + qform_code)
        for form in (sform, qform):
            form[:3] /= SCALE[unit]
        codes = (sform_code, qform_code)
        path = write(tmp_path / "a.nii", sform, qform, codes, unit, version=version)
        read = read_image(path)
        expected = np.diag([SCALE[unit]] * 3 + [1]) @ nibabel.load(path).affine
        assert_allclose(read.affine, expected, rtol=1e-6, atol=1e-5)
        assert_allclose(read.spacing, np.multiply(sides, SCALE[unit]), rtol=1e-5)
        header = read_header(path)
        assert_array_equal(header.affine, read.affine)
        assert header.notes == read.notes
        notes = " ".join(read.notes)
        known = [code in range(1, 6) for code in codes]
        assert read.facts.place_stated == any(known)
        assert ("no orientation" in notes) != any(known)
        assert ("place the voxels differently" in notes) == all(known)
        assert ("not stated (xyzt_units)" in notes) == (unit == 0)
        assert ("converted to mm" in notes) == (unit in (1, 3))


@given(
    seeds=st.tuples(st.integers(0, 1000), st.integers(0, 1000)),
    codes=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    unit=st.integers(0, 3),
    index=st.none() | st.integers(0, 2),
    name=st.sampled_from(["mask.nii", "mask.nii.gz"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mask_lies_where_its_image_lies_for_every_reader(
    tmp_path: Path, seeds: tuple[int, int], codes: tuple[int, int], unit: int, index: int | None, name: str
) -> None:
    sform, qform = rigid(seeds[0]), rigid(seeds[1])
    for form in (sform, qform):
        form[:3] /= SCALE[unit]
    path = write(tmp_path / "image.nii", sform, qform, codes, unit)
    image = read_image(path, slice_index=index)
    labels = np.random.default_rng(0).integers(0, 2, image.array.shape)
    write_label_map(tmp_path / name, labels, image)
    read = read_label_map(tmp_path / name)
    assert_array_equal(read.array, labels)
    stated = codes != (0, 0) or not index
    if codes != (0, 0) or index is None:
        assert_allclose(read.affine, image.affine, rtol=1e-5, atol=1e-3)
    if not stated:
        return
    written = nibabel.load(tmp_path / name).header
    assert (written["sform_code"], written["qform_code"], written["xyzt_units"]) == (*codes, unit)
    first = (0, 0, index or 0, 1)
    for place in (by_sform, by_qform):  # the mask's first voxel and axes are those of the image, or its slice
        original, mask = place(path), place(tmp_path / name)
        assert_allclose(mask[:3, :3], original[:3, :3], rtol=1e-6, atol=1e-9)
        assert_allclose(mask @ (0, 0, 0, 1), original @ first, rtol=1e-5, atol=1e-3)


def test_a_mask_of_forms_that_agree_keeps_them_to_the_bit(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nii", rigid(3), rigid(3), (2, 4))
    write_label_map(tmp_path / "mask.nii", np.ones(SHAPE, np.uint8), read_image(path))
    fields = [f"srow_{x}" for x in "xyz"] + [f"qoffset_{x}" for x in "xyz"] + [f"quatern_{x}" for x in "bcd"]
    original, mask = (nibabel.load(tmp_path / name).header for name in ("image.nii", "mask.nii"))
    for field in [*fields, "sform_code", "qform_code", "xyzt_units"]:
        assert_array_equal(mask[field], original[field])
    assert_array_equal(mask["pixdim"][:4], original["pixdim"][:4])


def test_a_form_that_no_reader_could_use_is_not_kept(tmp_path: Path) -> None:
    flat = np.diag([2.0, 3, 0, 1])
    rows = {f"srow_{x}": row for x, row in zip("xyz", flat, strict=False)}
    path = write(tmp_path / "a.nii", np.eye(4), np.eye(4), array=np.zeros((5, 4), np.int16), **rows)
    slice_ = read_image(path)
    write_label_map(tmp_path / "mask.nii", np.ones((5, 4), np.uint8), slice_)
    assert_allclose(nibabel.load(tmp_path / "mask.nii").affine, slice_.affine)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, r"\(pixdim\) are \[0.0, 1.0, 1.0\]"),
        ({"pixdim": [1, 1, -1, 1, 0, 0, 0, 0]}, r"\(pixdim\) are \[1.0, -1.0, 1.0\]"),
        ({"pixdim": [1, 1, 1, np.nan, 0, 0, 0, 0]}, r"\(pixdim\) are"),
        ({"pixdim": [-2, 1, 1, 1, 0, 0, 0, 0]}, r"pixdim\[0\] \(qfac\) is -2"),
        ({"quatern_b": 0.9, "quatern_c": 0.9}, "affine is not usable"),
        ({"qoffset_x": np.inf}, "affine is not usable"),
    ],
)
def test_a_qform_that_readers_take_differently_is_refused_where_it_counts(
    tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    path = write(tmp_path / "a.nii", np.eye(4), np.eye(4), (0, 1), **fields)
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=says):
            read(path)
    read_image(write(path, np.eye(4), np.eye(4), (1, 1), **fields))  # an sform is there: it counts


def test_what_a_header_says_its_values_are_is_noted_for_an_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.eye(4), np.eye(4), intent_code=1002)
    assert "holds labels (intent code 1002), not an image" in " ".join(read_image(path).notes)
    assert read_label_map(path).notes == ()
    path = write(path, np.eye(4), np.eye(4), intent_code=3, cal_min=5, cal_max=6)
    assert "a statistic (intent code 3)" in " ".join(read_image(path).notes)
    assert not read_image(path).array.any()


@pytest.mark.parametrize(
    ("slope", "intercept", "scaled", "noted"),
    [(0, 0, False, False), (0, 5, False, True), (np.nan, np.nan, False, False), (2, 1, True, False)],
)
def test_scaling_is_nibabels(
    tmp_path: Path, slope: float, intercept: float, scaled: bool, noted: bool
) -> None:
    array = np.arange(60, dtype=np.int16).reshape(SHAPE)
    scaling = {"scl_slope": slope, "scl_inter": intercept}
    path = write(tmp_path / "a.nii", np.eye(4), np.eye(4), array=array, **scaling)
    read = read_image(path)
    assert_array_equal(read.array, nibabel.load(path).get_fdata())
    assert_array_equal(read.array, array * 2 + 1 if scaled else array)
    assert any("scl_inter 5 is not added" in note for note in read.notes) == noted


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (1, "binary"),
        (32, "complex64"),
        (128, "RGB24"),
        (1536, "float128"),
        (1792, "complex128"),
        (2304, "RGBA32"),
    ],
)
def test_other_datatypes_are_refused_by_name(tmp_path: Path, code: int, name: str) -> None:
    path = write(tmp_path / "a.nii", np.eye(4), np.eye(4), datatype=code)
    with pytest.raises(ImageError, match=rf"NIfTI datatype {code} \({name}"):
        read_image(path)
