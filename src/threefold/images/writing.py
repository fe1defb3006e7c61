"""Write images and label maps; a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError, RunError, WriteError
from threefold.images.formats import states_place
from threefold.images.geometry import Image
from threefold.images.nifti_place import NiftiPlace
from threefold.run import write_atomically


def write_nifti(
    path: Path, array: NDArray[Any], affine: NDArray[np.float64], *, place: NiftiPlace | None = None
) -> None:
    """Write a slice or a volume as NIfTI-1; the same input gives the same bytes.

    Args:
        path: ends in .nii or .nii.gz.
        array, affine, place: as `encode_nifti` takes them.

    Raises:
        ImageError: no permission, no space, or a folder that is not there.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ImageError(f"{path}: expected a name that ends in .nii or .nii.gz.")
    _write(path, encode_nifti(array, affine, place=place, compress=path.suffix == ".gz"))


def encode_nifti(
    array: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    place: NiftiPlace | None = None,
    compress: bool = True,
    stored: type[np.integer] | None = None,
) -> bytes:
    """Return a slice or a volume as the bytes of a NIfTI-1 file, the same for the same input.

    Args:
        array: (I, J), stored as (I, J, 1), or (I, J, K). bool is stored as uint8, int64 as int32.
        affine: (4, 4) voxel indices to RAS+ mm; stored as sform, and as qform as far as that can say it.
        place: `Image.stored_place` of the NIfTI whose grid this is, or whose slice: its sform, qform, codes
            and unit of length are stored instead, so that whatever a reader goes by, it lies on that image.
        compress: with gzip.
        stored: the integers that values are scaled to, with slope and intercept in the header; None: as they
            are.
    """
    if array.ndim not in (2, 3):
        raise ValueError(f"expected a slice or a volume, found shape {array.shape}")
    from nibabel.nifti1 import Nifti1Image

    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype == np.int64:
        if array.size and np.abs(array).max() > np.iinfo(np.int32).max:
            raise ValueError(f"values up to {np.abs(array).max()} do not fit NIfTI's int32")
        array = array.astype(np.int32)
    make: Any = Nifti1Image
    image = make(array[..., None] if array.ndim == 2 else array, None)
    if stored is not None:
        image.set_data_dtype(stored)
    same = None if place is None else place.of_grid(affine)
    if same is None:
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner", strip_shears=True)
        image.header.set_xyzt_units("mm")
    else:
        _set_place(image.header, same)
    data = image.to_bytes()
    # mtime=0 keeps the time out of the file; level 4 is half the time of 6 for 3 % more bytes on CT
    return gzip.compress(data, compresslevel=4, mtime=0) if compress else bytes(data)


def write_vectors(path: Path, vectors: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
    """Write a field of vectors as ITK reads it: NIfTI-1 with five axes and the intent VECTOR.

    Args:
        path: ends in .nii.gz.
        vectors: (I, J, K, 3), LPS+ mm.
        affine: (4, 4) voxel indices to RAS+ mm.

    Raises:
        ImageError: no permission, no space, or a folder that is not there.
    """
    from nibabel.nifti1 import Nifti1Image

    make: Any = Nifti1Image
    image = make(vectors[:, :, :, None, :], None)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner", strip_shears=True)
    image.header.set_xyzt_units("mm")
    image.header.set_intent("vector")
    _write(path, gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def _set_place(header: Any, place: NiftiPlace) -> None:
    header["sform_code"], header["qform_code"] = place.sform_code, place.qform_code
    for axis, row in zip("xyz", place.sform, strict=True):
        header[f"srow_{axis}"] = row
    for name, value in zip(("quatern_b", "quatern_c", "quatern_d"), place.quatern, strict=True):
        header[name] = value
    for name, value in zip(("qoffset_x", "qoffset_y", "qoffset_z"), place.qoffset, strict=True):
        header[name] = value
    header["pixdim"][:4] = place.pixdim[:4]
    header["xyzt_units"] = place.unit


def label_map_suffix(like: Image) -> str:
    """Return the ending that a label map on an image's grid has: .png for PNG and JPEG, else .nii.gz."""
    return ".nii.gz" if states_place(like.source) else ".png"


def write_label_map(path: Path, array: NDArray[Any], like: Image, *, labels: int = 1) -> None:
    """Write a label map on the grid of the image `like`.

    Args:
        path: ends in .nii, .nii.gz or .png (`label_map_suffix` says which fits the image).
        array: integers or bool, of the image's shape.
        like: on whose grid it lies; a NIfTI gets its affine, or what the NIfTI that it was read from states.
        labels: number of labels beside the background. A PNG of one label holds 0 and 255, so that it can
            be seen; of several, the labels.

    Raises:
        ImageError: no permission, no space, a folder that is not there, or an unknown ending.
    """
    if array.shape != like.array.shape:
        raise ValueError(f"the label map has shape {array.shape}, its image {like.array.shape}")
    if array.size and not (array.min() >= 0 and array.max() <= min(labels, 255)):
        raise ValueError(f"expected labels 0 to {labels}, found {array.min()} to {array.max()}")
    array = array.astype(np.uint8)
    if path.suffix == ".png":
        write_png(path, array * np.uint8(255) if labels == 1 else array)
    else:
        write_nifti(path, array, like.affine, place=like.stored_place)


def write_value_map(path: Path, array: NDArray[np.floating], like: Image) -> None:
    """Write a number for each voxel of the image `like` as NIfTI, scaled to 16 bits.

    Args:
        path: ends in .nii or .nii.gz.
        array: of the image's shape.
        like: on whose grid it lies; a picture states no place, and its map has a voxel of 1 mm a pixel.

    Raises:
        ImageError: no permission, no space, or a folder that is not there.
    """
    if array.shape != like.array.shape:
        raise ValueError(f"the map has shape {array.shape}, its image {like.array.shape}")
    _write(path, encode_nifti(array, like.affine, place=like.stored_place, stored=np.uint16))


def write_png(path: Path, array: NDArray[np.uint8]) -> None:
    """Write (rows, columns) grey or (rows, columns, 3) colour as PNG.

    Raises:
        ImageError: no permission, no space, or a folder that is not there.
    """
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"expected uint8 (rows, columns) or (rows, columns, 3), found {array.shape}")
    import PIL.Image

    stream = io.BytesIO()
    PIL.Image.fromarray(array).save(stream, format="PNG")
    _write(path, stream.getvalue())


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except (RunError, OSError) as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or str(cause)
        raise WriteError(
            f"{path}: could not be written ({reason}). A file that was there is untouched. Free space, fix "
            "the permission or make the folder, then write again."
        ) from cause
