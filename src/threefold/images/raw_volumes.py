"""Read NRRD and MetaImage: a text header, and the voxels, plain or compressed, in the file or beside it.

Both count positions in millimetres of LPS+ (NRRD names its space), and store the first axis fastest.
"""

from __future__ import annotations

import bz2
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.decoding import decoding, short
from threefold.images.facts import Facts
from threefold.images.geometry import Affine
from threefold.images.memory import refuse_beyond_memory

Format = Literal["nrrd", "metaimage"]
_LONGEST_HEADER = 2**20
_NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_SPACES = {
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1), "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
}  # fmt: skip
"""Signs that bring a space's axes to RAS+."""


@dataclass(frozen=True)
class RawVolume:
    """What a header says.

    Attributes:
        shape: (I, J) or (I, J, K).
        affine: (4, 4) voxel indices to RAS+ mm.
        kind: of a voxel, with its byte order.
        compression: of the voxels.
        data: file that holds them.
        start: byte of it at which they begin.
        facts: what the file states.
        notes: what was assumed.
    """

    shape: tuple[int, ...]
    affine: Affine
    kind: np.dtype[Any]
    compression: Literal["none", "zlib", "bzip2"]
    data: Path
    start: int
    facts: Facts
    notes: tuple[str, ...]


def raw_header(path: Path, kind: Format) -> RawVolume:
    """Read the header of a NRRD or MetaImage file.

    Raises:
        ImageError: it is damaged, or says what is not read: colours, more axes, text, voxels elsewhere.
    """
    name = "a NRRD file" if kind == "nrrd" else "a MetaImage"
    with decoding(path, name):
        fields, end = _nrrd_fields(path) if kind == "nrrd" else _meta_fields(path)
        return (_nrrd if kind == "nrrd" else _meta)(path, fields, end)


def raw_voxels(path: Path, header: RawVolume) -> NDArray[Any]:
    """Read the voxels, (I, J) or (I, J, K), no further than the header says that they go.

    Raises:
        ImageError: there are too few, or more than fit in memory.
    """
    count = math.prod(header.shape)
    size = count * header.kind.itemsize
    packed = header.data.stat().st_size
    refuse_beyond_memory(path, f"{' x '.join(map(str, header.shape))} voxels", 2 * size + packed)
    with decoding(path, "a whole image"), header.data.open("rb") as stream:
        stream.seek(header.start)
        if header.compression == "none":
            content = stream.read(size)
        else:
            unpack = zlib.decompressobj(32 + zlib.MAX_WBITS) if header.compression == "zlib" else None
            raw = stream.read()
            content = unpack.decompress(raw, size) if unpack else bz2.BZ2Decompressor().decompress(raw, size)
    if len(content) < size:
        raise ImageError(
            f"{path}: truncated: {header.data.name} holds {len(content)} bytes of voxels, expected {size}. "
            "Copy it again."
        )
    voxels: NDArray[Any] = np.frombuffer(content, header.kind, count).reshape(header.shape, order="F")
    return voxels.astype(header.kind.newbyteorder("="), copy=False)


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields of a NRRD header by their names in small letters, and where it ends."""
    with path.open("rb") as stream:
        head = stream.read(_LONGEST_HEADER)
    text, blank, _ = head.partition(b"\n\n")
    crlf, blank_too, _ = head.partition(b"\r\n\r\n")
    if blank_too and len(crlf) < len(text):
        text, blank = crlf, blank_too
    fields = {}
    for line in text.decode("utf-8", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if not line.startswith("#") and colon and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    return fields, len(text) + len(blank)


def _nrrd(path: Path, fields: Mapping[str, str], end: int) -> RawVolume:
    sizes = tuple(int(one) for one in _required(path, fields, "sizes").split())
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ImageError(f"{path}: a NRRD of sizes {short(sizes)}; expected one grey slice or volume.")
    word = _required(path, fields, "type").lower()
    stored = next((one for one, names in _NRRD_TYPES.items() if word in names), None)
    if stored is None:
        raise ImageError(f"{path}: a NRRD of type '{short(word, 40)}'; expected grey whole or real numbers.")
    packing = {"raw": "none", "gzip": "zlib", "gz": "zlib", "bzip2": "bzip2", "bz2": "bzip2"}
    encoding = _required(path, fields, "encoding").lower()
    if encoding not in packing or any(name in fields for name in ("line skip", "lineskip")):
        raise ImageError(
            f"{path}: a NRRD of encoding '{short(encoding, 40)}'; expected raw, gzip or bzip2. Save it "
            "again, with 3D Slicer."
        )
    name = fields.get("data file", fields.get("datafile"))
    skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    if skip < 0:
        raise ImageError(f"{path}: a NRRD with byte skip {skip}; expected one from the beginning.")
    big = fields.get("endian", "little").lower() == "big"
    affine, place = np.eye(4), False
    notes: tuple[str, ...] = ()
    vectors = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    signs = _SPACES.get(fields.get("space", "").lower())
    spacing = [float(one) for one in fields.get("spacings", "").split()]
    if signs is not None and len(vectors) >= len(sizes) and "none" not in vectors:
        axes = np.array([_vector(one) for one in vectors], float).T
        affine[:3, : axes.shape[1]] = np.array(signs)[:, None] * axes
        affine[:3, 3] = np.array(signs) * _vector(fields.get("space origin", "(0,0,0)"))
        if len(sizes) == 2:
            affine[:3, 2] = _normal(affine)
        place = True
    else:
        notes = ("where it lies is not stated: centred on its first voxel, axes to right, front and head",)
        affine[range(len(spacing)), range(len(spacing))] = spacing
    facts = _facts("nrrd", stored, spacing_stated=place or bool(spacing), place_stated=place)
    return _checked(
        path, sizes, affine, stored, big=big, packing=packing[encoding],
        data=_beside(path, name), start=skip if name else end + skip, facts=facts, notes=notes,
    )  # fmt: skip


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields of a MetaImage header by name, and where it ends: with ElementDataFile."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while "ElementDataFile" not in fields and stream.tell() < _LONGEST_HEADER:
            line = stream.readline(_LONGEST_HEADER)
            name, equals, value = line.decode("utf-8", "replace").partition("=")
            if not equals:
                break
            fields[name.strip()] = value.strip()
        return fields, stream.tell()


def _meta(path: Path, fields: Mapping[str, str], end: int) -> RawVolume:
    sizes = tuple(int(one) for one in _required(path, fields, "DimSize").split())
    axes = len(sizes)
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    if axes not in (2, 3) or min(sizes) < 1 or channels != 1:
        raise ImageError(
            f"{path}: a MetaImage of size {short(sizes)} with {channels} channels; expected one grey slice "
            "or volume."
        )
    word = _required(path, fields, "ElementType")
    if word not in _META_TYPES or fields.get("BinaryData", "True").lower() == "false":
        raise ImageError(
            f"{path}: a MetaImage of {short(word, 40)}, or as text; expected binary grey numbers."
        )
    name = _required(path, fields, "ElementDataFile")
    spacing = [float(one) for one in fields.get("ElementSpacing", fields.get("ElementSize", "")).split()]
    matrix = fields.get("TransformMatrix", fields.get("Rotation", fields.get("Orientation")))
    offset = [
        float(one) for one in fields.get("Offset", fields.get("Position", fields.get("Origin", ""))).split()
    ]
    affine = np.eye(4)
    turned = np.eye(axes) if matrix is None else np.array(matrix.split(), float).reshape(axes, axes).T
    affine[:axes, :axes] = turned * (spacing or [1.0] * axes)
    affine[: len(offset), 3] = offset
    affine[:2] *= -1  # from LPS+
    if axes == 2:
        affine[:3, 2] = _normal(affine)
    place = matrix is not None and bool(offset)
    notes = () if place else ("TransformMatrix or Offset are not stated: not turned, from the origin",)
    packing = "zlib" if fields.get("CompressedData", "False").lower() == "true" else "none"
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    own = name.upper() == "LOCAL"
    facts = _facts("metaimage", _META_TYPES[word], spacing_stated=bool(spacing), place_stated=place)
    skip = int(fields.get("HeaderSize", "0"))
    if skip < 0:
        raise ImageError(f"{path}: a MetaImage with HeaderSize {skip}; expected the bytes before its voxels.")
    return _checked(
        path, sizes, affine, _META_TYPES[word], big=big, packing=packing,
        data=_beside(path, None if own else name), start=end if own else skip, facts=facts, notes=notes,
    )  # fmt: skip


def _checked(
    path: Path,
    shape: tuple[int, ...],
    affine: Affine,
    stored: str,
    *,
    big: bool,
    packing: Any,
    data: Path,
    start: int,
    facts: Facts,
    notes: tuple[str, ...],
) -> RawVolume:
    if (
        not np.isfinite(affine).all()
        or np.abs(affine).max() > 1e6
        or abs(np.linalg.det(affine[:3, :3])) < 1e-9
    ):
        raise ImageError(f"{path}: not a usable grid: voxel axes {affine[:3, :3].tolist()}. Save it again.")
    kind = np.dtype(stored).newbyteorder(">" if big else "<")
    return RawVolume(shape, affine, kind, packing, data, start, facts, notes)


def _facts(name: Format, stored: str, *, spacing_stated: bool, place_stated: bool) -> Facts:
    bits = 8 * int(stored[1])
    return Facts(format=name, bits=bits, channels=1, spacing_stated=spacing_stated, place_stated=place_stated)


def _required(path: Path, fields: Mapping[str, str], name: str) -> str:
    if not fields.get(name):
        raise ImageError(f"{path}: its header lacks '{name}'. Copy it again, or save it anew.")
    return fields[name]


def _beside(path: Path, name: str | None) -> Path:
    """Return the file of the voxels: the header's own, or one beside it."""
    if name is None:
        return path
    if Path(name).name != name or "\\" in name or "%" in name or name in ("LIST", "..", "."):
        raise ImageError(
            f"{path}: its voxels are in '{short(name, 80)}'; expected the name of one file in its folder. "
            "Save header and voxels in one file (.nrrd, .mha)."
        )
    beside = path.parent / name
    if not beside.is_file():
        raise ImageError(f"{path}: its voxels should be in {name} beside it, where there is no such file.")
    return beside


def _vector(text: str) -> NDArray[np.float64]:
    found = np.array([float(one) for one in text.strip("() ").split(",")])
    if found.shape != (3,):
        raise ValueError(f"a vector of {len(found)} numbers; expected 3")
    return found


def _normal(affine: Affine) -> NDArray[np.float64]:
    """Return the direction of a slice's third axis, 1 mm long."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return normal / np.linalg.norm(normal)
