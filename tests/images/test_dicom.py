from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from threefold.errors import ImageError
from threefold.images.reading import read_header, read_image

Maker = Callable[..., np.ndarray]
EVEN = [(-100, -90, z) for z in (0, 5, 10, 15, 20)]


def test_a_file_is_a_slice_in_hounsfield_units(tmp_path: Path, dicom_file: Callable[..., Path]) -> None:
    stored = np.arange(48).reshape(6, 8) * 40
    path = dicom_file(tmp_path / "a.dcm", stored, (-100, -90, 30))
    image = read_image(path)
    assert_array_equal(image.array, stored - 1024)
    assert image.array.dtype == np.int16
    # DICOM is LPS: x grows along a row (columns, PixelSpacing[1]), y down the rows (PixelSpacing[0])
    assert_allclose(image.affine @ (0, 0, 0, 1), (100, 90, 30, 1))
    assert_allclose(image.affine @ (2, 0, 0, 1), (100, 90 - 2 * 0.5, 30, 1))
    assert_allclose(image.affine @ (0, 3, 0, 1), (100 - 3 * 0.4, 90, 30, 1))
    assert_allclose(image.affine @ (0, 0, 1, 1), (100, 90, 35, 1))
    header = read_header(path)
    assert header.shape == (6, 8)
    assert_array_equal(header.affine, image.affine)


def test_the_suffix_does_not_matter(tmp_path: Path, dicom_file: Callable[..., Path]) -> None:
    path = dicom_file(tmp_path / "IM0001", np.zeros((6, 8)), (0, 0, 0))
    assert read_image(path).array.shape == (6, 8)


def test_fractional_rescaling(tmp_path: Path, dicom_file: Callable[..., Path]) -> None:
    stored = np.arange(48).reshape(6, 8)
    path = dicom_file(tmp_path / "a.dcm", stored, (0, 0, 0), RescaleSlope="0.5", RescaleIntercept="-3.25")
    assert_allclose(read_image(path).array, stored * 0.5 - 3.25)


def test_padding_becomes_air_and_is_noted(tmp_path: Path, dicom_file: Callable[..., Path]) -> None:
    stored = np.full((6, 8), 1000)
    stored[0, :3] = -2000
    path = dicom_file(tmp_path / "a.dcm", stored, (0, 0, 0), PixelPaddingValue=-2000)
    image = read_image(path)
    assert image.array[0, :4].tolist() == [-1024, -1024, -1024, -24]
    assert "3 pixels outside the field of view set to -1024 HU" in image.notes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ImagePositionPatient": None}, "lacks ImagePositionPatient"),
        (
            {"ImageOrientationPatient": None, "PixelSpacing": None},
            "lacks ImageOrientationPatient, PixelSpacing",
        ),
        ({"PixelData": None}, "holds no pixels"),
        ({"PixelData": b"\0" * 10}, "damaged"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not a usable grid"),
        ({"PixelSpacing": [0, 1]}, "not a usable grid"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "a CT in colour"),
        ({"NumberOfFrames": 2}, "2 frames"),
    ],
)
def test_a_file_without_a_place_or_pixels_is_refused(
    tmp_path: Path, dicom_file: Callable[..., Path], changes: dict[str, object], says: str
) -> None:
    path = dicom_file(tmp_path / "a.dcm", np.zeros((6, 8)), (0, 0, 0), **changes)
    with pytest.raises(ImageError, match=says) as caught:
        read_image(path)
    assert "a.dcm" in str(caught.value)


def test_an_even_series_is_a_volume_sorted_by_place(tmp_path: Path, dicom_series: Maker) -> None:
    stored = dicom_series(tmp_path / "ct", EVEN)
    image = read_image(tmp_path / "ct")
    assert_array_equal(image.array, stored - 1024)
    assert_allclose(image.affine @ (0, 0, 4, 1), (100, 90, 20, 1))
    assert image.spacing == pytest.approx((0.5, 0.4, 5))
    one = read_image(tmp_path / "ct", slice_index=3)
    assert_array_equal(one.array, stored[..., 3] - 1024)
    assert_allclose(one.affine @ (0, 0, 0, 1), (100, 90, 15, 1))
    header = read_header(tmp_path / "ct", slice_index=3)
    assert_array_equal(header.affine, one.affine)
    assert read_header(tmp_path / "ct").shape == (6, 8, 5)
    with pytest.raises(ImageError, match=r"series 1\.2\.3 'HEAD 5\.0': there is no slice 5; it has 5"):
        read_image(tmp_path / "ct", slice_index=5)


@pytest.mark.parametrize("keep", [140, 300, 500])
def test_a_slice_that_is_cut_off_in_its_header_is_no_report(
    tmp_path: Path, dicom_series: Maker, keep: int
) -> None:
    dicom_series(tmp_path / "ct", EVEN)
    for path in (tmp_path / "ct").iterdir():
        if pydicom.dcmread(path).ImagePositionPatient[2] == 20:  # the last one: the others are even
            path.write_bytes(path.read_bytes()[:keep])
            cut = path.name
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=cut):
            read(tmp_path / "ct")


def test_a_sagittal_oblique_series_lies_where_its_headers_say(tmp_path: Path, dicom_series: Maker) -> None:
    right, down = np.array([0, 0.8, 0.6]), np.array([0, 0.6, -0.8])
    normal = np.cross(right, down)
    start = np.array([10.0, -20, 30])
    positions = [start + normal * 2.5 * k for k in range(4)]
    dicom_series(tmp_path / "ct", positions, ImageOrientationPatient=[*right, *down])
    image = read_image(tmp_path / "ct")
    expected = start + right * 0.4 * 7 + down * 0.5 * 5 + normal * 2.5 * 3
    assert_allclose((image.affine @ (5, 7, 3, 1))[:3], expected * (-1, -1, 1), atol=1e-5)


def test_files_that_are_no_dicom_are_passed_over_and_noted(tmp_path: Path, dicom_series: Maker) -> None:
    dicom_series(tmp_path / "ct", EVEN)
    (tmp_path / "ct" / "LICENSE").write_text("free")
    assert read_image(tmp_path / "ct").notes == ("passed over, not DICOM images: LICENSE",)
    (tmp_path / "ct" / "000.dcm").write_bytes(b"")
    with pytest.raises(ImageError, match=r"000\.dcm"):
        read_image(tmp_path / "ct")


def test_missing_slices_are_named(tmp_path: Path, dicom_series: Maker) -> None:
    dicom_series(tmp_path / "ct", [(-100, -90, z) for z in (0, 5, 10, 25, 30, 35)])
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "ct")
    message = str(caught.value)
    assert "series 1.2.3 'HEAD 5.0'" in message
    assert "5.00 mm (4x), 15.00 mm (1x)" in message
    assert re.search(r"Slices are missing: 2 between \d+\.dcm and \d+\.dcm", message)
    with pytest.raises(ImageError, match="Slices are missing"):
        read_header(tmp_path / "ct")


def test_doubled_slices_are_named(tmp_path: Path, dicom_series: Maker) -> None:
    dicom_series(tmp_path / "ct", [*EVEN, EVEN[2]])
    for uneven in ("refuse", "resample"):
        with pytest.raises(ImageError, match=r"1 lie where another one is: \d+\.dcm and \d+\.dcm"):
            read_image(tmp_path / "ct", uneven=uneven)


def test_two_series_are_listed(tmp_path: Path, dicom_series: Maker) -> None:
    dicom_series(tmp_path / "ct", EVEN)
    for path in (tmp_path / "ct").iterdir():
        path.rename(path.with_name(f"a{path.name}"))
    dicom_series(tmp_path / "ct", EVEN[:2], SeriesInstanceUID="1.2.4", SeriesDescription=None)
    with pytest.raises(
        ImageError, match=r"found 2: 1\.2\.3 'HEAD 5\.0' \(5 files.*; 1\.2\.4 'no description' \(2 files"
    ):
        read_image(tmp_path / "ct")


@pytest.mark.parametrize(
    "change", [{"PixelSpacing": [0.5, 0.5]}, {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}]
)
def test_a_scout_among_the_slices_is_refused(
    tmp_path: Path, dicom_series: Maker, dicom_file: Callable[..., Path], change: dict[str, object]
) -> None:
    dicom_series(tmp_path / "ct", EVEN)
    dicom_file(tmp_path / "ct" / "scout.dcm", np.zeros((6, 8)), (0, 0, 40), **change)
    with pytest.raises(ImageError, match=r"one size, spacing and orientation.*scout\.dcm"):
        read_image(tmp_path / "ct")


def test_an_empty_folder_names_the_folders_in_it(tmp_path: Path, dicom_series: Maker) -> None:
    dicom_series(tmp_path / "ct", EVEN)
    with pytest.raises(ImageError, match=r"found no DICOM image\. It has folders: ct"):
        read_image(tmp_path)


def test_rounded_positions_pass_as_even(tmp_path: Path, dicom_series: Maker) -> None:
    dicom_series(tmp_path / "ct", [(-100, -90, z) for z in (0, 5.01, 10, 14.99, 20)])
    assert read_image(tmp_path / "ct").spacing[2] == pytest.approx(5)


def test_a_single_slice_has_its_thickness(tmp_path: Path, dicom_series: Maker) -> None:
    dicom_series(tmp_path / "ct", EVEN[:1])
    image = read_image(tmp_path / "ct")
    assert image.array.shape == (6, 8, 1)
    assert image.spacing[2] == 5


def world_ramp(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A function that is linear in patient coordinates, which linear resampling must reproduce."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, : len(shape)].T + affine[:3, 3]
    return world @ (0.5, -2.0, 3.0) + 300


@pytest.mark.parametrize("tilt", [0.0, 18.5, -12.0])
def test_resampling_reproduces_a_linear_function_of_space(
    tmp_path: Path, dicom_file: Callable[..., Path], tilt: float
) -> None:
    sine, cosine = np.sin(np.radians(tilt)), np.cos(np.radians(tilt))
    orientation = [1, 0, 0, 0, cosine, -sine]
    folder = tmp_path / "ct"
    folder.mkdir()
    places = (0.0, 4, 8, 12, 13.1, 20, 27, 34)
    for k, z in enumerate(places):
        path = dicom_file(
            folder / f"{k}.dcm", np.zeros((40, 16)), (-3, -10, z), ImageOrientationPatient=orientation
        )
        values = world_ramp(read_image(path).affine, (40, 16)) * 16  # 1/16 units keep rounding small
        dicom_file(
            path, np.round(values), (-3, -10, z), ImageOrientationPatient=orientation,
            RescaleSlope="0.0625", RescaleIntercept="0", Modality="MR",
        )  # fmt: skip
    with pytest.raises(ImageError, match="unevenly spaced" if not tilt else "gantry tilt of"):
        read_image(folder)
    image = read_image(folder, uneven="resample")
    assert np.allclose(image.affine[:3, :3].T @ image.affine[:3, :3], np.diag(np.square(image.spacing)))
    assert "resampled linearly: 8 slices" in image.notes[-1]
    assert ("tilt" in image.notes[-1]) == bool(tilt)
    expected = world_ramp(image.affine, image.array.shape)
    checked = 0
    for k in range(image.array.shape[2]):
        rows = np.array([image.affine @ (row, 0, k, 1) for row in range(image.array.shape[0])])[:, :3]
        offsets = rows[:, None] * (-1, -1, 1) - [(-3, -10, z) for z in places]  # (rows, slices, 3) LPS
        along = offsets[0] @ (0, sine, cosine)  # distance from each slice along the normal
        between = [np.flatnonzero(along > -1e-6)[-1], np.flatnonzero(along < 1e-6)[0]]
        covered = offsets[:, between] @ (0, cosine, -sine) / 0.5  # row index in the slices on both sides
        inside = ((covered >= 0) & (covered <= 39)).all(axis=1)
        assert_allclose(image.array[inside, :, k], expected[inside, :, k], atol=0.04)  # 1/32: stored rounding
        checked += int(inside.sum())
    assert checked > 30 * image.array.shape[2] * (0.8 if tilt else 1)
    one = read_image(folder, uneven="resample", slice_index=2)
    assert_array_equal(one.array, image.array[..., 2])


def test_resample_leaves_an_even_series_alone(tmp_path: Path, dicom_series: Maker) -> None:
    stored = dicom_series(tmp_path / "ct", EVEN)
    image = read_image(tmp_path / "ct", uneven="resample")
    assert_array_equal(image.array, stored - 1024)
    assert image.notes == ()


@pytest.mark.real("head_ct_dicom")
def test_the_real_tilted_uneven_head_is_refused_and_resampled_when_asked(shared_data: Path) -> None:
    folder = shared_data / "head_ct_dicom" / "series"
    with pytest.raises(ImageError) as caught:
        read_image(folder)
    message = str(caught.value)
    assert "4245.3115138630835728997848661150714813892" in message
    assert "gantry tilt of 18.5 degrees" in message
    assert "1.08 mm (1x), 4.00 mm (13x), 7.00 mm (13x)" in message
    image = read_image(folder, uneven="resample")
    assert (
        "28 slices 1.08 to 7.00 mm apart onto 37 slices 4.00 mm apart; tilt of 18.5 degrees"
        in image.notes[-1]
    )
    assert image.array.shape[1:] == (512, 37)
    assert image.array.min() == -1024
    # a slice that is a slice of the resampled volume: the first, at its own place
    first = read_image(folder / "01.dcm")
    index = np.rint(np.linalg.inv(image.affine) @ first.affine @ (0, 0, 0, 1)).astype(int)
    assert_array_equal(image.array[index[0] : index[0] + 512, :, 0], first.array)
    brain = (image.array > 0) & (image.array < 80)
    assert 0.05 < brain.mean() < 0.4
