"""One DICOM file: where its pixels lie, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.decoding import decoding
from threefold.images.facts import Facts
from threefold.images.geometry import Affine

if TYPE_CHECKING:
    from pydicom import Dataset

AIR = -1024
"""HU of voxels outside the field of view."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class SliceGrid:
    """Where the pixels of one file lie, in DICOM's LPS+ millimetres.

    Attributes:
        shape: rows, columns.
        position: (3,) centre of the first pixel.
        down, right: (3,) unit vectors along growing row and column index.
        normal: (3,) right x down, the direction in which slices are sorted.
        spacing: mm between rows, and between columns.
        thickness: mm; 1 where the file does not say.
    """

    shape: tuple[int, int]
    position: NDArray[np.float64]
    down: NDArray[np.float64]
    right: NDArray[np.float64]
    normal: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float

    @property
    def distance(self) -> float:
        """Place along the normal, mm."""
        return float(self.position @ self.normal)

    @property
    def affine(self) -> Affine:
        """Affine of the slice alone: (row, column, slice) indices to RAS+ mm."""
        affine = np.eye(4)
        columns = (self.down * self.spacing[0], self.right * self.spacing[1], self.normal * self.thickness)
        affine[:3, :3] = LPS_TO_RAS @ np.column_stack(columns)
        affine[:3, 3] = LPS_TO_RAS @ self.position
        return affine


def slice_grid(path: Path, dataset: Dataset) -> SliceGrid:
    """Return where the pixels of a file lie.

    Raises:
        ImageError: if the file does not say, or what it says is not a grid.
    """
    with decoding(path, "a DICOM image"):
        missing = [
            name
            for name in ("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
            if dataset.get(name) in (None, "", [])
        ]
        if missing:
            raise ImageError(
                f"{path}: the DICOM file lacks {', '.join(missing)}; expected an image that says where it "
                "lies. Copy it again if it was cut off; convert an enhanced (multi-frame) file to NIfTI."
            )
        shape = (int(dataset.Rows), int(dataset.Columns))
        position = np.array(dataset.ImagePositionPatient, float)
        orientation = np.array(dataset.ImageOrientationPatient, float)
        spacing = np.array(dataset.PixelSpacing, float)
        thickness = float(dataset.get("SliceThickness") or 1.0)
    if position.shape != (3,) or orientation.shape != (6,) or spacing.shape != (2,):
        raise ImageError(f"{path}: position, orientation or pixel spacing have a wrong number of values.")
    right, down = orientation[:3], orientation[3:]
    numbers = np.concatenate([position, orientation, spacing, [thickness]])
    if not (
        np.isfinite(numbers).all()
        and np.abs(numbers).max() < 1e6
        and (spacing > 1e-6).all()
        and thickness > 1e-6
        and min(shape) > 0
        and np.allclose([right @ right, down @ down, right @ down], [1, 1, 0], atol=1e-3)
    ):
        raise ImageError(
            f"{path}: not a usable grid: {shape[0]} x {shape[1]} pixels, position {position.tolist()}, "
            f"orientation {orientation.tolist()}, spacing {spacing.tolist()}, thickness {thickness}."
        )
    normal = np.cross(right, down)
    return SliceGrid(
        shape, position, down, right, normal / np.linalg.norm(normal), (spacing[0], spacing[1]), thickness
    )


def pixels(path: Path, dataset: Dataset) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Return the pixels of a file, rescaled (HU for CT), (rows, columns), and notes on them.

    CT pixels outside the field of view (PixelPaddingValue) become air.
    """
    with decoding(path, "a DICOM image") as notes:
        frames, colours = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel", 1))
        if (frames, colours) != (1, 1):
            raise ImageError(
                f"{path}: {frames} frames of {colours} colours; expected one grey slice a file. "
                "Convert multi-frame files to NIfTI."
            )
        stored: NDArray[Any] = dataset.pixel_array
        slope = float(dataset.get("RescaleSlope", 1) or 1)
        intercept = float(dataset.get("RescaleIntercept", 0) or 0)
        padding = _padding(dataset) if dataset.get("Modality") == "CT" else None
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise ImageError(f"{path}: {stored.shape} pixels; expected {dataset.Rows} x {dataset.Columns}.")
    if slope == 1 and intercept.is_integer() and stored.dtype.kind in "iu":
        values: NDArray[Any] = stored.astype(np.int32) + int(intercept)
    else:
        values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if padding is not None:
        outside = (stored >= padding[0]) & (stored <= padding[1])
        if outside.any():
            values[outside] = AIR
            notes.append(f"{int(outside.sum())} pixels outside the field of view set to {AIR} HU")
    if values.dtype == np.int32 and np.abs(values).max(initial=0) < 2**15:
        values = values.astype(np.int16)
    return values, tuple(notes)


def dicom_facts(path: Path, dataset: Dataset) -> Facts:
    """Return what a file's attributes state of its voxels."""

    def text(keyword: str) -> str | None:
        return str(dataset.get(keyword) or "").strip() or None

    def number(keyword: str) -> float | None:
        return float(dataset.get(keyword) or 0) or None

    with decoding(path, "a DICOM image"):
        modality = (text("Modality") or "").upper() or None
        rescaled = None not in (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept"))
        hounsfield = modality == "CT" and rescaled and text("RescaleType") in (None, "HU")
        return Facts(
            format="dicom",
            modality=modality,
            unit="HU" if hounsfield else None,
            photometric=text("PhotometricInterpretation"),
            bits=int(dataset.get("BitsStored") or 0) or None,
            channels=int(dataset.get("SamplesPerPixel") or 1),
            spacing_stated=True,
            place_stated=True,
            manufacturer=text("Manufacturer"),
            model=text("ManufacturerModelName"),
            kernel=text("ConvolutionKernel"),
            field_strength=number("MagneticFieldStrength"),
            slice_thickness=number("SliceThickness"),
        )


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """Return the range of stored values that mean "no pixel" (DICOM PS3.3 C.7.5.1.1.2)."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit", first)
    return min(int(first), int(last)), max(int(first), int(last))


def parsed(path: Path, *, pixels: bool) -> tuple[Dataset, tuple[str, ...]]:
    """Return a file's attributes, with or without its pixels, and what the decoder warned of.

    Raises:
        ImageError: if it is damaged, no DICOM, or lacks the pixels that were asked for.
    """
    with decoding(path, "a DICOM image") as notes:
        import pydicom

        dataset = pydicom.dcmread(path, stop_before_pixels=not pixels)
        if pixels and "PixelData" not in dataset:
            raise ImageError(f"{path}: the DICOM file holds no pixels (truncated, or not an image).")
    return dataset, tuple(notes)
