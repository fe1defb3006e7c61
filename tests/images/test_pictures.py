from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.testing import assert_array_equal

from threefold.errors import ImageError
from threefold.images.reading import format_of, read_header, read_image, read_label_map

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    picture = PIL.Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def test_a_picture_is_taken_in_the_radiological_display_convention(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GREY)
    image = read_image(path, spacing=(0.5, 0.25))
    assert_array_equal(image.array, GREY)
    origin, down, right = (image.affine @ (*index, 0, 1) for index in ((0, 0), (1, 0), (0, 1)))
    assert_array_equal((down - origin)[:3], (0, -0.5, 0))  # towards posterior
    assert_array_equal((right - origin)[:3], (-0.25, 0, 0))  # towards the patient's left
    assert "orientation assumed" in image.notes[0]
    assert not any("spacing" in note for note in image.notes)
    header = read_header(path, spacing=(0.5, 0.25))
    assert header.shape == (6, 8)
    assert_array_equal(header.affine, image.affine)


def test_spacing_of_1_mm_is_assumed_and_noted(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", GREY))
    assert image.spacing == (1.0, 1.0)
    assert "spacing assumed: 1 mm per pixel" in image.notes
    with pytest.raises(ImageError, match="spacing has 1 numbers"):
        read_image(tmp_path / "a.png", spacing=(1.0,))


@pytest.mark.parametrize("mode", ["RGB", "LA", "RGBA", "P"])
def test_grey_in_colour_channels_is_reduced(tmp_path: Path, mode: str) -> None:
    image = read_image(save(tmp_path / "a.png", GREY, mode))
    assert_array_equal(image.array, GREY)
    assert any("reduced to grey" in note for note in image.notes)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_is_refused_with_the_place(tmp_path: Path, mode: str) -> None:
    colour = np.repeat(GREY[..., None], 3, axis=2)
    colour[2, 3] = (255, 0, 0)
    with pytest.raises(
        ImageError, match=r"1 pixels are coloured, the first at row 2, column 3: \[255, 0, 0\]"
    ):
        read_image(save(tmp_path / "a.png", colour, mode))


def test_transparency_is_refused(tmp_path: Path) -> None:
    pixels = np.dstack([GREY, GREY, GREY, np.full_like(GREY, 254)])
    with pytest.raises(ImageError, match="transparent"):
        read_image(save(tmp_path / "a.png", pixels))


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    wide = GREY.astype(np.uint16) * 200
    assert_array_equal(read_image(save(tmp_path / "a.png", wide)).array, wide)


def test_one_bit_reads_as_black_and_white(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", (GREY > 100))
    with PIL.Image.open(path) as picture:
        assert picture.mode == "1"
    assert_array_equal(read_label_map(path).array, (GREY > 100) * 255)


def test_a_palette_label_map_gives_its_indices(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(GREY // 60)
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "labels.png")
    assert_array_equal(read_label_map(tmp_path / "labels.png").array, GREY // 60)
    with pytest.raises(ImageError, match="colour image"):
        read_image(tmp_path / "labels.png")


def test_jpeg_is_read(tmp_path: Path) -> None:
    flat = np.full((16, 24), 77, np.uint8)
    assert_array_equal(read_image(save(tmp_path / "a.JPEG", flat, quality=95)).array, flat)
    with pytest.raises(ImageError, match="colour mode CMYK"):
        read_image(save(tmp_path / "b.jpg", flat, "CMYK"))


def test_a_camera_rotation_is_refused(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(ImageError, match="EXIF orientation 6"):
        read_image(save(tmp_path / "a.jpg", GREY, exif=exif))


def test_a_picture_has_one_slice(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GREY)
    assert_array_equal(read_image(path, slice_index=0).array, GREY)
    with pytest.raises(ImageError, match="no slice 1"):
        read_image(path, slice_index=1)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.png", None, "no such file"),
        ("empty.png", b"", r"empty \(0 bytes\)"),
        ("empty.nii.gz", b"", r"empty \(0 bytes\)"),
        ("empty.dcm", b"", r"empty \(0 bytes\)"),
        ("text.png", b"hello, this is not a picture", "damaged or not a PNG or JPEG"),
        ("text.nii", b"hello, this is not a volume", "not a NIfTI"),
        ("text.nii.gz", b"hello, this is not a volume", "damaged"),
        ("text.dcm", b"hello, this is not a slice", "damaged or not a DICOM"),
        ("notes.txt", b"hello", r"expected \.nii"),
    ],
)
def test_what_is_not_an_image_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (read_image, read_label_map, read_header):
        with pytest.raises(ImageError, match=says) as caught:
            read(path)
        assert name in str(caught.value)


def test_a_picture_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", GREY)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 40)
    assert any("decompression bomb" in note for note in read_image(path).notes)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match="decompression bomb"):
        read_image(path)


def test_a_damaged_png_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GREY)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 10] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.png: truncated, damaged"):
        read_image(path)


@pytest.mark.real("ct_ich")
def test_real_slices_and_masks(shared_data: Path) -> None:
    folder = shared_data / "ct_ich"
    images = sorted((folder / "images").iterdir())
    assert len(images) == 36
    for path in images:
        image, mask = read_image(path), read_label_map(folder / "masks" / f"{path.stem}.png")
        assert image.array.shape == mask.array.shape == (650, 650)
        assert image.array.dtype == np.uint8
        assert set(np.unique(mask.array)) == {0, 255}
        assert format_of(path) == "picture"
