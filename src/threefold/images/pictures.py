"""PNG and JPEG: grey values, and what the file states of them. Colour and lost bits are refused."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.decoding import decoding
from threefold.images.facts import Facts
from threefold.images.memory import refuse_beyond_memory

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {0: ("L", 1), 2: ("RGB", 3), 3: ("P", 1), 4: ("LA", 2), 6: ("RGBA", 4)}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""The chunks that decide the pixels; text, profiles and previews, which may be bombs, are not unpacked."""
_GAMMA = 45455
"""gAMA of ordinary pictures: 1 / 2.2, times 100,000."""
_JPEG_COLOURS = {1: "L", 3: "RGB", 4: "CMYK"}
_JPEG_FRAMES = {  # by the marker that begins a frame (ITU T.81, table B.1)
    0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC3: "lossless", 0xC5: "hierarchical",
    0xC6: "hierarchical", 0xC7: "hierarchical", 0xC9: "arithmetic", 0xCA: "arithmetic", 0xCB: "lossless",
    0xCD: "hierarchical", 0xCE: "hierarchical", 0xCF: "hierarchical",
}  # fmt: skip
_JPEG_READ = ("baseline", "extended", "progressive")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG that is not decoded yet.

    Attributes:
        data: bytes for the decoder.
        shape: rows, columns.
        mode: L, LA, P, RGB, RGBA or CMYK.
        bits: of a channel, as stored.
        transparent: the sample, (1,) or (3,), that a grey or RGB picture without alpha takes as transparent.
    """

    path: Path
    data: bytes
    shape: tuple[int, int]
    mode: str
    bits: int
    channels: int
    transparent: tuple[int, ...] | None
    notes: tuple[str, ...]

    def facts(self, *, spacing_stated: bool) -> Facts:
        """Return what the file states; it never says how large a pixel is in the patient."""
        return Facts(
            format="picture",
            photometric=self.mode,
            bits=self.bits,
            channels=self.channels,
            spacing_stated=spacing_stated,
        )


def open_picture(path: Path) -> Picture:
    """Read the structure of a PNG (all its checksums too) or JPEG, without decoding the pixels.

    Raises:
        ImageError: damaged; several frames; more bits than the decoder keeps; a camera rotation; larger than
            memory.
    """
    refuse_beyond_memory(path, "a picture file", 4 * path.stat().st_size)
    data = path.read_bytes()
    with decoding(path, "a PNG or JPEG"):
        picture = (_open_png if data.startswith(_PNG) else _open_jpeg)(path, data)
    rows, columns = picture.shape
    size = f"{rows} x {columns} pixels of {picture.channels} channels"
    refuse_beyond_memory(path, size, 2 * rows * columns * picture.channels * max(1, picture.bits // 8))
    return picture


def grey_values(picture: Picture, *, labels: bool) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Decode a picture.

    Args:
        picture: as opened.
        labels: give the indices of a palette picture, which are the labels, and not its colours.

    Returns:
        (rows, columns) uint8 or uint16, and notes on what was done.

    Raises:
        ImageError: damaged; colour; transparent pixels.
    """
    path = picture.path
    with decoding(path, "a PNG or JPEG") as notes:
        import PIL.Image

        decoded: PIL.Image.Image = PIL.Image.open(io.BytesIO(picture.data), formats=("PNG", "JPEG"))
        if decoded.mode == "P" and not labels:
            decoded = decoded.convert("RGBA" if "transparency" in decoded.info else "RGB")
        elif decoded.mode == "1":
            decoded = decoded.convert("L")  # 0 and 255
        array = np.asarray(decoded)
    if array.shape[:2] != picture.shape:
        raise ImageError(f"{path}: {array.shape[:2]} pixels; its header says {picture.shape}. Copy it again.")
    if picture.bits == 16:
        array = array.astype(np.uint16)  # int32 in some versions of Pillow
    if picture.transparent is not None:
        _refuse_transparent(path, (array.reshape(*picture.shape, -1) == picture.transparent).all(axis=-1))
    notes += picture.notes
    if picture.mode == "L" and picture.bits in (2, 4):
        notes.append(f"{picture.bits}-bit grey values, scaled to 0 to 255")
    if array.ndim == 3:
        array, reduced = _grey(path, array, decoded.mode)
        notes.append(reduced)
    return array, tuple(notes)


def _open_png(path: Path, data: bytes) -> Picture:
    """Walk the chunks of a PNG (https://www.w3.org/TR/png-3), comparing each checksum."""
    chunks = list(_png_chunks(path, data))
    first = dict(reversed(chunks))
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise ImageError(f"{path}: truncated or damaged PNG: it does not begin with its header.")
    columns, rows = (int.from_bytes(first[b"IHDR"][at : at + 4], "big") for at in (0, 4))
    bits, colour = first[b"IHDR"][8:10]
    if colour not in _PNG_COLOURS or bits not in _PNG_DEPTHS[colour] or 0 in (rows, columns):
        raise ImageError(
            f"{path}: damaged PNG: {rows} x {columns} pixels, {bits} bits, colour type {colour}."
        )
    mode, channels = _PNG_COLOURS[colour]
    if bits == 16 and channels > 1:
        raise ImageError(
            f"{path}: a PNG of 16 bits in {channels} channels ({mode}), of which the decoder would keep 8. "
            "Save it as grey of 16 bits with one channel."
        )
    if b"acTL" in first and int.from_bytes(first[b"acTL"][:4], "big") > 1:
        frames = int.from_bytes(first[b"acTL"][:4], "big")
        raise ImageError(f"{path}: an animated PNG of {frames} frames; expected one picture a file.")
    if b"eXIf" in first:
        _refuse_rotation(path, first[b"eXIf"])
    notes = []
    gamma = int.from_bytes(first.get(b"gAMA", b"")[:4], "big")
    if gamma and abs(gamma - _GAMMA) > 0.01 * _GAMMA:
        notes.append(f"states a gamma of {gamma / 100000:g}, which was not applied")
    if b"iCCP" in first:
        notes.append("carries a colour profile, which was not applied")
    transparent = None
    if b"tRNS" in first and mode in ("L", "RGB"):
        body = first[b"tRNS"]
        samples = [int.from_bytes(body[at : at + 2], "big") for at in range(0, 2 * channels, 2)]
        transparent = tuple(sample * 255 // (2**bits - 1) if bits < 8 else sample for sample in samples)
    kept = b"".join(_png_chunk(name, body) for name, body in chunks if name in _PNG_PIXELS)
    return Picture(path, _PNG + kept, (rows, columns), mode, bits, channels, transparent, tuple(notes))


def _png_chunks(path: Path, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG)
    while at < len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if zlib.crc32(name + body).to_bytes(4, "big") != checksum:
            raise ImageError(f"{path}: truncated, damaged: the checksum of its {name!r} chunk does not fit.")
        yield name, body
        at += 12 + length
        if name == b"IEND":
            return
    raise ImageError(f"{path}: truncated: the PNG has no end. Copy it again.")


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def _open_jpeg(path: Path, data: bytes) -> Picture:
    """Walk the segments of a JPEG (ITU T.81) up to its scan."""
    at, frame = 2, None
    while True:
        while data[at : at + 2] == b"\xff\xff":
            at += 1  # a marker may be preceded by any number of fill bytes
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if data[at] != 0xFF or length < 2 or len(body) != length - 2:
            raise ImageError(f"{path}: truncated or damaged JPEG: no segment at byte {at}. Copy it again.")
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            _refuse_rotation(path, body)
        if marker == 0xE2 and body.startswith(b"MPF\0"):
            raise ImageError(f"{path}: a JPEG of several pictures (MPO); expected one picture a file.")
        if marker in _JPEG_FRAMES:
            frame = (_JPEG_FRAMES[marker], body)
        if marker == 0xDA:  # start of scan
            break
        at += 2 + length
    if frame is None:
        raise ImageError(f"{path}: truncated or damaged JPEG: a scan without a frame. Copy it again.")
    process, body = frame
    bits, channels = body[0], body[5]
    rows, columns = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    if bits != 8 or process not in _JPEG_READ:
        raise ImageError(f"{path}: a JPEG of {bits} bits, {process}; expected 8 bits. Save it as PNG.")
    if channels not in _JPEG_COLOURS or 0 in (rows, columns):
        raise ImageError(
            f"{path}: a JPEG of {rows} x {columns} pixels in {channels} channels; expected grey."
        )
    return Picture(path, data, (rows, columns), _JPEG_COLOURS[channels], bits, channels, None, ())


def _refuse_rotation(path: Path, exif: bytes) -> None:
    import PIL.Image

    tags = PIL.Image.Exif()
    tags.load(exif)
    turned = tags.get(_ORIENTATION, 1)
    if turned != 1:
        raise ImageError(f"{path}: carries a camera rotation (EXIF orientation {turned}). Save it upright.")


def _grey(path: Path, array: NDArray[Any], mode: str) -> tuple[NDArray[Any], str]:
    """Reduce colour channels that are all equal, and opaque transparency, to one channel."""
    if mode in ("LA", "RGBA"):
        _refuse_transparent(path, array[..., -1] != 255)
        array = array[..., :-1]
    elif mode != "RGB":
        raise ImageError(f"{path}: colour mode {mode}; expected a grey image.")
    differs = (array != array[..., :1]).any(axis=-1)
    if differs.any():
        row, column = np.argwhere(differs)[0]
        raise ImageError(
            f"{path}: a colour image; expected grey (red = green = blue). {int(differs.sum())} pixels are "
            f"coloured, the first at row {row}, column {column}: {array[row, column].tolist()}. "
            "Annotations burnt into the picture? Export it as grey."
        )
    return array[..., 0], f"{mode} with equal channels, reduced to grey"


def _refuse_transparent(path: Path, transparent: NDArray[np.bool_]) -> None:
    if transparent.any():
        raise ImageError(
            f"{path}: has {int(transparent.sum())} transparent pixels; expected a grey image. Save it "
            "without transparency."
        )
