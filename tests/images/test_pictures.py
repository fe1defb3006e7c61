from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.testing import assert_array_equal

from threefold.errors import ImageError
from threefold.images.formats import format_of
from threefold.images.reading import read_header, read_image, read_label_map

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
        ("text.png", b"hello, this is not a picture", "begins with b'hello, this "),
        ("text.nii", b"hello, this is not a volume", "not an image of a known format"),
        ("text.nii.gz", b"hello, this is not a volume", "not an image of a known format"),
        ("text.dcm", b"hello, this is not a slice", "not an image of a known format"),
        ("notes.txt", b"hello", "Expected a NIfTI"),
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


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def png(
    samples: np.ndarray, bits: int, colour: int, *, interlaced: bool = False, extra: bytes = b""
) -> bytes:
    """Encode samples, (rows, columns) or (rows, columns, channels), as PNG, without a filter."""
    rows, columns = samples.shape[:2]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: the first row and column of each pass, and their steps
        passes = [
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        ]
    lines = b""
    for row, column, down, right in passes:
        part = samples[row::down, column::right]
        for line in part.reshape(len(part), -1) if part.size else ():
            text = "".join(f"{int(value):0{bits}b}" for value in line)
            text += "0" * (-len(text) % 8)
            lines += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = (
        columns.to_bytes(4, "big") + rows.to_bytes(4, "big") + bytes([bits, colour, 0, 0, int(interlaced)])
    )
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_every_depth_of_grey(tmp_path: Path, bits: int, interlaced: bool) -> None:
    samples = np.random.default_rng(bits).integers(0, 2**bits, (11, 13))
    path = tmp_path / "a.png"
    path.write_bytes(png(samples, bits, 0, interlaced=interlaced))
    for read in (read_image, read_label_map):
        image = read(path)
        assert_array_equal(image.array, samples * 255 // (2**bits - 1) if bits < 8 else samples)
        assert image.array.dtype == (np.uint16 if bits == 16 else np.uint8)
        assert any(f"{bits}-bit grey values, scaled" in note for note in image.notes) == (bits in (2, 4))
        assert (image.facts.bits, image.facts.channels) == (bits, 1)
        assert read_header(path).facts == image.facts


@pytest.mark.parametrize(("colour", "channels"), [(4, 2), (2, 3), (6, 4)])
def test_bits_are_never_lost(tmp_path: Path, colour: int, channels: int) -> None:
    wide = np.full((6, 8, channels), 2**16 - 1)
    wide[..., : channels - (channels in (2, 4))] = np.arange(48).reshape(6, 8, 1) * 257 + 3
    path = tmp_path / "a.png"
    path.write_bytes(png(wide, 16, colour))
    for read in (read_image, read_header, read_label_map):
        with pytest.raises(ImageError, match=f"16 bits in {channels} channels"):
            read(path)
    path.write_bytes(png(wide >> 8, 8, colour))
    assert_array_equal(read_image(path).array, wide[..., 0] >> 8)


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2)])
def test_one_transparent_colour_is_transparency(tmp_path: Path, bits: int, colour: int) -> None:
    samples = np.random.default_rng(bits).integers(0, 2**bits, (11, 13))
    samples[5, 5] = 1
    samples[samples == 2**bits - 1] = 0 if bits > 1 else 1
    stored = samples if colour == 0 else np.repeat(samples[..., None], 3, axis=2)
    path = tmp_path / "a.png"
    for value, refused in ((1, True), (2**bits - 1, bits == 1)):
        path.write_bytes(
            png(stored, bits, colour, extra=chunk(b"tRNS", value.to_bytes(2, "big") * stored[0, 0].size))
        )
        if refused:
            with pytest.raises(ImageError, match=f"has {(samples == value).sum()} transparent pixels"):
                read_image(path)
        else:
            assert read_image(path).array.shape == samples.shape


def test_what_pngs_carry_besides(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    density = chunk(b"pHYs", (300).to_bytes(4, "big") * 2 + b"\1")
    path.write_bytes(png(GREY, 8, 0, extra=chunk(b"gAMA", (100000).to_bytes(4, "big")) + density))
    image = read_image(path)
    assert_array_equal(image.array, GREY)
    assert "states a gamma of 1, which was not applied" in image.notes
    assert image.spacing == (1, 1)  # 300 pixels per metre of paper are no spacing
    assert not image.facts.spacing_stated
    path.write_bytes(
        png(GREY, 8, 0, extra=chunk(b"gAMA", (45455).to_bytes(4, "big")) + chunk(b"iCCP", b"x\0\0"))
    )
    assert [note for note in read_image(path).notes if "gamma" in note or "profile" in note] == [
        "carries a colour profile, which was not applied"
    ]
    path.write_bytes(png(GREY, 8, 0, extra=chunk(b"acTL", (2).to_bytes(4, "big") + bytes(4))))
    with pytest.raises(ImageError, match="animated PNG of 2 frames"):
        read_header(path)
    turned = PIL.Image.Exif()
    turned[0x0112] = 3
    PIL.Image.fromarray(GREY).save(path, exif=turned)
    with pytest.raises(ImageError, match="EXIF orientation 3"):
        read_header(path)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"\xff\xc1" + bytes([12]), "a JPEG of 12 bits, extended"),
        (b"\xff\xc3" + bytes([16]), "a JPEG of 16 bits, lossless"),
        (b"\xff\xc9" + bytes([8]), "a JPEG of 8 bits, arithmetic"),
    ],
)
def test_jpegs_that_the_decoder_does_not_know_are_refused_by_name(
    tmp_path: Path, frame: bytes, says: str
) -> None:
    path = save(tmp_path / "a.jpg", GREY)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0")
    data[at : at + 2], data[at + 4] = frame[:2], frame[2]
    path.write_bytes(data)
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=says):
            read(path)


def test_a_progressive_jpeg_and_a_jpeg_of_several_pictures(tmp_path: Path) -> None:
    flat = np.full((16, 24), 77, np.uint8)
    assert_array_equal(read_image(save(tmp_path / "a.jpg", flat, progressive=True)).array, flat)
    several = tmp_path / "b.jpg"
    PIL.Image.fromarray(flat).save(
        several, format="MPO", save_all=True, append_images=[PIL.Image.fromarray(flat)]
    )
    with pytest.raises(ImageError, match="several pictures"):
        read_image(several)
