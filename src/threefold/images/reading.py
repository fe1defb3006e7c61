"""Read an image or a label map from any of the formats that Threefold knows.

NIfTI (.nii, .nii.gz), DICOM (a file, or a folder that is one series), PNG and JPEG. Nothing here needs
more than numpy at import; the formats' own libraries are imported when a file of theirs is read.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.decoding import decoding
from threefold.images.facts import Facts
from threefold.images.geometry import Header, Image, slice_affine

Uneven = Literal["refuse", "resample"]
Format = Literal["nifti", "dicom", "dicom series", "picture"]

_FORMATS = ".nii, .nii.gz, .dcm, .png, .jpg, .jpeg, or a folder with one DICOM series"


def format_of(path: Path) -> Format:
    """Return the format of a file that exists and is not empty.

    Raises:
        ImageError: if there is no such file, it is empty, or of no known format.
    """
    name = path.name.lower()
    try:
        if path.is_dir():
            return "dicom series"
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty (0 bytes). Copy it again.")
        if name.endswith((".nii", ".nii.gz")):
            return "nifti"
        if name.endswith((".png", ".jpg", ".jpeg")):
            return "picture"
        with path.open("rb") as stream:
            if name.endswith(".dcm") or stream.read(132)[128:] == b"DICM":
                return "dicom"
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file. Correct its path.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    raise ImageError(f"{path}: not an image of a known format; expected {_FORMATS}.")


def states_place(path: Path) -> bool:
    """Whether the file's format says where its voxels lie in the patient (PNG and JPEG do not)."""
    return format_of(path) != "picture"


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
        ImageError: missing, empty, truncated or damaged file; colour; NaN or infinite voxels (how many
            and where); a DICOM folder that is not one complete series; no slice of that index.
    """
    image = _read(path, slice_index, spacing, uneven, labels=False)
    _refuse_not_finite(image)
    return image


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
    image = _read(path, slice_index, spacing, "refuse", labels=True)
    _refuse_not_finite(image)
    array: NDArray[Any] = image.array
    if array.dtype.kind in "iu":
        return image
    whole = np.rint(array)
    if np.abs(whole).max(initial=0) > np.iinfo(np.int32).max:
        raise ImageError(f"{path}: holds {whole.flat[np.abs(whole).argmax()]:g}, which is no label.")
    differs = whole != array
    if differs.any():
        where = tuple(int(i) for i in np.argwhere(differs)[0])
        raise ImageError(
            f"{path}: expected a label map of whole numbers, found {array[where]:g} at voxel {where} "
            f"({int(differs.sum())} such voxels). Is it a probability map, or resampled without "
            "nearest-neighbour?"
        )
    return replace(image, array=whole.astype(np.int32))


def read_header(
    path: Path, *, slice_index: int | None = None, spacing: tuple[float, ...] | None = None
) -> Header:
    """Read shape and affine without the voxels.

    Raises:
        ImageError: as `read_image`, as far as it shows without the voxels.
    """
    kind = format_of(path)
    try:
        if kind == "nifti":
            from threefold.images.nifti import read_nifti_header

            nifti = read_nifti_header(path)
            header = Header(nifti.shape, nifti.affine, nifti.notes, nifti.facts)
        elif kind == "picture":
            picture, notes = _picture(path)
            affine, assumed = picture_affine(path, spacing)
            facts = _picture_facts(picture, spacing)
            header = Header(picture.size[::-1], affine, (*notes, *assumed), facts)
        else:
            from threefold.images import dicom

            header = dicom.file_header(path) if kind == "dicom" else dicom.series_header(path)
    except OSError as error:
        raise _unreadable(path, error) from error
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


def _read(
    path: Path, slice_index: int | None, spacing: tuple[float, ...] | None, uneven: Uneven, *, labels: bool
) -> Image:
    kind = format_of(path)
    try:
        if kind == "nifti":
            return _read_nifti(path, slice_index)
        if kind == "picture":
            picture, notes = _picture(path)
            facts = _picture_facts(picture, spacing)
            array, more = _grey_values(path, picture, labels=labels)
            affine, assumed = picture_affine(path, spacing)
            image = Image(array, affine, path, (*notes, *more, *assumed), facts)
        else:
            from threefold.images import dicom

            if kind == "dicom series":
                return dicom.read_series(path, slice_index=slice_index, uneven=uneven)
            image = dicom.read_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if slice_index is not None:
        _check_slice(path, image.array.shape, slice_index)
    return image


def _read_nifti(path: Path, slice_index: int | None) -> Image:
    from threefold.images.nifti import read_nifti, read_nifti_header

    if slice_index is None:
        array, header = read_nifti(path)
        return Image(array, header.affine, path, header.notes, header.facts)
    _check_slice(path, read_nifti_header(path).shape, slice_index)
    array, header = read_nifti(path, slice_index)
    affine = slice_affine(header.affine, slice_index)
    return Image(array, affine, path, header.notes, header.facts)


def _check_slice(path: Path, shape: tuple[int, ...], index: int) -> None:
    slices = shape[2] if len(shape) == 3 else 1
    if not 0 <= index < slices:
        raise ImageError(
            f"{path}: there is no slice {index}; it has {slices} (0 to {slices - 1}, along the third axis)."
        )


def _picture(path: Path) -> tuple[Any, list[str]]:
    """Open a PNG or JPEG without decoding its pixels; also return the list that warnings are noted in."""
    data = path.read_bytes()
    with decoding(path, "a PNG or JPEG") as notes:
        import PIL.Image

        picture = PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if picture.format == "PNG":
            picture.verify()  # compares the checksums, which decoding does not; afterwards open anew
            picture = PIL.Image.open(io.BytesIO(data), formats=("PNG",))
        turned = picture.getexif().get(0x0112, 1)
    if turned != 1:
        raise ImageError(f"{path}: carries a camera rotation (EXIF orientation {turned}). Save it upright.")
    return picture, notes


def _picture_facts(picture: Any, spacing: tuple[float, ...] | None) -> Facts:
    return Facts(
        format="picture",
        photometric=picture.mode,
        bits={"1": 1, "I": 16, "I;16": 16}.get(picture.mode, 8),
        channels=len(picture.getbands()),
        spacing_stated=spacing is not None,
    )


def _grey_values(path: Path, picture: Any, *, labels: bool) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Return the grey values of a PNG or JPEG, (rows, columns)."""
    with decoding(path, "a PNG or JPEG") as notes:
        if picture.mode == "P" and not labels:
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        elif picture.mode == "1":
            picture = picture.convert("L")  # 0 and 255
        array = np.asarray(picture)
    if picture.mode == "I":  # 16-bit PNG in some versions of Pillow
        array = array.astype(np.uint16)
    if array.ndim == 3:
        array, reduced = _grey(path, array, picture.mode)
        notes.append(reduced)
    return array, tuple(notes)


def _grey(path: Path, array: NDArray[Any], mode: str) -> tuple[NDArray[Any], str]:
    """Reduce colour channels that are all equal, and opaque transparency, to one channel."""
    if mode in ("LA", "RGBA"):
        if (array[..., -1] != 255).any():
            raise ImageError(f"{path}: has transparent pixels; expected a grey image. Save it without alpha.")
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


def _refuse_not_finite(image: Image) -> None:
    array: NDArray[Any] = image.array
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    where = tuple(int(i) for i in np.argwhere(~finite)[0])
    nans = int(np.isnan(array).sum())
    raise ImageError(
        f"{image.source}: {nans} NaN and {int((~finite).sum()) - nans} infinite voxels of {array.size}, the "
        f"first at {where}. Replace them by what they stand for (outside the field of view: air)."
    )


def _unreadable(path: Path, error: OSError) -> ImageError:
    return ImageError(f"{path}: can't be read ({error.strerror or error}). Fix the file or its permission.")
