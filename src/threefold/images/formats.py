"""Tell the format of a file by its first bytes; its name decides nothing."""

from __future__ import annotations

import gzip
import stat
import zlib
from pathlib import Path
from typing import Literal

from threefold.errors import ImageError
from threefold.images.readers import KNOWN, READERS, Reader, reader_of

EXPECTED = (
    "a NIfTI (plain or gzipped), DICOM, NRRD, MetaImage, PNG or JPEG file, or a folder with one DICOM series"
)

_HEAD = 544
"""Bytes that are looked at: the longest header (NIfTI-2) and its extension flag."""
_GZIP = b"\x1f\x8b"
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_NRRD = b"NRRD000"
_METAIMAGE = (b"ObjectType", b"NDims")
_NIFTI_SIZES = (348, 540)
_VALUE_REPRESENTATIONS = (b"UI", b"CS", b"UL", b"OB", b"SH", b"LO", b"DA", b"TM", b"UN")
_EDITOR, _SLICER, _FREESURFER, _MINC = "a picture editor", "3D Slicer or SimpleITK", "mri_convert", "mnc2nii"
_OTHERS = (
    (0, b"GIF8", "GIF", _EDITOR),
    (0, b"BM", "BMP", _EDITOR),
    (0, b"II*\0", "TIFF", _EDITOR),
    (0, b"MM\0*", "TIFF", _EDITOR),
    (0, b"II+\0", "BigTIFF", _EDITOR),
    (8, b"WEBP", "WebP", _EDITOR),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000", _EDITOR),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000", _EDITOR),
    (0, b"\x89HDF", "HDF5 (MINC 2, ...)", _MINC),
    (0, b"CDF", "NetCDF (MINC 1)", _MINC),
    (0, b"\0\0\0\x01\0\0", "FreeSurfer MGH", _FREESURFER),
    (0, b"MATRIX", "ECAT", _SLICER),
    (0, b"TRACK", "TrackVis", None),
    (0, b"\x93NUMPY", "NumPy", None),
    (0, b"PK", "ZIP", None),
    (0, b"%PDF", "PDF", None),
    (257, b"ustar", "tar", None),
)
"""Formats that are not read: where their mark is, the mark, their name, and what converts such files."""


def format_of(path: Path) -> str:
    """Return the format of a file: nifti, dicom, nrrd, metaimage, picture, or the name of a reader's from
    outside; of a folder "dicom series".

    Raises:
        ImageError: if there is no such file, it is empty, no regular file (a pipe, a socket, a device), or
            of no known format.
    """
    if is_folder(path):
        return "dicom series"
    head, gzipped = first_bytes(path)
    found = _known(head)
    if found is None:
        reader = reader_of(path, head)
        if reader is not None:
            return reader.name
        what, how = _other(path, head, gzipped=gzipped)
        raise ImageError(
            f"{path}: not an image of a known format: {what}. Expected {EXPECTED} (told by the bytes, not by "
            f"the name). {how} A reader of your own is named by {READERS}=module:NAME."
        )
    if gzipped and found != "nifti":
        raise gzipped_error(path, found)
    return found


def gzipped_error(path: Path, kind: str) -> ImageError:
    """Return the error for a gzipped file of a format that is read as it is."""
    return ImageError(f"{path}: a gzipped {kind} file; of gzipped files NIfTI is read. Decompress it.")


def states_place(path: Path) -> bool:
    """Whether the file's format says where its voxels lie in the patient (PNG and JPEG do not)."""
    kind = format_of(path)
    reader = foreign_reader(path, kind)
    return kind != "picture" if reader is None else reader.states_place


def foreign_reader(path: Path, kind: str) -> Reader | None:
    """Return the reader from outside that gives a file its format; None: the program reads it."""
    return None if kind in KNOWN else reader_of(path, first_bytes(path)[0])


def is_folder(path: Path) -> bool:
    """Whether a path is a folder rather than a regular file, without opening it.

    Raises:
        ImageError: if it is neither. To open a pipe would wait for a writer, to read a device never end.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ImageError(
                f"{path}: a link to {path.readlink()}, which does not exist. Fix the link."
            ) from error
        raise ImageError(f"{path}: no such file. Correct its path.") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise unreadable(path, error) from error
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        return stat.S_ISDIR(mode)
    kinds = {stat.S_IFIFO: "a named pipe (FIFO)", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise ImageError(f"{path}: {kind}, not a file. Expected {EXPECTED}.")


def first_bytes(path: Path) -> tuple[bytes, bool]:
    """Return the first bytes of a regular file, decompressed if it is gzipped, and whether it is.

    Raises:
        ImageError: if it is empty, can't be read, or its gzip stream is damaged.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        if not head:
            raise ImageError(f"{path}: the file is empty (0 bytes). Copy it again.")
        if not head.startswith(_GZIP):
            return head, False
        with gzip.open(path) as packed:
            return packed.read(_HEAD), True
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageError(f"{path}: a truncated or damaged gzip file ({error}). Copy it again.") from error
    except OSError as error:
        raise unreadable(path, error) from error


def looks_like_dicom(path: Path) -> bool:
    """Whether a regular file is named as DICOM files are, or begins as one; an empty one does not.

    Raises:
        ImageError: it can't be read.
    """
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    return bool(path.stat().st_size) and is_dicom(first_bytes(path)[0])


def is_dicom(head: bytes) -> bool:
    """Whether bytes begin a DICOM file, with its preamble or without."""
    return has_preamble(head) or _begins_with_attribute(head)


def has_preamble(head: bytes) -> bool:
    """Whether bytes begin a DICOM file as PS3.10 wants it."""
    return head[128:132] == b"DICM"


def unreadable(path: Path, error: Exception) -> ImageError:
    """Return the error for a file that the system does not let us read."""
    reason = getattr(error, "strerror", None) or str(error)
    return ImageError(f"{path}: can't be read ({reason}). Fix the file or its permission.")


def _known(head: bytes) -> Literal["nifti", "dicom", "nrrd", "metaimage", "picture"] | None:
    if has_preamble(head):
        return "dicom"
    if head.startswith(_NRRD):
        return "nrrd"
    if head.startswith(_METAIMAGE):
        return "metaimage"
    if head.startswith((_PNG, _JPEG)):
        return "picture"
    if _nifti_size(head):
        return "nifti"
    return "dicom" if _begins_with_attribute(head) else None


def _nifti_size(head: bytes) -> bool:
    return any(int.from_bytes(head[:4], order) in _NIFTI_SIZES for order in ("little", "big"))


def _begins_with_attribute(head: bytes) -> bool:
    """Whether the first bytes are an attribute of group 2 or 8, with which every DICOM data set begins."""
    if len(head) < 12:
        return False
    for order in ("little", "big"):
        group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)
        if group not in (2, 8) or element > 0x0100:
            continue
        if head[4:6] in _VALUE_REPRESENTATIONS:
            return True
        length = int.from_bytes(head[4:8], order)  # implicit: no VR, but the length of a short text
        if order == "little" and length <= 64 and length % 2 == 0:
            return True
    return False


def _other(path: Path, head: bytes, *, gzipped: bool) -> tuple[str, str]:
    """Return what a file of no format that is read is, and what to do with it."""
    packed = "gzipped, and " if gzipped else ""
    header = _header_beside(path)
    if header is not None:
        return (
            f"{packed}it holds the voxels of a .hdr/.img pair, whose header is {header.name}",
            f"Convert the pair to one .nii.gz file (mri_convert {header.name} IMAGE.nii.gz).",
        )
    for at, magic, name, tool in _OTHERS:
        if head[at:].startswith(magic):
            how = (
                "Give the images that it is about or holds." if tool is None else f"Convert it, with {tool}."
            )
            return f"{packed}it begins as a {name} file", how
    return f"{packed}it begins with {head[:12]!r}", "Convert it, or copy it again if it was damaged."


def _header_beside(path: Path) -> Path | None:
    """Return the header beside a file that is named as the voxels of a pair are; None: there is none."""
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith(".img"):
        return None
    stem = path.name[: len(name) - len(".img")]
    names = (f"{stem}{ending}" for ending in (".hdr", ".HDR", ".hdr.gz"))
    return next((path.with_name(one) for one in names if path.with_name(one).is_file()), None)
