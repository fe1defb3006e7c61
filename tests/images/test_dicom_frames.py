"""Enhanced multi-frame files: the volume that highdicom reads, and that the single slices are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.uid import MRImageStorage, RLELossless, UltrasoundMultiFrameImageStorage, generate_uid

from threefold.cohorts.cohort import CohortSpec
from threefold.cohorts.dicom_import import Identity, import_dicom
from threefold.errors import ImageError
from threefold.images.reading import read_header, read_image

from .test_reference_files import assert_same_volume

Maker = Callable[..., np.ndarray]
STUDY: dict[str, Any] = {
    "PatientID": "p", "PatientName": "p^p", "PatientBirthDate": "", "PatientSex": "",
    "StudyInstanceUID": "1.2.8", "WindowCenter": 40, "WindowWidth": 80, "StudyID": "1",
    "StudyDate": "20200101", "StudyTime": "000000", "AccessionNumber": "",
    "ReferringPhysicianName": "", "FrameOfReferenceUID": "1.2.9", "PositionReferenceIndicator": "",
    "SeriesNumber": 1, "Manufacturer": "ACME", "ContentDate": "20200101", "ContentTime": "000000",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
}  # fmt: skip
MR: dict[str, Any] = {
    "Modality": "MR", "SOPClassUID": MRImageStorage, "MRAcquisitionType": "2D", "ScanningSequence": "SE",
    "RescaleSlope": None, "RescaleIntercept": None,
}  # fmt: skip
RIGHT, DOWN = np.array([0, 0.8, 0.6]), np.array([0, 0.6, -0.8])
PLACES = [np.array([10.0, -20, 30]) + np.cross(RIGHT, DOWN) * 2.5 * k for k in range(4)]


def enhanced(folder: Path, make_series: Maker, **changes: Any) -> tuple[Path, Path]:
    """Write a series as single slices, and by highdicom as one file; return the folder and the file."""
    settings = {"ImageOrientationPatient": [*RIGHT, *DOWN], **STUDY, **changes}
    make_series(folder / "slices", PLACES, **settings)
    slices = [pydicom.dcmread(path) for path in sorted((folder / "slices").iterdir())]
    kind = "MR" if settings.get("Modality") == "MR" else "CT"
    converted = getattr(highdicom.legacy, f"LegacyConvertedEnhanced{kind}Image")(
        slices, generate_uid(), 2, generate_uid(), 1
    )
    converted.save_as(folder / "enhanced.dcm")
    return folder / "slices", folder / "enhanced.dcm"


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory, dicom_series: Maker) -> tuple[Path, Path]:
    return enhanced(tmp_path_factory.mktemp("ct"), dicom_series, RescaleSlope="0.5")


@pytest.mark.parametrize("changes", [{"RescaleSlope": "0.5", "PixelRepresentation": 0}, MR], ids=["CT", "MR"])
def test_an_enhanced_file_is_the_volume_of_its_slices(
    tmp_path: Path, dicom_series: Maker, changes: dict[str, Any]
) -> None:
    slices, file = enhanced(tmp_path, dicom_series, **changes)
    image, expected = read_image(file), read_image(slices)
    assert image.array.shape == (6, 8, 4)
    assert_array_equal(image.array, expected.array)
    assert_allclose(image.affine, expected.affine, atol=1e-6)
    assert image.facts.unit == expected.facts.unit
    assert image.source == file
    assert_same_volume(image, highdicom.imread(file).get_volume())
    header = read_header(file)
    assert (header.shape, header.facts) == (image.array.shape, image.facts)
    assert_array_equal(header.affine, image.affine)
    one = read_image(file, slice_index=2)
    assert_array_equal(one.array, image.array[..., 2])
    assert_allclose(one.affine, read_header(file, slice_index=2).affine)
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match="there is no slice 4"):
            read(file, slice_index=4)


def changed(file: Path, out: Path, change: Callable[[pydicom.Dataset], object]) -> Path:
    dataset = pydicom.dcmread(file)
    change(dataset)
    dataset.save_as(out)
    return out


def frames(dataset: pydicom.Dataset) -> Any:
    return dataset.PerFrameFunctionalGroupsSequence


def test_each_frame_has_a_place_and_a_slope_of_its_own(ct: tuple[Path, Path], tmp_path: Path) -> None:
    plain = read_image(ct[1])
    slopes = np.zeros(4)  # by slice

    def shuffle(dataset: pydicom.Dataset) -> None:
        order = [2, 0, 3, 1]
        pixels = np.stack([dataset.pixel_array[k] for k in order])
        groups = [frames(dataset)[k] for k in order]
        for number, group in enumerate(groups):
            values = pydicom.Dataset()
            values.RescaleSlope, values.RescaleIntercept, values.RescaleType = number + 1, -10, "HU"
            group.PixelValueTransformationSequence = [values]
            place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            slopes[np.linalg.norm(PLACES - place, axis=1).argmin()] = number + 1
        del dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
        dataset.PerFrameFunctionalGroupsSequence = groups
        dataset.PixelData = pixels.tobytes()

    image = read_image(changed(ct[1], tmp_path / "a.dcm", shuffle))
    stored = (plain.array + 1024) / 0.5
    assert_allclose(image.array, stored * slopes - 10)
    assert_allclose(image.affine, plain.affine)


def test_compressed_frames(ct: tuple[Path, Path], tmp_path: Path) -> None:
    path = changed(ct[1], tmp_path / "a.dcm", lambda dataset: dataset.compress(RLELossless))
    assert_array_equal(read_image(path).array, read_image(ct[1]).array)


def drop_frame(dataset: pydicom.Dataset) -> None:
    at = [group.PlanePositionSequence[0].ImagePositionPatient[0] for group in frames(dataset)]
    middle = int(np.argsort(at)[1])
    pixels = np.delete(dataset.pixel_array, middle, axis=0)
    del frames(dataset)[middle]
    dataset.NumberOfFrames, dataset.PixelData = 3, pixels.tobytes()


def same_place(dataset: pydicom.Dataset) -> None:
    frames(dataset)[1].PlanePositionSequence = frames(dataset)[0].PlanePositionSequence


def no_places(dataset: pydicom.Dataset) -> None:
    for group in frames(dataset):
        del group.PlanePositionSequence


def cut_groups(dataset: pydicom.Dataset) -> None:
    del frames(dataset)[3]


def no_rescaling(dataset: pydicom.Dataset) -> None:
    del dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence


def cut_pixels(dataset: pydicom.Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-96]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_frame, "unevenly spaced"),
        (same_place, r"1 lie where another one is: frame \d of a.dcm and frame \d of a.dcm"),
        (no_places, "lacks ImagePositionPatient"),
        (cut_groups, "4 frames, but functional groups of 3"),
        (no_rescaling, "lacks RescaleSlope and RescaleIntercept"),
        (cut_pixels, "truncated, damaged"),
    ],
)
def test_what_is_no_volume_is_refused(
    ct: tuple[Path, Path], tmp_path: Path, change: Callable[[pydicom.Dataset], object], says: str
) -> None:
    path = changed(ct[1], tmp_path / "a.dcm", change)
    with pytest.raises(ImageError, match=says) as caught:
        read_image(path)
    assert "a.dcm" in str(caught.value)
    if change is drop_frame:
        assert read_image(path, uneven="resample").array.shape[2] in (3, 4)


def test_frames_without_places_are_refused(tmp_path: Path, dicom_file: Callable[..., Path]) -> None:
    path = dicom_file(
        tmp_path / "a.dcm", np.zeros((12, 8)), (0, 0, 0), Rows=6, NumberOfFrames=2, Modality="US",
        SOPClassUID=UltrasoundMultiFrameImageStorage,
    )  # fmt: skip
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=r"2 frames in one file \(Ultrasound Multi-frame .* dcm2niix"):
            read(path)


def test_an_enhanced_file_is_imported_as_a_series(ct: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    (folder / "enhanced.dcm").write_bytes(ct[1].read_bytes())
    meaning = {"name": "x", "modality": "ct", "intensity": {"unit": "HU", "window": [0, 80]}}
    counts = {}
    for axes, uneven in ((3, "refuse"), (2, "refuse"), (2, "keep")):
        spec = CohortSpec.model_validate({**meaning, "dimensions": axes})
        out = tmp_path / f"{axes}-{uneven}"
        cohort = import_dicom(folder, out, spec=spec, identity=Identity("p", "a"), uneven=uneven)  # type: ignore[arg-type]
        counts[out.name] = len(cohort.cases)
    assert counts == {"3-refuse": 1, "2-refuse": 4, "2-keep": 4}
