"""What a DICOM's attributes say of its values is done to them, or the file is refused by the name of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SegmentationStorage,
)

from threefold.errors import ImageError
from threefold.images.dicom_groups import group_series
from threefold.images.dicom_search import find_series
from threefold.images.reading import read_header, read_image

Maker = Callable[..., Path]

SHAPE = (6, 8)
ENCODINGS = [(8, 8, 7), (16, 16, 15), (16, 12, 11), (16, 12, 15), (32, 32, 31), (32, 20, 19)]
"""Bits allocated, bits stored and the highest bit."""


def write(
    make: Maker, path: Path, values: np.ndarray, bits: tuple[int, int, int], *, signed: bool, **changes: Any
) -> Path:
    """Write stored values (integers of `bits[1]` bits) into their cells, with noise in the bits around."""
    allocated, stored, high = bits
    low = high + 1 - stored
    noise = np.random.default_rng(5).integers(0, 2**allocated, values.shape, dtype=np.uint64)
    mask = np.uint64((2**stored - 1) << low)
    cells = (noise & ~mask) | ((values.astype(np.int64).astype(np.uint64) << np.uint64(low)) & mask)
    make(
        path, np.zeros(SHAPE), (0, 0, 0), BitsAllocated=allocated, BitsStored=stored, HighBit=high,
        PixelRepresentation=int(signed), **changes,
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    dataset.PixelData = cells.astype(f"<u{allocated // 8}").tobytes()
    dataset["PixelData"].VR = "OW"
    pydicom.dcmwrite(path, dataset)
    return path


def random_values(stored: int, *, signed: bool) -> np.ndarray:
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    return np.random.default_rng(stored).integers(low, high, SHAPE)


@pytest.mark.parametrize("bits", ENCODINGS, ids=str)
@pytest.mark.parametrize("signed", [False, True])
def test_every_encoding_of_grey_values(
    tmp_path: Path, dicom_file: Maker, bits: tuple[int, int, int], signed: bool
) -> None:
    values = random_values(bits[1], signed=signed)
    rescalings = ((1, 0), (1, -1024), (0.5, -3.25), (-2, 7), None)
    for modality, photometric, rescaling in product(("CT", "MR"), ("MONOCHROME1", "MONOCHROME2"), rescalings):
        slope, intercept = rescaling or (1, 0)
        changes = {"RescaleSlope": None, "RescaleIntercept": None}
        if rescaling:
            changes = {"RescaleSlope": str(slope), "RescaleIntercept": str(intercept)}
        path = write(
            dicom_file, tmp_path / "a.dcm", values, bits, signed=signed, Modality=modality,
            PhotometricInterpretation=photometric, **changes,
        )  # fmt: skip
        if modality == "CT" and rescaling is None:
            for read in (read_image, read_header):
                with pytest.raises(ImageError, match="lacks RescaleSlope and RescaleIntercept, so"):
                    read(path)
            continue
        image = read_image(path)
        expected = values
        inverted = photometric == "MONOCHROME1" and modality != "CT"  # HU are HU, however they are shown
        if inverted:
            lowest, highest = (
                (-(2 ** (bits[1] - 1)), 2 ** (bits[1] - 1) - 1) if signed else (0, 2 ** bits[1] - 1)
            )
            expected = lowest + highest - values
        assert_allclose(image.array, expected * slope + intercept, rtol=2e-7, atol=1e-3)
        assert image.facts.unit == ("HU" if modality == "CT" else None)
        assert image.facts.photometric == photometric
        assert any("MONOCHROME1" in note for note in image.notes) == (photometric == "MONOCHROME1")
        assert read_header(path).facts == image.facts
        if bits[0] == bits[1] and not inverted:
            dataset = pydicom.dcmread(path)
            assert_allclose(
                image.array, apply_modality_lut(dataset.pixel_array, dataset), rtol=2e-7, atol=1e-3
            )


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("limit", [None, 40])
def test_padding(tmp_path: Path, dicom_file: Maker, signed: bool, modality: str, limit: int | None) -> None:
    stored = np.arange(48).reshape(SHAPE) + 30  # 30 to 77
    path = dicom_file(
        tmp_path / "a.dcm", stored, (0, 0, 0), Modality=modality, PixelRepresentation=int(signed),
        PixelPaddingValue=30, PixelPaddingRangeLimit=limit,
    )  # fmt: skip
    image = read_image(path)
    outside = (stored == 30) if limit is None else stored <= limit
    fill = -1024 if modality == "CT" else stored[~outside].min() - 1024
    assert_array_equal(image.array, np.where(outside, fill, stored - 1024))
    said = "-1024 HU" if modality == "CT" else "the smallest value of the others"
    assert image.notes[-1] == f"{outside.sum()} pixels outside the field of view set to {said}"


def test_padding_with_another_sign_than_its_pixels(tmp_path: Path, dicom_file: Maker) -> None:
    stored = np.full(SHAPE, 1000)
    stored[0, :3] = -2000
    path = dicom_file(tmp_path / "a.dcm", stored, (0, 0, 0))
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    pydicom.dcmwrite(path, dataset)
    assert read_image(path).array[0].tolist() == [-1024] * 3 + [-24] * 5


def test_a_series_counts_its_padding_once(tmp_path: Path, dicom_series: Callable[..., np.ndarray]) -> None:
    stored = dicom_series(tmp_path / "ct", [(0, 0, z) for z in range(4)], PixelPaddingValue=100)
    outside = int((stored == 100).sum())
    notes = read_image(tmp_path / "ct").notes
    assert notes == ((f"{outside} pixels outside the field of view set to -1024 HU",) if outside else ())
    stored[:] = 100
    for path in (tmp_path / "ct").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PixelData = stored[..., 0].astype("<i2").tobytes()
        pydicom.dcmwrite(path, dataset)
    image = read_image(tmp_path / "ct")
    assert image.notes == ("192 pixels outside the field of view set to -1024 HU",)
    assert (image.array == -1024).all()


def test_a_modality_table_takes_the_place_of_slope_and_intercept(tmp_path: Path, dicom_file: Maker) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [48, 0, 16]
    table.ModalityLUTType = "OD"
    values = np.random.default_rng(0).integers(0, 2**16, 48)
    table.LUTData = values.astype("<u2").tobytes()
    stored = np.arange(48).reshape(SHAPE)
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        path = dicom_file(
            tmp_path / "a.dcm", stored, (0, 0, 0), Modality="CR", RescaleSlope=None, RescaleIntercept=None,
            PixelRepresentation=0, ModalityLUTSequence=[table], PhotometricInterpretation=photometric,
        )  # fmt: skip
        expected = values.reshape(SHAPE)
        if photometric == "MONOCHROME1":
            expected = 2**16 - 1 - expected
        assert_array_equal(read_image(path).array, expected)


@pytest.mark.parametrize(
    ("stated", "unit", "says"),
    [
        ("HU", "HU", None),
        ("hu ", "HU", None),
        ("US", None, "a CT whose values are stated as 'US', not as HU"),
        ("MGML", "MGML", "a CT whose values are stated as 'MGML', not as HU"),
    ],
)
def test_the_unit_of_a_ct(
    tmp_path: Path, dicom_file: Maker, stated: str, unit: str | None, says: str | None
) -> None:
    image = read_image(dicom_file(tmp_path / "a.dcm", np.zeros(SHAPE), (0, 0, 0), RescaleType=stated))
    assert image.facts.unit == unit
    assert image.notes == (() if says is None else (says,))


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_grey_in_colour_channels_is_reduced_and_colour_refused(
    tmp_path: Path, dicom_file: Maker, photometric: str
) -> None:
    grey = np.arange(48).reshape(SHAPE) * 5
    channels = np.stack([grey, *([grey] * 2 if photometric == "RGB" else [np.full(SHAPE, 128)] * 2)], axis=-1)
    for colour in (False, True):
        channels[2, 3, 1] += 40 * colour
        path = dicom_file(
            tmp_path / "a.dcm", np.zeros(SHAPE), (0, 0, 0), Modality="US", RescaleSlope=None,
            RescaleIntercept=None, PhotometricInterpretation=photometric, SamplesPerPixel=3,
            PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0,
            PixelData=channels.astype(np.uint8).tobytes(),
        )  # fmt: skip
        if colour:
            with pytest.raises(ImageError, match="1 pixels are coloured, the first at row 2, column 3"):
                read_image(path)
        else:
            image = read_image(path)
            assert_array_equal(image.array, grey)
            assert image.notes == (f"{photometric} with equal channels, reduced to grey",)
            assert image.facts.channels == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"PhotometricInterpretation": None}, "lacks PhotometricInterpretation"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR with 1 samples"),
        ({"PhotometricInterpretation": "RGB"}, "RGB with 1 samples"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420", "SamplesPerPixel": 3}, "YBR_PARTIAL_420 with 3"),
        ({"PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 3}, "MONOCHROME2 with 3 samples"),
        ({"BitsStored": None}, "lacks BitsStored"),
        ({"PixelRepresentation": None}, "lacks PixelRepresentation"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "BitsAllocated 1,"),
        ({"BitsStored": 17}, "BitsStored 17"),
        ({"HighBit": 3}, "HighBit 3"),
        ({"RescaleIntercept": None}, "lacks RescaleIntercept, so its values are not proven"),
        ({"RescaleSlope": None}, "lacks RescaleSlope, so its values are not proven"),
        ({"RescaleSlope": None, "Modality": "MR"}, "lacks RescaleSlope, so its values are in no known unit"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"SOPClassUID": SegmentationStorage}, "no image with rows and columns: Segmentation"),
        ({"SOPClassUID": EncapsulatedPDFStorage, "Rows": None}, "Encapsulated PDF Storage"),
        ({"PixelAspectRatio": [1, 2]}, "contradict each other"),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [1, 1]}, "measured at the detector"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_proven_is_refused_by_its_name(
    tmp_path: Path, dicom_file: Maker, changes: dict[str, Any], says: str
) -> None:
    path = dicom_file(tmp_path / "a.dcm", np.zeros(SHAPE), (0, 0, 0), **changes)
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=says) as caught:
            read(path)
        assert "a.dcm" in str(caught.value)


@pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
def test_floating_pixels_are_refused(tmp_path: Path, dicom_file: Maker, keyword: str, kind: str) -> None:
    path = dicom_file(tmp_path / "a.dcm", np.zeros(SHAPE), (0, 0, 0), PixelData=None)
    dataset = pydicom.dcmread(path)
    setattr(dataset, keyword, np.zeros(SHAPE, kind).tobytes())
    pydicom.dcmwrite(path, dataset)
    with pytest.raises(
        ImageError, match=f"holds {keyword}, a map; expected whole numbers. Convert it to NIfTI"
    ):
        read_image(path)


def test_a_real_world_mapping_and_loss_are_noted(tmp_path: Path, dicom_file: Maker) -> None:
    path = dicom_file(
        tmp_path / "a.dcm", np.zeros(SHAPE), (0, 0, 0), LossyImageCompression="01",
        RealWorldValueMappingSequence=[pydicom.Dataset()],
    )  # fmt: skip
    notes = " ".join(read_image(path).notes)
    assert "RealWorldValueMapping" in notes
    assert "compressed with loss" in notes


@pytest.mark.parametrize(
    ("syntax", "meta"),
    [
        (ImplicitVRLittleEndian, True),
        (ImplicitVRLittleEndian, False),
        (ExplicitVRLittleEndian, False),
        (ExplicitVRBigEndian, True),
        (ExplicitVRBigEndian, False),
        (DeflatedExplicitVRLittleEndian, True),  # without meta information nobody could know
    ],
)
def test_every_transfer_syntax_with_its_meta_information_and_without(
    tmp_path: Path, dicom_file: Maker, syntax: str, meta: bool
) -> None:
    stored = np.arange(48).reshape(SHAPE) * 40 - 500
    path = dicom_file(tmp_path / "a.dcm", stored, (0, 0, 0))
    dataset = pydicom.dcmread(path)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored.astype(">i2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset = pydicom.Dataset(dataset)  # forgets how it was encoded, so that it can be encoded anew
    encoding = {
        "implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian
    }  # fmt: skip
    if meta:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path, enforce_file_format=True)
    else:
        dataset.save_as(path, **encoding)
    image = read_image(path)
    assert_array_equal(image.array, stored - 1024)
    assert any("without its file meta information" in note for note in image.notes) == (not meta)


def test_the_places_count_where_a_distance_is_stated(
    tmp_path: Path, dicom_series: Callable[..., np.ndarray]
) -> None:
    dicom_series(
        tmp_path / "ct", [(0, 0, z) for z in range(0, 20, 5)], SpacingBetweenSlices=4, SliceThickness=3
    )
    for read in (read_image, read_header):
        found = read(tmp_path / "ct")
        assert found.affine[2, 2] == 5
        assert "SpacingBetweenSlices says 4.00 mm, the slices' places 5.00 mm" in found.notes[0]


def test_reports_among_the_slices_are_passed_over(
    tmp_path: Path, dicom_series: Callable[..., np.ndarray], dicom_file: Maker
) -> None:
    dicom_series(tmp_path / "ct", [(0, 0, z) for z in range(3)])
    dicom_file(
        tmp_path / "ct" / "report.dcm", np.zeros(SHAPE), (0, 0, 9), PixelData=None, Rows=None,
        SOPClassUID=EncapsulatedPDFStorage,
    )  # fmt: skip
    image = read_image(tmp_path / "ct")
    assert image.array.shape == (*SHAPE, 3)
    assert image.notes == ("passed over, not DICOM images: report.dcm (Encapsulated PDF Storage)",)


@pytest.mark.parametrize(("stated", "written"), [("CT", "ct"), ("1.2.3", "1.02"), ("HEAD 5.0", "HEAD\n5.0")])
def test_what_the_standard_forbids_is_read_without_a_warning_on_the_screen(
    tmp_path: Path, dicom_file: Maker, stated: str, written: str
) -> None:
    """A warning is an error in the tests; pydicom warns of such values when they are first asked for."""
    (tmp_path / "scan").mkdir()
    path = dicom_file(tmp_path / "scan" / "a.dcm", np.ones(SHAPE), (0, 0, 0))
    content = path.read_bytes()
    assert stated.encode() in content
    path.write_bytes(content.replace(stated.encode(), written.ljust(len(stated)).encode()))
    assert read_image(path).facts.modality == "CT"
    read_header(path)
    read_image(path.parent)
    (found,) = group_series(path.parent, [path.name]).series
    assert found.names == [path.name]
    assert [series.files for series in find_series(path.parent).series] == [(path.name,)]
