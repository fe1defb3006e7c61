"""Which DICOM files of a folder belong together, from a few attributes of each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.decoding import decoding

_ATTRIBUTES = (
    "SeriesInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImageOrientationPatient",
    "PixelSpacing",
)
_WITHOUT_IMAGE = (
    "AU",
    "DOC",
    "ECG",
    "KO",
    "PLAN",
    "PR",
    "REG",
    "RTPLAN",
    "RTRECORD",
    "RTSTRUCT",
    "SR",
)
"""Modality of objects that hold no image (PS3.3 C.7.3.1.1.1)."""


@dataclass
class _Group:
    """Files of one series and one kind of slice; the numbers are of the first file, none of a damaged one."""

    uid: str
    shape: tuple[int, int]
    geometry: NDArray[np.float64]
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Grouped:
    """What a folder's DICOM files are.

    Attributes:
        series: names of the files of each series, in the order of its first file. A file that belongs to
            none is one by itself. One that can't be read is, too, but where the folder has one series of
            several files: then it is taken for a part of that, which would have a gap without it.
        without_image: names of DICOM files that are no images, such as a report or a DICOMDIR.
    """

    series: tuple[tuple[str, ...], ...]
    without_image: tuple[str, ...]


def group_series(folder: Path, names: Iterable[str]) -> Grouped:
    """Sort a folder's DICOM files by series, and within one by size, orientation and pixel spacing.

    So a scout image, or a second acquisition of another size, doesn't spoil the series. Slices are put in
    order, and held against each other, when a series is read.
    """
    groups: list[_Group] = []
    by_series: dict[str, list[_Group]] = {}
    without_image = []
    for name in names:
        found = _group_of(folder / name)
        if found is None:
            without_image.append(name)
            continue
        alike = [group for group in by_series.get(found.uid, ()) if _same_kind(group, found)]
        if not alike:
            groups.append(found)
            if found.uid:
                by_series.setdefault(found.uid, []).append(found)
            alike = [found]
        alike[0].names.append(name)
    several = [group for group in groups if len(group.names) > 1]
    if len(several) == 1:
        several[0].names += [name for group in groups if not group.geometry.size for name in group.names]
        groups = [group for group in groups if group.geometry.size]
    return Grouped(tuple(tuple(group.names) for group in groups), tuple(without_image))


def unnumbered(name: str) -> str:
    """Return a name with 0 for each number in it, the same for the files of a series: IM0 for IM0007."""
    return re.sub(r"\d+", "0", name)


def _group_of(path: Path) -> _Group | None:
    """Return an empty group that a file would begin; without UID where it stands alone; None: no image."""
    try:
        with decoding(path, "a DICOM image"):
            import pydicom

            # What is damaged, or no DICOM at all, is said when it is read.
            tags = [*_ATTRIBUTES, "DirectoryRecordSequence"]
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
            if "DirectoryRecordSequence" in dataset or (
                "Rows" not in dataset and dataset.get("Modality") in _WITHOUT_IMAGE
            ):
                return None
            shape = int(dataset.Rows), int(dataset.Columns)
            geometry = np.array([*dataset.ImageOrientationPatient, *dataset.PixelSpacing], np.float64)
            uid = str(dataset.get("SeriesInstanceUID") or "")
            frames = int(dataset.get("NumberOfFrames") or 1)
    except ImageError:
        return _Group("", (0, 0), np.zeros(0))
    alone = frames > 1 or geometry.shape != (8,) or not np.isfinite(geometry).all()
    return _Group("" if alone else uid, shape, geometry)


def _same_kind(a: _Group, b: _Group) -> bool:
    return (
        a.shape == b.shape
        and np.allclose(a.geometry[:6], b.geometry[:6], atol=1e-4)
        and np.allclose(a.geometry[6:], b.geometry[6:], rtol=1e-4)
    )
