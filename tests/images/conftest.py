"""Makers of image files, by libraries other than the project's own readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def write_dicom(path: Path, pixels: np.ndarray, position: Sequence[float], **changes: Any) -> Path:
    """Write one CT slice; `changes` set attributes, None removes them."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "SeriesInstanceUID": "1.2.3",
        "SeriesDescription": "HEAD 5.0",
        "ImagePositionPatient": [float(p) for p in position],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.4],
        "SliceThickness": 5,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": pixels.astype("<i2").tobytes(),
    } | changes
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    pydicom.dcmwrite(path, dataset)
    return path


@pytest.fixture(scope="session")
def dicom_file() -> Callable[..., Path]:
    return write_dicom


@pytest.fixture(scope="session")
def dicom_series() -> Callable[..., np.ndarray]:
    """Write a series of slices at given places (x, y, z in LPS mm); returns the stored values."""

    def write(
        folder: Path, positions: Sequence[Sequence[float]], seed: int = 0, **changes: Any
    ) -> np.ndarray:
        folder.mkdir(exist_ok=True)
        stored = np.random.default_rng(seed).integers(0, 2000, (6, 8, len(positions)))
        names = np.random.default_rng(seed + 1).permutation(len(positions))  # file order is not slice order
        for k, position in enumerate(positions):
            write_dicom(folder / f"{names[k]:03d}.dcm", stored[..., k], position, **changes)
        return stored

    return write
