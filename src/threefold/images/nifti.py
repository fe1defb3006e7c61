"""NIfTI files (https://nifti.nimh.nih.gov/nifti-1): one-file NIfTI-1 and NIfTI-2, plain or gzipped.

A reader of our own, because the usual one takes as long to import as `threefold check` may take in all,
believes any header (a damaged one asks for terabytes) and leaves the checksum of a gzipped file unread.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.facts import Facts

# The fields that matter here: type, shape and byte offset, by header size (348: NIfTI-1, 540: NIfTI-2).
_Field = tuple[str, tuple[int, ...], int]
_FIELDS: dict[int, dict[str, _Field]] = {
    348: {
        "dim": ("i2", (8,), 40),
        "datatype": ("i2", (), 70),
        "pixdim": ("f4", (8,), 76),
        "vox_offset": ("f4", (), 108),
        "scl_slope": ("f4", (), 112),
        "scl_inter": ("f4", (), 116),
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
    },
}
_MAGIC = {348: b"n+1", 540: b"n+2\x00\r\n\x1a\n"}  # numpy drops trailing zeros
_DATATYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_DEFLATE_RATIO = 1032
"""No gzipped file holds more than this many times its size."""


@dataclass(frozen=True)
class NiftiHeader:
    """What a header says: grid, type and place of the voxels, scaling."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    notes: tuple[str, ...]
    facts: Facts

    @property
    def scaled(self) -> bool:
        """Whether stored values have to be scaled to become the image's."""
        return (self.slope, self.intercept) != (1.0, 0.0)


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read the header alone.

    Raises:
        ImageError: if the file is missing, damaged, not a one-file NIfTI, or not a slice or volume.
    """
    with _opened(path) as stream:
        return _parse(_read(stream, 540, path, whole=False), path)


def read_nifti(path: Path, slice_index: int | None = None) -> tuple[NDArray[np.generic], NiftiHeader]:
    """Read the voxels, scaled by scl_slope and scl_inter.

    Args:
        path: a .nii or .nii.gz file.
        slice_index: read this slice along the third axis alone.

    Returns:
        (I, J) or (I, J, K) values (the stored type where there is no scaling, else floating), and the
        header of the whole file. Trailing axes of length 1 are dropped, the third one too.

    Raises:
        ImageError: as `read_nifti_header`; a truncated file; a gzip checksum that does not fit.
    """
    with _opened(path) as stream:
        header = _parse(_read(stream, 540, path, whole=False), path)
        shape, start = header.shape, header.offset
        if slice_index is not None:
            shape = shape[:2]
            start += slice_index * shape[0] * shape[1] * header.dtype.itemsize
        length = int(np.prod(shape, dtype=object)) * header.dtype.itemsize
        try:
            stream.seek(start)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, error) from error
        data = _read(stream, length, path)
        if slice_index is None and path.suffix == ".gz":
            _read(stream, 1, path, whole=False)  # the gzip checksum is compared at the end of the data
    array = np.frombuffer(data, header.dtype).reshape(shape, order="F")  # file order: i runs fastest
    array = array.astype(header.dtype.newbyteorder("="), copy=False)
    return _scaled(array, header), header


def _scaled(array: NDArray[Any], header: NiftiHeader) -> NDArray[np.generic]:
    if not header.scaled:
        return array
    dtype = np.float32 if array.dtype.itemsize <= 2 or array.dtype == np.float32 else np.float64
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is reported by read_image
        scaled: NDArray[np.generic] = (array * header.slope + header.intercept).astype(dtype)
    return scaled


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read(stream: IO[bytes], length: int, path: Path, *, whole: bool = True) -> bytes:
    """Read `length` bytes; fewer are an error where `whole`."""
    try:
        data = stream.read(length)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    if whole and len(data) < length:
        raise ImageError(
            f"{path}: truncated: {length} bytes of voxels expected, {len(data)} found. Copy the file again."
        )
    return data


def _damaged(path: Path, error: Exception) -> ImageError:
    return ImageError(f"{path}: truncated or damaged ({error}). Copy the file again.")


def _parse(data: bytes, path: Path) -> NiftiHeader:
    fields, order = _fields(data, path)
    shape = _shape(fields["dim"], path)
    code = int(fields["datatype"])
    if code not in _DATATYPES:
        raise ImageError(
            f"{path}: NIfTI datatype {code} (complex, colour or unknown); expected integers or real numbers."
        )
    dtype = np.dtype(_DATATYPES[code]).newbyteorder(order)
    offset = float(fields["vox_offset"])
    if not (np.isfinite(offset) and 0 <= offset < 2**40):
        raise ImageError(f"{path}: damaged NIfTI header: voxels start at byte {offset}.")
    _check_size(path, int(offset) + int(np.prod(shape, dtype=object)) * dtype.itemsize, shape, dtype)
    affine, notes = _affine(fields, len(shape), path)
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if not np.isfinite(slope) or slope == 0:  # the standard: no scaling
        slope, intercept = 1.0, 0.0
    if not np.isfinite(intercept):
        raise ImageError(f"{path}: damaged NIfTI header: scl_slope {slope}, scl_inter {intercept}.")
    facts = Facts(
        format="nifti",
        bits=8 * dtype.itemsize,
        channels=1,
        spacing_stated=True,
        place_stated=bool(fields["sform_code"] > 0 or fields["qform_code"] > 0),
    )
    return NiftiHeader(shape, affine, dtype, int(offset), slope, intercept, notes, facts)


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
        if record["magic"] != _MAGIC[size]:
            raise ImageError(
                f"{path}: not a one-file NIfTI (magic {record['magic']!r}). "
                "Convert a .hdr/.img pair to .nii.gz; copy a damaged file again."
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
    most = size * _DEFLATE_RATIO if path.suffix == ".gz" else size
    if needed > most:
        raise ImageError(
            f"{path}: truncated or damaged: its header promises {shape} voxels of {dtype.itemsize} bytes "
            f"({needed} bytes with the header), the file has {size}. Copy the file again."
        )


def _affine(fields: Any, dimensions: int, path: Path) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return voxel indices to RAS+ mm: sform before qform, as is the custom."""
    affine = np.eye(4)
    notes: tuple[str, ...] = ()
    pixdim = fields["pixdim"].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        if fields["sform_code"] > 0:
            affine[:3] = fields["srow"]
        elif fields["qform_code"] > 0:
            affine[:3, :3] = _rotation(fields["quatern"].astype(np.float64)) * pixdim[1:4]
            affine[:3, 2] *= -1 if pixdim[0] < 0 else 1
            affine[:3, 3] = fields["qoffset"]
        else:
            affine[:3, :3] = np.diag(pixdim[1:4] * (-1, 1, 1))
            notes = ("no orientation in the file (sform and qform codes are 0): taken as LAS",)
        if dimensions == 2 and not affine[:3, 2].any():  # a slice need not say how thick it is
            normal = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
        usable = bool(np.isfinite(affine).all()) and _invertible(affine)
    if not usable:
        raise ImageError(f"{path}: its affine is not usable: {affine[:3].tolist()}. Fix sform or qform.")
    return affine, notes


def _invertible(affine: NDArray[np.float64]) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(lengths).all() and (lengths > 1e-6).all() and (lengths < 1e6).all()):
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)


def _rotation(bcd: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix of the unit quaternion (a, b, c, d) with a >= 0 (nifti1.h, METHOD 2)."""
    b, c, d = bcd
    a = np.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
