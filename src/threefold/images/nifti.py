"""NIfTI files (https://nifti.nimh.nih.gov/nifti-1): NIfTI-1 and NIfTI-2 in one file, plain or gzipped.

A reader of our own, because the usual one takes as long to import as `threefold check` may take in all,
believes any header (a damaged one asks for terabytes) and leaves the checksum of a gzipped file unread.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.facts import Facts
from threefold.images.memory import refuse_beyond_memory
from threefold.images.nifti_place import NiftiPlace, read_place

# The fields that matter here: type, shape and byte offset, by header size (348: NIfTI-1, 540: NIfTI-2).
_Field = tuple[str, tuple[int, ...], int]
_FIELDS: dict[int, dict[str, _Field]] = {
    348: {
        "dim": ("i2", (8,), 40),
        "intent_code": ("i2", (), 68),
        "datatype": ("i2", (), 70),
        "pixdim": ("f4", (8,), 76),
        "vox_offset": ("f4", (), 108),
        "scl_slope": ("f4", (), 112),
        "scl_inter": ("f4", (), 116),
        "xyzt_units": ("u1", (), 123),
        "qform_code": ("i2", (), 252),
        "sform_code": ("i2", (), 254),
        "quatern": ("f4", (3,), 256),
        "qoffset": ("f4", (3,), 268),
        "srow": ("f4", (3, 4), 280),
        "magic": ("S4", (), 344),
    },
    540: {
        "magic": ("S8", (), 4),
        "datatype": ("i2", (), 12),
        "dim": ("i8", (8,), 16),
        "pixdim": ("f8", (8,), 104),
        "vox_offset": ("i8", (), 168),
        "scl_slope": ("f8", (), 176),
        "scl_inter": ("f8", (), 184),
        "qform_code": ("i4", (), 344),
        "sform_code": ("i4", (), 348),
        "quatern": ("f8", (3,), 352),
        "qoffset": ("f8", (3,), 376),
        "srow": ("f8", (3, 4), 400),
        "xyzt_units": ("i4", (), 500),
        "intent_code": ("i4", (), 504),
    },
}
_MAGIC = {348: b"n+1", 540: b"n+2\x00\r\n\x1a\n"}  # numpy drops trailing zeros
_DATATYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_REFUSED_DATATYPES = {
    0: "unknown", 1: "binary", 32: "complex64", 128: "RGB24 (colour)", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "RGBA32 (colour)",
}  # fmt: skip
_LABELS, _STATISTICS = 1002, range(2, 25)
_PAIRS = (b"ni1", b"ni2\x00\r\n\x1a\n")
_DEFLATE_RATIO = 1032
"""No gzipped file holds more than this many times its size."""
_CHUNK = 2**18
_BEHIND = 2**26
"""Bytes behind the voxels of a gzipped file that are read for the sake of its checksum."""


@dataclass(frozen=True)
class NiftiHeader:
    """What a header says: grid, type and place of the voxels, scaling.

    Attributes:
        intent: what the values are by the header's intent code, where that is not an image; else empty.
    """

    shape: tuple[int, ...]
    place: NiftiPlace
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    notes: tuple[str, ...]
    intent: str
    facts: Facts

    @property
    def scaled(self) -> bool:
        """Whether stored values have to be scaled to become the image's."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def value_type(self) -> np.dtype[Any]:
        """The type of the image's values: the stored one, or floating where they are scaled."""
        if not self.scaled:
            return self.dtype.newbyteorder("=")
        narrow = self.dtype.itemsize <= 2 or self.dtype.newbyteorder("=") == np.float32
        return np.dtype(np.float32 if narrow else np.float64)


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read the header alone.

    Raises:
        ImageError: if the file is missing, damaged, not a one-file NIfTI, or not a slice or volume.
    """
    with _opened(path) as stream:
        return _parse(_read(stream, 540, path), path)


def read_nifti(path: Path, slice_index: int | None = None) -> tuple[NDArray[np.generic], NiftiHeader]:
    """Read the voxels, scaled by scl_slope and scl_inter.

    Args:
        path: a .nii or .nii.gz file.
        slice_index: read this slice along the third axis alone.

    Returns:
        (I, J) or (I, J, K) values (the stored type where there is no scaling, else floating), and the
        header of the whole file. Trailing axes of length 1 are dropped, the third one too.

    Raises:
        ImageError: as `read_nifti_header`; a truncated file; a gzip checksum that does not fit; more voxels
            than memory is free for. Little more of a gzip stream is decompressed than the header asks for.
    """
    gzipped = _is_gzip(path)
    with _opened(path) as stream:
        header = _parse(_read(stream, 540, path), path)
        shape, start = header.shape, header.offset
        if slice_index is not None:
            shape = shape[:2]
            start += slice_index * shape[0] * shape[1] * header.dtype.itemsize
        count = int(np.prod(shape, dtype=object))
        each = header.dtype.itemsize + (header.value_type.itemsize if header.scaled else 0)
        size = f"{' x '.join(map(str, shape))} voxels of {header.dtype.itemsize} bytes"
        refuse_beyond_memory(path, size, count * (each + 1))  # + 1: whether they are finite
        stored = np.empty(count, header.dtype)
        try:
            stream.seek(start)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, error) from error
        _read_into(stream, stored.view(np.uint8).data, path)
        if slice_index is None and gzipped:
            _read_to_the_end(stream, path)
    if slice_index is not None and gzipped:
        state = path.stat()
        _check_stream(path, state.st_size, state.st_mtime_ns)
    if not stored.dtype.isnative:
        stored = stored.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))
    values = _scaled(stored, header) if header.scaled else stored
    return values.reshape(shape, order="F"), header  # file order: i runs fastest


def _scaled(stored: NDArray[Any], header: NiftiHeader) -> NDArray[Any]:
    """Scale the (n,) stored values, a part at a time: the product is floating and would be a third copy."""
    values = np.empty(stored.shape, header.value_type)
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is reported by read_image
        for start in range(0, len(stored), _CHUNK):
            part = slice(start, start + _CHUNK)
            values[part] = stored[part] * header.slope + header.intercept
    return values


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if _is_gzip(path) else path.open("rb")  # type: ignore[return-value]


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _read(stream: IO[bytes], length: int, path: Path) -> bytes:
    try:
        return stream.read(length)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error


def _read_into(stream: IO[bytes], target: memoryview, path: Path) -> None:
    """Fill a buffer from a stream; a stream that ends before is an error."""
    at = 0
    while at < len(target):
        part = _read(stream, min(_CHUNK, len(target) - at), path)
        if not part:
            raise ImageError(
                f"{path}: truncated: {len(target)} bytes of voxels expected, {at} found. Copy the file again."
            )
        target[at : at + len(part)] = part
        at += len(part)


def _read_to_the_end(stream: IO[bytes], path: Path) -> None:
    """Read what lies behind the voxels of a gzipped file: its checksum is compared at the end of the stream.

    A damaged stream can be longer than it was, and a damaged header can promise fewer voxels.
    """
    left = _BEHIND
    while part := _read(stream, min(_CHUNK, left), path):
        left -= len(part)
        if not left:
            raise ImageError(
                f"{path}: damaged: more than {_BEHIND // 2**20} MiB lie behind the voxels that its header "
                "promises. Copy the file again."
            )


@lru_cache(maxsize=4096)
def _check_stream(path: Path, size: int, changed: int) -> None:
    """Read a gzipped file of which slices are read to its end, once as long as it is the same.

    Args:
        path: of the file.
        size, changed: bytes, and time of change.

    Raises:
        ImageError: its checksum does not fit.
    """
    with _opened(path) as stream:
        header = _parse(_read(stream, 540, path), path)
        left = header.offset + int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize - 540
        while left > 0 and (part := _read(stream, min(_CHUNK, left), path)):
            left -= len(part)
        _read_to_the_end(stream, path)


def _damaged(path: Path, error: Exception) -> ImageError:
    return ImageError(f"{path}: truncated or damaged ({error}). Copy the file again.")


def _parse(data: bytes, path: Path) -> NiftiHeader:
    fields, order = _fields(data, path)
    shape = _shape(fields["dim"], path)
    code = int(fields["datatype"])
    if code not in _DATATYPES:
        name = _REFUSED_DATATYPES.get(code, "unknown")
        raise ImageError(f"{path}: NIfTI datatype {code} ({name}); expected integers or real numbers.")
    dtype = np.dtype(_DATATYPES[code]).newbyteorder(order)
    offset = float(fields["vox_offset"])
    if not (np.isfinite(offset) and 0 <= offset < 2**40):
        raise ImageError(f"{path}: damaged NIfTI header: voxels start at byte {offset}.")
    _check_size(path, int(offset) + int(np.prod(shape, dtype=object)) * dtype.itemsize, shape, dtype)
    place, notes = read_place(fields, len(shape), path)
    slope, intercept, ignored = _scaling(fields, path)
    facts = Facts(
        format="nifti",
        bits=8 * dtype.itemsize,
        channels=1,
        spacing_stated=True,
        place_stated=place.has_sform or place.has_qform,
    )
    intent = _intent(int(fields["intent_code"]))
    return NiftiHeader(shape, place, dtype, int(offset), slope, intercept, (*notes, *ignored), intent, facts)


def _scaling(fields: Any, path: Path) -> tuple[float, float, tuple[str, ...]]:
    """Return slope and intercept, and a note on an intercept that does not count."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or np.isnan(slope):  # the standard: no scaling; nibabel writes NaN for it
        if np.isfinite(intercept) and intercept != 0:
            return 1.0, 0.0, (f"scl_slope is {slope:g}, so scl_inter {intercept:g} is not added",)
        return 1.0, 0.0, ()
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise ImageError(f"{path}: damaged NIfTI header: scl_slope {slope}, scl_inter {intercept}.")
    return slope, intercept, ()


def _intent(code: int) -> str:
    if code == _LABELS:
        return f"labels (intent code {code})"
    return f"a statistic (intent code {code})" if code in _STATISTICS else ""


def _fields(data: bytes, path: Path) -> tuple[Any, Literal["<", ">"]]:
    """Return the header as a numpy record, and the byte order of the file."""
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for size, order in product(_FIELDS, orders):
        if len(data) < size or np.frombuffer(data, order + "i4", 1)[0] != size:
            continue
        fields = _FIELDS[size]
        layout = np.dtype(
            {
                "names": list(fields),
                "formats": [
                    (kind if kind[0] == "S" else order + kind, shape) for kind, shape, _ in fields.values()
                ],
                "offsets": [offset for _, _, offset in fields.values()],
                "itemsize": size,
            }
        )
        record = np.frombuffer(data, layout, 1)[0]
        if record["magic"] in _PAIRS:
            raise ImageError(
                f"{path}: the header of a .hdr/.img pair. Convert the pair to one .nii.gz file (mri_convert "
                f"{path.name} IMAGE.nii.gz)."
            )
        if record["magic"] != _MAGIC[size]:
            raise ImageError(
                f"{path}: not a one-file NIfTI (magic {bytes(record['magic'])!r}), as an ANALYZE 7.5 header, "
                "which does not say left from right. Convert it to .nii.gz with its orientation stated (for "
                "example with mri_convert --in_orientation); copy a damaged NIfTI again."
            )
        return record, order
    raise ImageError(f"{path}: not a NIfTI file, or damaged: its first bytes are not a NIfTI header's.")


def _shape(dim: NDArray[Any], path: Path) -> tuple[int, ...]:
    axes = int(dim[0])
    shape = tuple(int(n) for n in dim[1 : axes + 1]) if 1 <= axes <= 7 else ()
    if not shape or min(shape) < 1:
        raise ImageError(f"{path}: damaged NIfTI header: dim is {[int(n) for n in dim]}.")
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise ImageError(
            f"{path}: has shape {shape}; expected a slice (2 axes) or a volume (3 axes). "
            "Extract one volume of a series over time or channels."
        )
    return shape


def _check_size(path: Path, needed: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse a header that promises more than the file holds, before memory is asked for."""
    size = path.stat().st_size
    most = size * _DEFLATE_RATIO if _is_gzip(path) else size
    if needed > most:
        raise ImageError(
            f"{path}: truncated or damaged: its header promises {shape} voxels of {dtype.itemsize} bytes "
            f"({needed} bytes with the header), the file has {size}. Copy the file again."
        )
