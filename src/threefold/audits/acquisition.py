"""What a file and its voxels reveal of how an image was acquired, beside what it shows of the patient.

Each measurement is one number or one word per case, by a dotted name: `file.` (name, format), `header.` (what
the scanner or program wrote), `grid.` (size, spacing, field of view), `values.` (range and resolution of the
grey values), `look.` (brightness, contrast, noise, sharpness) and `border.` (brightness and marks there). The
disease itself can change `values.` and `look.`, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import Case
from threefold.errors import ImageError
from threefold.images.decoding import decoding
from threefold.images.dicom_slice import stated
from threefold.images.geometry import Image
from threefold.images.pictures import open_picture

Measured = dict[str, float | str]

FROM_DISEASE = ("values.", "look.")
"""Measurements that the disease itself can change."""
_SIDE = 256
"""Voxels a side that are looked at, evenly spaced."""
_BORDER = 16
"""The border is this part of a side."""
_BACKGROUND = 0.05
"""Of the way from the 1st to the 99th percentile: below it is background."""
_BRIGHT = 0.9
"""Of the way from the 1st percentile to the maximum: above it a voxel at the border counts as a mark."""
_DICOM = (
    "InstitutionName", "StationName", "Manufacturer", "ManufacturerModelName", "SoftwareVersions",
    "ProtocolName", "SeriesDescription", "ConvolutionKernel", "PatientPosition", "PhotometricInterpretation",
    "BodyPartExamined", "ScanOptions", "FilterType", "ImageType", "StudyDate", "KVP", "XRayTubeCurrent",
    "ExposureTime", "SliceThickness", "SpacingBetweenSlices", "GantryDetectorTilt", "ReconstructionDiameter",
    "MagneticFieldStrength", "EchoTime", "RepetitionTime", "FlipAngle", "BitsStored", "RescaleIntercept",
    "SamplesPerPixel",
)  # fmt: skip
_LONGEST = 80
_TINT_SIDE = 64


def measure_acquisition(case: Case, image: Image) -> Measured:
    """Return what a case's file and voxels tell of its acquisition.

    Args:
        case: its files.
        image: (I, J) or (I, J, K), as read.
    """
    spacing = image.spacing if image.facts.spacing_stated else ()
    return {
        **measure_file(case),
        **dict(_grid(image.array.shape, spacing)),
        **dict(_values(image.array)),
        **dict(_look(image.array)),
    }


def measure_file(case: Case) -> Measured:
    """Return what a file's name and header tell; of a folder, its first file's header."""
    path = case.image
    numbers = re.findall(r"\d+", path.name)
    found: Measured = {
        "file.format": "".join(path.suffixes[-2:]).lower() if not path.is_dir() else "folder",
        "file.name length": float(len(path.name)),
        "file.name pattern": re.sub(r"\d+", "#", path.name)[:_LONGEST],
        "file.folder": path.parent.name[:_LONGEST],
    }
    if numbers:
        found["file.number in name"] = float(numbers[-1][-15:])
    with suppress(ImageError, OSError):  # a file that can't be read is a finding of its own
        first = min(path.iterdir(), default=path) if path.is_dir() else path
        with first.open("rb") as stream:
            head = stream.read(132)
        found |= {f"header.{name}": value for name, value in _header(first, head)}
    return found


def _header(path: Path, head: bytes) -> Iterator[tuple[str, float | str]]:
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        yield from _picture_header(path)
    elif head[128:132] == b"DICM":
        yield from _dicom_header(path)


def _picture_header(path: Path) -> Iterator[tuple[str, float | str]]:
    open_picture(path)  # refuses what is damaged or larger than memory
    with decoding(path, "a PNG or JPEG"):
        import PIL.Image

        with PIL.Image.open(path, formats=("PNG", "JPEG")) as picture:
            yield "colour mode", picture.mode
            if picture.mode in ("RGB", "RGBA"):
                small = np.asarray(picture.convert("RGB").resize((_TINT_SIDE, _TINT_SIDE)), np.int16)
                yield "tint", float((small.max(axis=2) - small.min(axis=2)).mean())
            for name in ("dpi", "gamma", "Software", "progressive", "interlace"):
                if name in picture.info:
                    yield name, str(picture.info[name])[:_LONGEST]
            tables = getattr(picture, "quantization", None)
            if tables:  # of a JPEG: what its quality sets
                yield "quantisation", float(np.mean(tables[min(tables)]))


def _dicom_header(path: Path) -> Iterator[tuple[str, float | str]]:
    for name, value in stated(path, _DICOM).items():
        try:
            yield name, float(value)
        except ValueError:
            yield name, value[:_LONGEST]


def _grid(shape: tuple[int, ...], spacing: Any) -> Iterator[tuple[str, float]]:
    for axis, (name, size) in enumerate(zip(("rows", "columns", "slices"), shape, strict=False)):
        yield f"grid.{name}", float(size)
        if len(spacing):
            yield f"grid.spacing of {name} (mm)", float(spacing[axis])
            yield f"grid.field of view along {name} (mm)", float(spacing[axis] * size)
    yield "grid.aspect", float(shape[0] / shape[1])


def _values(array: NDArray[Any]) -> Iterator[tuple[str, float | str]]:
    some = array.ravel(order="K")[:: array.size // 65536 | 1]
    low, high = float(array.min()), float(array.max())
    yield "values.type", str(array.dtype)
    yield "values.minimum", low
    yield "values.maximum", high
    yield "values.distinct", float(len(np.unique(some)))
    yield "values.share at minimum", float((some == low).mean())
    yield "values.share at maximum", float((some == high).mean())


def _look(array: NDArray[Any]) -> Iterator[tuple[str, float]]:
    plane = array if array.ndim == 2 else array[:, :, array.shape[2] // 2]
    if min(plane.shape) < 8:
        return
    thin = plane[tuple(slice(None, None, max(1, side // _SIDE)) for side in plane.shape)].astype(np.float32)
    low, high = (float(value) for value in np.percentile(thin, (1, 99)))
    if high <= low:
        return
    background = low + _BACKGROUND * (high - low)
    inside = thin[thin > background]
    yield "look.brightness", float(inside.mean())
    yield "look.contrast", float(inside.std())
    yield "look.share of object", float(inside.size / thin.size)
    yield from _fineness(plane, background)
    depth = [max(1, side // _BORDER) for side in thin.shape]
    border = np.ones(thin.shape, bool)
    border[depth[0] : -depth[0], depth[1] : -depth[1]] = False
    edge = thin[border]
    yield "border.brightness", float(edge.mean())
    yield "border.marks", float((edge > low + _BRIGHT * (float(thin.max()) - low)).mean())


def _fineness(plane: NDArray[Any], background: float) -> Iterator[tuple[str, float]]:
    """Yield noise and sharpness of the middle of a plane, at its own resolution."""
    starts = [max(0, (side - _SIDE) // 2) for side in plane.shape]
    middle = plane[tuple(slice(start, start + _SIDE) for start in starts)].astype(np.float32)
    # Immerkaer 1996 (Computer Vision and Image Understanding 64): the second difference along both axes
    # hardly answers to an image's structure; the median makes edges count less.
    high_pass = np.diff(np.diff(middle, 2, axis=0), 2, axis=1)[middle[1:-1, 1:-1] > background]
    if high_pass.size:
        yield "look.noise", float(np.median(np.abs(high_pass)) / 0.6745 / 6)
    fine = sum(float(np.abs(np.diff(middle, axis=axis)).mean()) for axis in (0, 1))
    coarse = float(np.abs(middle[2:] - middle[:-2]).mean() + np.abs(middle[:, 2:] - middle[:, :-2]).mean())
    if coarse > 0:
        yield "look.sharpness", fine / coarse
