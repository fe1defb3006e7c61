"""NRRD and MetaImage: what pynrrd and ITK write is read as they mean it, and anything else is refused."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from threefold.errors import ImageError
from threefold.images.reading import read_header, read_image

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 4, 3)).astype(np.int16)
DIRECTIONS = np.array([[0, 0.8, 0.6], [0.5, 0, 0], [0, -1.2, 1.6]])  # a row an axis: 1, 0.5 and 2 mm
ORIGIN = np.array([10.0, -20.0, 30.0])
LPS = np.diag([-1.0, -1.0, 1.0])
PLACE: dict[str, Any] = {"space directions": DIRECTIONS, "space origin": ORIGIN}


def expected_affine(signs: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = signs @ DIRECTIONS.T
    affine[:3, 3] = signs @ ORIGIN
    return affine


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", LPS),
        ("right-anterior-superior", np.eye(3)),
        ("LAS", np.diag([-1.0, 1, 1])),
    ],
)
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_nrrd_is_what_pynrrd_wrote(tmp_path: Path, space: str, signs: np.ndarray, encoding: str) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), VOXELS, {"space": space, "encoding": encoding, **PLACE})
    image = read_image(tmp_path / "a.nrrd")
    assert_array_equal(image.array, VOXELS)
    assert_allclose(image.affine, expected_affine(signs), atol=1e-6)
    assert image.facts.format == "nrrd"
    assert image.facts.place_stated
    assert image.notes == ()
    header = read_header(tmp_path / "a.nrrd", slice_index=2)
    assert header.shape == (5, 4)
    assert_array_equal(read_image(tmp_path / "a.nrrd", slice_index=2).array, VOXELS[..., 2])


@pytest.mark.parametrize("kind", ["u1", "i2", ">i2", "u4", "f4", "f8"])
def test_kinds_of_voxels_and_files_beside_the_header(tmp_path: Path, kind: str) -> None:
    voxels = np.abs(VOXELS[:, :, 0]).astype(kind)
    nrrd.write(str(tmp_path / "a.nhdr"), voxels, {"spacings": [0.5, 0.7]}, detached_header=True)
    image = read_image(tmp_path / "a.nhdr")
    assert_array_equal(image.array, voxels)
    assert image.spacing == pytest.approx((0.5, 0.7))
    assert image.facts.spacing_stated
    assert not image.facts.place_stated
    assert "not stated" in image.notes[0]


def meta(path: Path, data: bytes = VOXELS.tobytes(order="F"), **changes: str) -> Path:
    """Write a MetaImage with the fields that ITK writes, in its order."""
    fields = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "0 0.8 0.6 1 0 0 0 -0.6 0.8", "Offset": "10 -20 30",
        "CenterOfRotation": "0 0 0", "AnatomicalOrientation": "RAI", "ElementSpacing": "1 0.5 2",
        "DimSize": "5 4 3", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
    } | changes  # fmt: skip
    fields["ElementDataFile"] = last = fields.pop("ElementDataFile")
    head = "".join(f"{name} = {value}\n" for name, value in fields.items() if value)
    path.write_bytes(head.encode() + (data if last == "LOCAL" else b""))
    return path


def test_metaimage(tmp_path: Path) -> None:
    image = read_image(meta(tmp_path / "a.mha"))
    assert_array_equal(image.array, VOXELS)
    assert_allclose(image.affine, expected_affine(LPS), atol=1e-6)
    assert image.facts.format == "metaimage"
    packed = meta(tmp_path / "b.mha", zlib.compress(VOXELS.tobytes(order="F")), CompressedData="True")
    assert_array_equal(read_image(packed).array, VOXELS)
    big = meta(tmp_path / "c.mha", VOXELS.astype(">i2").tobytes(order="F"), BinaryDataByteOrderMSB="True")
    assert_array_equal(read_image(big).array, VOXELS)
    (tmp_path / "d.raw").write_bytes(VOXELS.tobytes(order="F"))
    beside = read_image(meta(tmp_path / "d.mhd", ElementDataFile="d.raw", TransformMatrix="", Offset=""))
    assert_array_equal(beside.array, VOXELS)
    assert beside.spacing == pytest.approx((1, 0.5, 2))
    assert "not stated" in beside.notes[0]


def text(path: Path, head: str) -> Path:
    path.write_text(head)
    return path


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nencoding: raw\nendian: little\n"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: meta(p, VOXELS.tobytes()[:-1]), "truncated: a.mha holds 119 bytes"),
        (lambda p: meta(p, zlib.compress(bytes(90)), CompressedData="True"), "holds 90 bytes"),
        (lambda p: meta(p, ElementDataFile="../secret.raw"), "name of one file in its folder"),
        (lambda p: meta(p, ElementDataFile="gone.raw"), "there is no such file"),
        (lambda p: meta(p, ElementNumberOfChannels="3"), "3 channels"),
        (lambda p: meta(p, DimSize="5 4 3 2"), "expected one grey slice or volume"),
        (lambda p: meta(p, DimSize=""), "lacks 'DimSize'"),
        (lambda p: meta(p, DimSize="a b c"), "truncated, damaged"),
        (lambda p: meta(p, ElementType="MET_FLOAT_MATRIX"), "MET_FLOAT_MATRIX"),
        (lambda p: meta(p, ElementSpacing="0 1 1"), "not a usable grid"),
        (lambda p: meta(p, DimSize="99999 99999 99999"), "of memory to read"),
        (lambda p: text(p, NRRD + "\n"), "truncated: a.mha holds 0 bytes"),
        (lambda p: text(p, NRRD.replace("raw", "hex") + "\n"), "encoding 'hex'"),
        (lambda p: text(p, NRRD.replace("short", "block") + "\n"), "type 'block'"),
        (lambda p: text(p, NRRD.replace("5 4 3", "5 -4 3") + "\n"), "expected one grey slice"),
        (lambda p: text(p, NRRD + "data file: /etc/passwd\n"), "name of one file in its folder"),
        (
            lambda p: text(p, NRRD + "space: LPS\nspace directions: (1,0) (0,1) (0,0)\n"),
            "a vector of 2 numbers",
        ),
        (lambda p: text(p, "NRRD0004\n"), "lacks 'sizes'"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, make: Any, says: str) -> None:
    path = make(tmp_path / "a.mha")
    with pytest.raises(ImageError, match=says) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
