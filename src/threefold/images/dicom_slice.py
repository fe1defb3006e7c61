"""One DICOM file: its attributes, and where its pixels lie."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.decoding import decoding, short
from threefold.images.formats import first_bytes, gzipped_error, has_preamble, is_dicom
from threefold.images.geometry import Affine
from threefold.images.memory import refuse_beyond_memory

if TYPE_CHECKING:
    from pydicom import Dataset

_PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_META_START = 132
_MOST_INFLATED = 2**28

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
            detector = ""
            if "PixelSpacing" in missing and dataset.get("ImagerPixelSpacing"):
                detector = " Its ImagerPixelSpacing is measured at the detector, not in the patient."
            raise ImageError(
                f"{path}: the DICOM file lacks {', '.join(missing)}; expected an image that says where it "
                f"lies.{detector} Copy it again if it was cut off, or export it with its place."
            )
        shape = (int(dataset.Rows), int(dataset.Columns))
        position = np.array(dataset.ImagePositionPatient, float)
        orientation = np.array(dataset.ImageOrientationPatient, float)
        spacing = np.array(dataset.PixelSpacing, float)
        thickness = float(dataset.get("SliceThickness") or 1.0)
        aspect = np.array(dataset.get("PixelAspectRatio") or spacing, float)
    if position.shape != (3,) or orientation.shape != (6,) or spacing.shape != (2,):
        raise ImageError(f"{path}: position, orientation or pixel spacing have a wrong number of values.")
    if aspect.shape != (2,) or not np.isclose(aspect[0] * spacing[1], aspect[1] * spacing[0], rtol=0.01):
        raise ImageError(
            f"{path}: PixelAspectRatio and PixelSpacing contradict each other: {short(aspect, 40)} and "
            f"{spacing.tolist()}. Ask for the original export."
        )
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


def stated(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the attributes of a DICOM file that are there and not empty, by keyword, as text.

    Raises:
        ImageError: if it is damaged or no DICOM.
    """
    dataset, _ = parsed(path, pixels=False)
    values = {name: dataset.get(name) for name in names}
    found = {name: str(value).strip() for name, value in values.items() if value is not None}
    return {name: text for name, text in found.items() if text}


def parsed(path: Path, *, pixels: bool) -> tuple[Dataset, tuple[str, ...]]:
    """Return a file's attributes, with or without its pixels, and what the decoder warned of.

    Raises:
        ImageError: if it is damaged, no DICOM, or lacks the pixels that were asked for.
    """
    with decoding(path, "a DICOM image") as notes:
        import pydicom
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

        head, gzipped = first_bytes(path)
        if gzipped and is_dicom(head):
            raise gzipped_error(path, "dicom")
        bare = is_dicom(head) and not has_preamble(head)
        refuse_beyond_memory(path, "a DICOM file", path.stat().st_size if pixels else 0)
        if not bare:
            _refuse_deflate_bomb(path)
        dataset = pydicom.dcmread(path, stop_before_pixels=not pixels, force=bare)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            little_endian = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = little_endian if little else ExplicitVRBigEndian
            notes.append("a DICOM file without its file meta information: how it is encoded was found out")
        if pixels and "Rows" in dataset and not any(name in dataset for name in _PIXEL_DATA):
            raise ImageError(f"{path}: the DICOM file holds no pixels (truncated, or not an image).")
    return dataset, tuple(notes)


def _refuse_deflate_bomb(path: Path) -> None:
    """Refuse a deflated file that grows past the limit; pydicom would unpack it whole, however large."""
    from pydicom.filereader import read_dataset

    with path.open("rb") as stream:
        stream.seek(_META_START)
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") != _DEFLATED:
            return
        unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not unpacker.eof and size <= _MOST_INFLATED:
            packed = unpacker.unconsumed_tail or stream.read(2**16)
            unpacked = len(unpacker.decompress(packed, 2**20))
            if not packed and not unpacked:
                break  # cut off; the decoder says so
            size += unpacked
    if size > _MOST_INFLATED:
        raise ImageError(
            f"{path}: a deflated DICOM file that grows past {_MOST_INFLATED // 2**20} MiB; expected one "
            "slice. Is it damaged? Else rewrite it without deflation."
        )
