"""What the pixels of a DICOM file mean, and the pixels: read as its attributes say, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.decoding import decoding, short
from threefold.images.dicom_decoders import (
    extended_jpeg,
    needs_gdcm_itself,
    refuse_cut_off,
    refuse_undecodable,
)
from threefold.images.dicom_kinds import is_localizer, object_name, refuse_other_objects, several_of
from threefold.images.facts import Facts
from threefold.images.memory import refuse_beyond_memory

if TYPE_CHECKING:
    from pydicom import Dataset

AIR = -1024
"""HU of voxels outside the field of view."""

_REQUIRED = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation",
)  # fmt: skip
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_NO_UNIT = ("US", "not stated")
"""What RescaleType or ModalityLUTType says where it names no unit (US: unspecified)."""
_QUANTITIES = ("CT", "PT")
"""Modalities whose rescaled values are measures (HU, Bq/ml): MONOCHROME1 inverts their display alone."""


@dataclass(frozen=True)
class Encoding:
    """How a file stores its pixels, and what they mean, as its attributes state it.

    Attributes:
        photometric: PhotometricInterpretation.
        shape: rows, columns.
        samples: per pixel: 1, or 3 in colour.
        allocated, stored, high: bits of a cell, of a pixel in it, and the place of its highest (from 0).
        signed: whether that is a sign.
        slope, intercept: from stored values to the image's.
        table: whether a modality lookup table takes their place.
        padding: the range of stored values that mean "no pixel", smallest and largest.
        facts: what the file states.
        notes: what in this is unusual.
    """

    photometric: str
    shape: tuple[int, int]
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    slope: float
    intercept: float
    table: bool
    padding: tuple[int, int] | None
    facts: Facts
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Pixels:
    """The pixels of a file.

    Attributes:
        values: (rows, columns), HU for CT.
        padded: how many pixels are outside the field of view (PixelPaddingValue): air in HU, else the
            smallest of the others.
        notes: what decoding had to do, beside the notes of the encoding.
    """

    values: NDArray[Any]
    padded: int
    notes: tuple[str, ...]


def read_encoding(path: Path, dataset: Dataset) -> Encoding:
    """Return how a file stores its pixels; needs its attributes alone.

    Raises:
        ImageError: it is no image of one grey slice, or does not say what its values mean.
    """
    with decoding(path, "a DICOM image") as notes:
        refuse_other_objects(path, dataset)
        _refuse_missing(path, dataset)
        photometric = _text(dataset, "PhotometricInterpretation") or ""
        frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.SamplesPerPixel)
        if frames != 1:
            raise ImageError(
                f"{path}: {frames} frames in one file ({object_name(dataset)}), which does not say where "
                "each lies; expected one slice a file, or an enhanced CT, MR or PET. Extract the frame that "
                "you mean, or convert the file to NIfTI (for example with dcm2niix)."
            )
        _refuse_photometric(path, photometric, samples)
        modality = (_text(dataset, "Modality") or "").upper() or None
        if is_localizer(dataset):
            raise ImageError(
                f"{path}: a localizer (scout) image, a projection and not a slice. Leave it out."
            )
        allocated, stored, high = (
            int(dataset[name].value) for name in ("BitsAllocated", "BitsStored", "HighBit")
        )
        sign = int(dataset.PixelRepresentation)
        if allocated not in (8, 16, 32) or not 1 <= stored <= high + 1 <= allocated or sign not in (0, 1):
            raise ImageError(
                f"{path}: BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}, "
                f"PixelRepresentation {sign}: expected 8, 16 or 32 bits that hold the stored ones. "
                "Convert it, or copy it again."
            )
        table = bool(dataset.get("ModalityLUTSequence"))
        slope, intercept = _rescaling(path, dataset, modality, table=table)
        unit = _unit(dataset, table=table)
        if modality == "CT" and samples != 1:
            raise ImageError(f"{path}: a CT in colour ({photometric}), a picture of the screen and not HU.")
        if modality == "CT" and unit != "HU":
            notes.append(f"a CT whose values are stated as '{short(unit)}', not as HU")
        if photometric == "MONOCHROME1":
            notes.append(
                f"MONOCHROME1: shown inverted, read as the {modality} values that they are"
                if modality in _QUANTITIES
                else "MONOCHROME1 (the smallest value is white): inverted, so that bright is high"
            )
        if dataset.get("RealWorldValueMappingSequence"):
            notes.append("has a RealWorldValueMapping, which was not applied")
        if _text(dataset, "LossyImageCompression") == "01":
            notes.append("was compressed with loss")
        shape = int(dataset.Rows), int(dataset.Columns)
        padding = _padding(dataset, allocated, signed=bool(sign))
        facts = _facts(dataset, modality, unit if modality == "CT" and unit not in _NO_UNIT else None)
    return Encoding(
        photometric, shape, samples, allocated, stored, high, bool(sign),
        slope, intercept, table, padding, facts, tuple(notes),
    )  # fmt: skip


def read_pixels(path: Path, dataset: Dataset, encoding: Encoding, *, frame: int | None = None) -> Pixels:
    """Decode the pixels of a file, or of one of its frames.

    Args:
        path: of the file, for errors.
        dataset: its attributes, pixels included.
        encoding: as `read_encoding` returned it for them, or for those of the frame.
        frame: from 0; None: the file has one.

    Raises:
        ImageError: no decoder for its compression; damaged; colour; beyond memory.
    """
    inverted = encoding.photometric == "MONOCHROME1" and encoding.facts.modality not in _QUANTITIES
    rows, columns = encoding.shape
    each = encoding.samples * encoding.allocated // 8
    refuse_beyond_memory(path, f"{rows} x {columns} pixels of {each} bytes", rows * columns * (2 * each + 8))
    with decoding(path, "a DICOM image") as notes:
        from pydicom.pixels.processing import apply_modality_lut
        from pydicom.pixels.utils import pixel_array

        refuse_undecodable(path, dataset)
        refuse_cut_off(dataset, frame)
        if needs_gdcm_itself(dataset):
            cells: NDArray[Any] = extended_jpeg(dataset, frame)
        else:  # whole cells: pydicom would mask them as if HighBit were always BitsStored - 1
            cells = pixel_array(dataset, index=frame, correct_unused_bits=False)
        if cells.shape[:2] != encoding.shape:
            raise ImageError(f"{path}: {cells.shape} pixels; expected {rows} x {columns}.")
        if encoding.samples == 3:
            cells = _grey(path, cells)
            notes.append(f"{encoding.photometric} with equal channels, reduced to grey")
        stored, masked = _stored(cells, encoding)
        if masked:
            notes.append(f"{masked} pixels have bits outside of those that are stored, left out")
        outside = _outside(cells, stored, encoding)
        if inverted and not encoding.table:
            stored = (-1 if encoding.signed else 2**encoding.stored - 1) - stored.astype(np.int64)
        if encoding.table:
            values: NDArray[Any] = np.asarray(apply_modality_lut(stored, dataset)).astype(np.int64)
            if inverted:
                values = 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1 - values
        else:
            values = _rescaled(stored, encoding)
    padded = 0 if outside is None else int(outside.sum())
    if outside is not None and padded:
        rest = values[~outside]
        values[outside] = AIR if encoding.facts.unit == "HU" else rest.min() if rest.size else 0
    return Pixels(_narrow(values), padded, tuple(notes))


def padding_note(padded: int, facts: Facts) -> tuple[str, ...]:
    """Return the note on pixels outside the field of view."""
    if not padded:
        return ()
    filled = f"{AIR} HU" if facts.unit == "HU" else "the smallest value of the others"
    return (f"{padded} pixels outside the field of view set to {filled}",)


def _refuse_missing(path: Path, dataset: Dataset) -> None:
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            raise ImageError(f"{path}: holds {keyword}, a map; expected whole numbers. Convert it to NIfTI.")
    missing = [name for name in _REQUIRED if dataset.get(name) in (None, "")]
    if missing:
        raise ImageError(
            f"{path}: the DICOM file lacks {', '.join(missing)}, without which its pixels have no meaning. "
            "Ask for the original export, or copy it again if it was cut off."
        )


def _refuse_photometric(path: Path, photometric: str, samples: int) -> None:
    if (photometric in _GREY and samples == 1) or (photometric in _COLOUR and samples == 3):
        return
    raise ImageError(
        f"{path}: PhotometricInterpretation {short(photometric, 40)} with {samples} samples per pixel; "
        "expected grey (MONOCHROME1, MONOCHROME2), or RGB or YBR with equal channels. Convert it to grey."
    )


def _rescaling(path: Path, dataset: Dataset, modality: str | None, *, table: bool) -> tuple[float, float]:
    """Return RescaleSlope and RescaleIntercept; 1 and 0 where there is nothing to rescale."""
    if table:
        return 1.0, 0.0
    stated = [name for name in ("RescaleSlope", "RescaleIntercept") if dataset.get(name) not in (None, "")]
    if len(stated) == 1 or (modality == "CT" and not stated):
        lacks = "RescaleSlope and RescaleIntercept"
        if stated:
            lacks = "RescaleIntercept" if stated[0] == "RescaleSlope" else "RescaleSlope"
        unit = "not proven to be HU" if modality == "CT" else "in no known unit"
        raise ImageError(
            f"{path}: lacks {lacks}, so its values are {unit}. Ask for the original export, or convert it "
            "with the slope and intercept of its scanner."
        )
    if not stated:
        return 1.0, 0.0
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    if slope == 0 or not np.isfinite([slope, intercept]).all() or max(abs(slope), abs(intercept)) > 1e9:
        raise ImageError(
            f"{path}: RescaleSlope is {slope:g}, RescaleIntercept {intercept:g}; expected finite numbers, "
            "the slope not 0. Ask for the original export."
        )
    return slope, intercept


def _unit(dataset: Dataset, *, table: bool) -> str:
    """Return the unit of the rescaled values of a CT: HU where RescaleType says nothing (C.8.2.1.1.2)."""
    if table:
        return _text(dataset.ModalityLUTSequence[0], "ModalityLUTType") or "not stated"
    return (_text(dataset, "RescaleType") or "HU").upper()


def _padding(dataset: Dataset, allocated: int, *, signed: bool) -> tuple[int, int] | None:
    """Return the range of stored values that mean "no pixel" (DICOM PS3.3 C.7.5.1.1.2)."""
    first = dataset.get("PixelPaddingValue")
    if first in (None, ""):
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    bounds = sorted(
        _as_stored(one, allocated, signed=signed) for one in (first, first if last in (None, "") else last)
    )
    return bounds[0], bounds[1]


def _as_stored(value: Any, allocated: int, *, signed: bool) -> int:
    """Return a value with the sign of the pixels, whatever sign its own VR gave it."""
    bits = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    bits &= (1 << allocated) - 1
    return bits - (1 << allocated) if signed and bits >> (allocated - 1) else bits


def _grey(path: Path, cells: NDArray[Any]) -> NDArray[Any]:
    differs = (cells != cells[..., :1]).any(axis=-1)
    if differs.any():
        row, column = np.argwhere(differs)[0]
        raise ImageError(
            f"{path}: a colour image; expected grey (red = green = blue). {int(differs.sum())} pixels are "
            f"coloured, the first at row {row}, column {column}: {cells[row, column].tolist()}."
        )
    return cells[..., 0]


def _stored(cells: NDArray[Any], encoding: Encoding) -> tuple[NDArray[Any], int]:
    """Return the pixels in their cells, and how many cells hold something besides.

    Bits above the highest were used for overlays; bits below the lowest are no part of the pixel either.
    """
    low = encoding.high + 1 - encoding.stored
    if encoding.stored == encoding.allocated:
        return cells, 0
    bits = (cells.astype(np.int64) >> low) & (2**encoding.stored - 1)
    if encoding.signed:
        bits -= (bits >> (encoding.stored - 1)) << encoding.stored
    return bits.astype(np.int32 if encoding.stored < 32 else np.int64), int((bits << low != cells).sum())


def _outside(cells: NDArray[Any], stored: NDArray[Any], encoding: Encoding) -> NDArray[np.bool_] | None:
    """Mark the pixels that are padding, as whole cells (padding may need more bits) or as stored."""
    if encoding.padding is None:
        return None
    first, last = encoding.padding
    marked = np.zeros(cells.shape, bool)
    for values in (cells, stored):
        marked |= (values >= first) & (values <= last)
    return marked


def _rescaled(stored: NDArray[Any], encoding: Encoding) -> NDArray[Any]:
    wide = encoding.stored > 16
    if encoding.slope == 1 and encoding.intercept.is_integer():
        return stored.astype(np.int64 if wide else np.int32) + int(encoding.intercept)
    kind: Any = np.float64 if wide else np.float32
    values: NDArray[Any] = stored.astype(kind) * kind(encoding.slope) + kind(encoding.intercept)
    return values


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    """Return whole numbers in the smallest of int16, int32 and int64 that holds them."""
    if values.dtype.kind not in "iu":
        return values
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    for kind in (np.int16, np.int32):
        if -np.iinfo(kind).max <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.int64)


def _facts(dataset: Dataset, modality: str | None, unit: Any) -> Facts:
    return Facts(
        format="dicom",
        modality=modality,
        unit=unit,
        photometric=_text(dataset, "PhotometricInterpretation"),
        bits=int(dataset.BitsStored),
        channels=int(dataset.SamplesPerPixel),
        spacing_stated=True,
        place_stated=True,
        manufacturer=_text(dataset, "Manufacturer"),
        model=_text(dataset, "ManufacturerModelName"),
        kernel=_text(dataset, "ConvolutionKernel"),
        field_strength=stated_number(dataset, "MagneticFieldStrength"),
        slice_thickness=stated_number(dataset, "SliceThickness"),
    )


def _text(dataset: Dataset, keyword: str) -> str | None:
    return short("\\".join(map(str, several_of(dataset, keyword))), 80) or None


def stated_number(dataset: Dataset, keyword: str) -> float | None:
    """Return a number that only describes: what is no positive number is not stated."""
    try:
        value = float(dataset.get(keyword) or 0)
    except (TypeError, ValueError):
        return None
    return value if 0 < value < 1e6 else None
