"""Compressed DICOM: each transfer syntax gives the voxels of its uncompressed twin, or of another decoder."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from threefold.errors import ImageError
from threefold.images.dicom_pixels import read_encoding, read_pixels
from threefold.images.reading import read_image

PYDICOM = Path(pydicom.data.__file__).parent / "test_files"
TWELVE_BITS_SHA256 = "d30242775a414c01d616447854ebe3f2b20259822894bcd6891f879bcdcbf313"
"""Of the pixels of pydicom's JPGExtended.dcm, decoded by DCMTK 3.6.7 (dcmdjpeg), uint16."""
ROWS, COLUMNS = np.mgrid[:10, :12]
PATTERN = (37 * ROWS + 101 * COLUMNS) % 400
BY_OTHERS: dict[UID, tuple[str, int]] = {
    JPEGLossless: (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAKAAwBAREA/8QAGQABAAMBAQAAAAAAAAAAAAAABQYHCQgQ/9oACAEBAAYAAPXLcty5"
        "qXLcty5qXLctyyVNNNNNNNNNNOSpppppppppppyVNPILttNPILttNPIKSpppppppppppyVNNNNNNNNNNOSp5Bdtpp5Bdtpp5Bdty"
        "VNNNNNNNNNNOSpppp5Bdtpp5BdtpyXILttNNNNNNNNP/2Q==",
        0,
    ),
    JPEGLosslessSV1: (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALEAAKAAwBAREA/8QAFwABAQEBAAAAAAAAAAAAAAAABwkGEP/aAAgBAQABAADmVlZZqMrK"
        "yzUZWVl0rKyss1GVlZZqMrKy6VlZWWajKyss1GVlZdKyss1GVlZZqMrKyzU0rKyzUZWVlmoysrLNTSsrLNRlZWWajKyss1NKyzUZ"
        "WVlmoysrLNRl0rLNRlZWWajKyss1GXSss1GVlmoysrLNRlZdLNRlZWWajKyss1GVl///2Q==",
        0,
    ),
    HTJ2KLossless: (
        "/0//UQApQAAAAAAMAAAACgAAAAAAAAAAAAAADAAAAAoAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAIEBEAB/1wACiCI"
        "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4zMS4wLv+QAAoAAAAAAMEAAf+TwAArwClmiHG1V/YAkn/AgXs4AMAAFpwAAVUAAFaA"
        "vlDpOiqJxdgj/gAYi8whAPm5AIjBghjzA5F/NQADjTG6VmL+ACEDfrYAwAAungABdBAAC2SOKo4qSHIMriXGEAN4iRgxgHckY1xZ"
        "Qf4P8YgO+7lc9EHYQgByfwDjOI7jGJVjYipiYzFeXLQPgkSQB9Z6fuEnD4RTyL/dAI+Pj8fHx47Hxxw/fvwEB/z9fMYdCEB33AD/"
        "2Q==",
        -200,
    ),
}
"""PATTERN plus a number, as 16 bits: by DCMTK's dcmcjpeg (JPEG Lossless) and OpenJPH (HTJ2K)."""


def write_encoded(
    path: Path, make: Callable[..., Path], syntax: UID, frame: bytes, **changes: object
) -> Path:
    make(path, PATTERN, (0, 0, 0), RescaleIntercept=0, **changes)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, dataset)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm",
    ],
)  # fmt: skip
def test_pydicoms_files_are_their_uncompressed_twin(name: str) -> None:
    image, twin = read_image(PYDICOM / name), read_image(PYDICOM / "MR_small.dcm")
    assert_array_equal(image.array, twin.array)
    assert_array_equal(image.affine, twin.affine)


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian]
)
def test_what_pydicom_compresses_is_the_image_before(tmp_path: Path, syntax: UID) -> None:
    dataset = pydicom.dcmread(PYDICOM / "CT_small.dcm")
    if syntax == DeflatedExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = syntax
    else:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(tmp_path / "a.dcm")
    assert_array_equal(read_image(tmp_path / "a.dcm").array, read_image(PYDICOM / "CT_small.dcm").array)


@pytest.mark.parametrize("syntax", BY_OTHERS, ids=lambda uid: uid.keyword)
def test_frames_that_other_programs_compressed(
    tmp_path: Path, dicom_file: Callable[..., Path], syntax: UID
) -> None:
    encoded, plus = BY_OTHERS[syntax]
    bits = {"PixelRepresentation": 0, "BitsStored": 12, "HighBit": 11} if plus == 0 else {}
    path = write_encoded(tmp_path / "a.dcm", dicom_file, syntax, base64.b64decode(encoded), **bits)
    assert_array_equal(read_image(path).array, PATTERN + plus)


def test_jpeg_extended_of_12_bits_is_what_dcmtk_decodes() -> None:
    path = PYDICOM / "JPGExtended.dcm"
    dataset = pydicom.dcmread(path)
    encoding = read_encoding(path, dataset)
    pixels = read_pixels(path, dataset, encoding)
    assert encoding.stored == 12
    assert hashlib.sha256(pixels.values.astype(np.uint16).tobytes()).hexdigest() == TWELVE_BITS_SHA256
    assert "was compressed with loss" in encoding.notes


@pytest.mark.parametrize("name", ["JPEGLSNearLossless_16.dcm", "JPEGLSNearLossless_08.dcm"])
def test_near_lossless_jpeg_ls_is_read_as_pydicom_reads_it(name: str) -> None:
    dataset = pydicom.dcmread(PYDICOM / name)
    encoding = read_encoding(PYDICOM / name, dataset)
    assert_array_equal(read_pixels(PYDICOM / name, dataset, encoding).values, dataset.pixel_array)


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1], ids=lambda uid: uid.keyword)
def test_a_jpeg_that_ends_early_is_refused(
    tmp_path: Path, dicom_file: Callable[..., Path], syntax: UID
) -> None:
    """GDCM alone would give the rows that it has, and say nothing."""
    frame = base64.b64decode(BY_OTHERS[syntax][0])
    path = write_encoded(tmp_path / "a.dcm", dicom_file, syntax, frame[:150])
    with pytest.raises(ImageError, match=r"a\.dcm: truncated, damaged.*ends early"):
        read_image(path)


@pytest.mark.parametrize(
    ("syntax", "says"),
    [
        (JPEGLSLossless, "JPEG-LS Lossless.*Install pyjpegls: pip install"),
        (JPEGLosslessSV1, "JPEG Lossless, Non-Hierarchical, First-Order.*Install python-gdcm"),
        (HTJ2KLossless, "High-Throughput JPEG 2000.*Install pylibjpeg and pylibjpeg-openjpeg"),
        (JPEGExtended12Bit, "JPEG Extended.*Install python-gdcm"),
        (UID("1.2.840.10008.1.2.4.66"), r"\(1\.2\.840\.10008\.1\.2\.4\.66\), for which.*Decompress it"),
    ],
    ids=lambda one: one.keyword if isinstance(one, UID) else "",
)
def test_where_a_decoder_is_missing_syntax_and_package_are_named(
    tmp_path: Path,
    dicom_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    syntax: UID,
    says: str,
) -> None:
    path = write_encoded(tmp_path / "a.dcm", dicom_file, syntax, bytes(100))
    monkeypatch.setitem(sys.modules, "gdcm", None)
    monkeypatch.setattr("threefold.images.dicom_decoders.find_spec", lambda name: None)
    if syntax != JPEGExtended12Bit:  # of 8 bits it is read without the extra
        monkeypatch.setattr(Decoder, "is_available", False)
    with pytest.raises(ImageError, match=rf"a\.dcm: its pixels are compressed as .*{says}"):
        read_image(path)
