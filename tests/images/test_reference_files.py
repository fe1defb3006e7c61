"""All files that pydicom and nibabel are tested with: read as these read them, or refused with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
from highdicom import get_volume_from_series
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.pixels.processing import apply_modality_lut

from threefold.errors import ImageError
from threefold.images.geometry import Image
from threefold.images.reading import read_header, read_image

PYDICOM = Path(pydicom.data.__file__).parent / "test_files"
NIBABEL = Path(nibabel.__file__).parent / "tests" / "data"

REASONS = (
    "lacks ImagePositionPatient",
    "lacks RescaleSlope",
    "no image with rows and columns",
    "frames in one file",
    "PALETTE COLOR",
    "a localizer",
    "not an image of a known format",
    "a gzipped dicom file",
    "truncated",
    "a CT in colour",
    "header of a .hdr/.img pair",
    "ANALYZE",
    "expected a slice (2 axes) or a volume (3 axes)",
    "NaN and 0 infinite voxels",
    "no decoder",
)
"""What a refusal may name; anything else is a refusal that nobody meant."""


def files_in(folder: Path) -> Iterator[Path]:
    yield from sorted(
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )


def read_or_reason(path: Path) -> Image | str:
    """Read a file by both readers, which have to agree; or return the reason why it was refused."""
    try:
        header = read_header(path)
    except ImageError as error:
        with pytest.raises(ImageError):
            read_image(path)
        return reason_in(path, error)
    try:
        image = read_image(path)
    except ImageError as error:
        return reason_in(path, error)
    assert header.shape == image.array.shape
    assert_array_equal(header.affine, image.affine)
    assert header.facts == image.facts
    assert set(header.notes) <= set(image.notes)
    return image


def reason_in(path: Path, error: ImageError) -> str:
    assert str(path) in str(error)
    assert len(str(error)) < 1000
    found = [reason for reason in REASONS if reason in str(error)]
    assert found, str(error)
    return found[0]


def test_pydicoms_files() -> None:
    read, refused = [], {}
    for path in files_in(PYDICOM):
        image = read_or_reason(path)
        if isinstance(image, str):
            refused[path.name] = image
            continue
        read.append(path.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            expected = np.asarray(apply_modality_lut(dataset.pixel_array, dataset))
        if dataset.get("PixelPaddingValue") is not None and dataset.Modality == "CT":
            expected = np.where(dataset.pixel_array == dataset.PixelPaddingValue, -1024, expected)
        assert_array_equal(image.array, expected, err_msg=str(path))
        assert image.facts.modality == dataset.Modality
        assert (image.facts.unit == "HU") == (dataset.Modality == "CT")
        position = np.array(dataset.ImagePositionPatient, float) * (-1, -1, 1)
        assert_allclose(image.affine[:3, 3], position)
    assert {"CT_small.dcm", "693_J2KI.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm"} <= set(read)
    assert len(read) >= 30
    assert refused["examples_palette.dcm"] == "PALETTE COLOR"
    assert refused["reportsi.dcm"] == refused["liver_1frame.dcm"] == "no image with rows and columns"
    assert refused["MR_truncated.dcm"] == "truncated"


def test_pydicoms_series_are_highdicoms_volumes() -> None:
    compared = 0
    for folder in sorted({path.parent for path in files_in(PYDICOM)}):
        try:
            image = read_image(folder)
        except ImageError:
            continue
        slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        assert_same_volume(image, get_volume_from_series(slices))
        compared += 1
    assert compared


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_series_is_highdicoms_volume(
    tmp_path: Path, dicom_series: object, signed: int, photometric: str, modality: str
) -> None:
    """By default highdicom inverts whatever is MONOCHROME1, as it is shown; but HU are HU."""
    right, down = np.array([0, 0.8, 0.6]), np.array([0, 0.6, -0.8])
    places = [np.array([10.0, -20, 30]) + np.cross(right, down) * 2.5 * k for k in range(4)]
    dicom_series(  # type: ignore[operator]
        tmp_path / "ct", places, PixelRepresentation=signed, PhotometricInterpretation=photometric,
        RescaleSlope="0.5", FrameOfReferenceUID="1.2.9", ImageOrientationPatient=[*right, *down],
        Modality=modality,
    )  # fmt: skip
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "ct").iterdir())]
    volume = get_volume_from_series(slices, apply_presentation_lut=modality != "CT")
    assert_same_volume(read_image(tmp_path / "ct"), volume)


def assert_same_volume(image: Image, volume: object) -> None:
    """Compare with highdicom's (slices, rows, columns), in LPS, at the same places."""
    array, affine = np.asarray(volume.array), np.asarray(volume.affine)  # type: ignore[attr-defined]
    order = np.diag([-1.0, -1, 1, 1]) @ affine  # to RAS+
    back = np.linalg.inv(order) @ image.affine
    for index in np.ndindex(2, 2, 2):
        here = np.array(index) * (np.array(image.array.shape) - 1)
        k, row, column = np.rint((back @ (*here, 1))[:3]).astype(int)
        assert_allclose((back @ (*here, 1))[:3], (k, row, column), atol=1e-3)
        assert image.array[tuple(here)] == pytest.approx(array[k, row, column])


def test_nibabels_files() -> None:
    read, refused = [], {}
    for path in files_in(NIBABEL):
        image = read_or_reason(path)
        if isinstance(image, str):
            refused[path.name] = image
        elif image.facts.format == "nifti":
            read.append(path.name)
            reference = nibabel.load(path)
            assert_array_equal(image.array, reference.get_fdata())
            assert_allclose(image.affine, reference.affine, atol=1e-6)
    assert read == ["anatomical.nii", "reoriented_anat_moved.nii", "standard.nii.gz"]
    assert refused["functional.nii"] == "expected a slice (2 axes) or a volume (3 axes)"
    assert refused["nifti1.hdr"] == "header of a .hdr/.img pair"
    assert refused["analyze.hdr"] == "ANALYZE"
