"""Read an image or a label map from any of the formats that Threefold knows.

NIfTI (plain or gzipped), DICOM (a file, or a folder that is one series), NRRD, MetaImage, PNG and JPEG, told
apart by their bytes, and what readers from outside know (`images.readers`). Nothing here needs more than
numpy at import; the formats' own libraries are imported when a file of theirs is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.formats import foreign_reader, format_of, unreadable
from threefold.images.geometry import Header, Image, slice_affine, slice_of
from threefold.images.memory import out_of_memory, refuse_beyond_memory
from threefold.images.raw_volumes import Format as RawFormat
from threefold.images.raw_volumes import raw_header, raw_voxels
from threefold.images.readers import read_foreign

Uneven = Literal["refuse", "resample"]
_Result = TypeVar("_Result")


def read_image(
    path: Path,
    *,
    slice_index: int | None = None,
    spacing: tuple[float, ...] | None = None,
    uneven: Uneven = "refuse",
) -> Image:
    """Read a slice or a volume, in its own units (HU for CT) and on its own grid.

    Args:
        path: a file, or a folder that holds one DICOM series.
        slice_index: of a volume, read this slice along the third axis (0-based) alone. The slices of a
            DICOM series are in the order of their places along the slice normal.
        spacing: mm per pixel (rows, columns) of a PNG or JPEG; the other formats say it themselves.
        uneven: what to do with a DICOM series whose slices are unevenly spaced or sheared by a tilted
            gantry: refuse it, or resample it onto an even grid, which the notes record.

    Returns:
        The image. PNG and JPEG are taken in the radiological display convention: rows towards posterior,
        columns towards the patient's left.

    Raises:
        ImageError: missing, empty, truncated or damaged file; no regular file; colour; voxels whose meaning
            the file leaves open (a CT that is not in HU); NaN or infinite voxels (how many and where); a
            DICOM folder that is not one complete series; no slice of that index; more than fits in memory.
    """
    return _guarded(path, lambda: _finite(_read(path, slice_index, spacing, uneven, labels=False)))


def read_label_map(
    path: Path, *, slice_index: int | None = None, spacing: tuple[float, ...] | None = None
) -> Image:
    """Read a label map: an image whose voxels are whole numbers.

    Whole numbers that are stored as floating point are accepted. A palette PNG gives its palette indices.

    Returns:
        The image, its array of an integer type.

    Raises:
        ImageError: as `read_image`, or a voxel that is not a whole number.
    """

    def read() -> Image:
        image = _finite(_read(path, slice_index, spacing, "refuse", labels=True))
        if image.array.dtype.kind in "iu":
            return image
        return replace(image, array=_whole_numbers(path, image.array))

    return _guarded(path, read)


def read_header(
    path: Path, *, slice_index: int | None = None, spacing: tuple[float, ...] | None = None
) -> Header:
    """Read shape and affine without the voxels.

    Raises:
        ImageError: as `read_image`, as far as it shows without the voxels.
    """
    header = _guarded(path, lambda: _header(path, spacing))
    if slice_index is None:
        return header
    _check_slice(path, header.shape, slice_index)
    return replace(header, shape=header.shape[:2], affine=slice_affine(header.affine, slice_index))


def picture_affine(
    path: Path, spacing: tuple[float, ...] | None
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return the affine assumed for a PNG or JPEG (radiological display convention), and notes on it."""
    notes: tuple[str, ...] = ("orientation assumed: rows towards posterior, columns towards patient left",)
    if spacing is None:
        spacing = (1.0, 1.0)
        notes += ("spacing assumed: 1 mm per pixel",)
    if len(spacing) not in (2, 3):
        raise ImageError(f"{path}: spacing has {len(spacing)} numbers; expected mm per row and column.")
    affine = np.zeros((4, 4))
    affine[1, 0] = -spacing[0]
    affine[0, 1] = -spacing[1]
    affine[2, 2] = spacing[2] if len(spacing) == 3 else 1.0
    affine[3, 3] = 1.0
    return affine, notes


def _guarded(path: Path, read: Callable[[], _Result]) -> _Result:
    """Read, and say so in one kind of error if the system or the memory does not allow it."""
    try:
        return read()
    except OSError as error:
        raise unreadable(path, error) from error
    except MemoryError as error:
        raise out_of_memory(path) from error


def _header(path: Path, spacing: tuple[float, ...] | None) -> Header:
    kind = format_of(path)
    reader = foreign_reader(path, kind)
    if reader is not None:
        image = read_foreign(path, reader)
        return Header(image.array.shape, image.affine, image.notes, image.facts)
    if kind == "nifti":
        from threefold.images.nifti import read_nifti_header

        nifti = read_nifti_header(path)
        return Header(nifti.shape, nifti.place.affine, nifti.notes, nifti.facts)
    if kind == "picture":
        from threefold.images.pictures import open_picture

        picture = open_picture(path)
        affine, assumed = picture_affine(path, spacing)
        facts = picture.facts(spacing_stated=spacing is not None)
        return Header(picture.shape, affine, (*picture.notes, *assumed), facts)
    if kind in ("nrrd", "metaimage"):
        raw = raw_header(path, cast(RawFormat, kind))
        return Header(raw.shape, raw.affine, raw.notes, raw.facts)
    from threefold.images import dicom

    return dicom.file_header(path) if kind == "dicom" else dicom.series_header(path)


def _read(
    path: Path, slice_index: int | None, spacing: tuple[float, ...] | None, uneven: Uneven, *, labels: bool
) -> Image:
    kind = format_of(path)
    reader = foreign_reader(path, kind)
    if reader is not None:
        return _one_slice(read_foreign(path, reader), slice_index)
    if kind == "nifti":
        return _read_nifti(path, slice_index, labels=labels)
    if kind == "picture":
        return _one_slice(_read_picture(path, spacing, labels=labels), slice_index)
    if kind in ("nrrd", "metaimage"):
        raw = raw_header(path, cast(RawFormat, kind))
        image = Image(raw_voxels(path, raw), raw.affine, path, raw.notes, raw.facts)
        return _one_slice(image, slice_index)
    from threefold.images import dicom

    read = dicom.read_file if kind == "dicom" else dicom.read_series
    return read(path, slice_index=slice_index, uneven=uneven)


def _one_slice(image: Image, index: int | None) -> Image:
    """Return a slice of a volume; the image itself where none is asked for, or it is the one slice."""
    if index is None:
        return image
    _check_slice(image.source, image.array.shape, index)
    return slice_of(image, index) if image.array.ndim == 3 else image


def _read_picture(path: Path, spacing: tuple[float, ...] | None, *, labels: bool) -> Image:
    from threefold.images.pictures import grey_values, open_picture

    picture = open_picture(path)
    array, notes = grey_values(picture, labels=labels)
    affine, assumed = picture_affine(path, spacing)
    facts = picture.facts(spacing_stated=spacing is not None)
    return Image(array, affine, path, (*notes, *assumed), facts)


def _read_nifti(path: Path, slice_index: int | None, *, labels: bool) -> Image:
    from threefold.images.nifti import read_nifti, read_nifti_header

    if slice_index is not None:
        _check_slice(path, read_nifti_header(path).shape, slice_index)
    array, header = read_nifti(path, slice_index)
    affine = header.place.affine
    if slice_index is not None:
        affine = slice_affine(affine, slice_index)
    notes = header.notes
    if header.intent and not labels:
        notes += (f"its header says that it holds {header.intent}, not an image",)
    return Image(array, affine, path, notes, header.facts, header.place)


def _check_slice(path: Path, shape: tuple[int, ...], index: int) -> None:
    slices = shape[2] if len(shape) == 3 else 1
    if not 0 <= index < slices:
        raise ImageError(
            f"{path}: there is no slice {index}; it has {slices} (0 to {slices - 1}, along the third axis)."
        )


def _finite(image: Image) -> Image:
    """Return the image, if all of its voxels are finite."""
    array: NDArray[Any] = image.array
    if array.dtype.kind != "f":
        return image
    finite = np.isfinite(array)
    if finite.all():
        return image
    where = tuple(int(i) for i in np.argwhere(~finite)[0])
    nans = int(np.isnan(array).sum())
    raise ImageError(
        f"{image.source}: {nans} NaN and {int((~finite).sum()) - nans} infinite voxels of {array.size}, the "
        f"first at {where}. Replace them by what they stand for (outside the field of view: air)."
    )


def _whole_numbers(path: Path, array: NDArray[Any]) -> NDArray[np.int32]:
    """Return floating labels as int32, in the same order in memory; a plane at a time, to hold one copy."""
    refuse_beyond_memory(path, f"{array.size} labels", 4 * array.size)
    labels = np.empty_like(array, np.int32)
    differing = 0
    where: tuple[int, ...] = ()
    for plane in range(array.shape[-1]):
        values = array[..., plane]
        whole = np.rint(values)
        if np.abs(whole).max(initial=0) > np.iinfo(np.int32).max:
            raise ImageError(f"{path}: holds {whole.flat[np.abs(whole).argmax()]:g}, which is no label.")
        differs = whole != values
        if differs.any() and not differing:
            where = (*(int(i) for i in np.argwhere(differs)[0]), plane)
        differing += int(differs.sum())
        labels[..., plane] = whole
    if differing:
        raise ImageError(
            f"{path}: expected a label map of whole numbers, found {array[where]:g} at voxel {where} "
            f"({differing} such voxels). Is it a probability map, or resampled without nearest-neighbour?"
        )
    return labels
