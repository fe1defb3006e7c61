"""Which DICOM files of a folder belong together, from a few attributes of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.decoding import decoding
from threefold.images.dicom_kinds import no_slice, object_name

_ATTRIBUTES = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImageOrientationPatient",
    "PixelSpacing",
    "DirectoryRecordSequence",
)
WITHOUT_IMAGE = (
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
class SeriesFiles:
    """Files of one series and one kind of slice; the numbers are of the first file, none of a damaged one.

    Attributes:
        uid: SeriesInstanceUID; empty of a file that is one by itself.
        shape: rows, columns.
        geometry: (8,) orientation and pixel spacing.
        names: of the files.
        instances: their SOPInstanceUIDs.
    """

    uid: str
    shape: tuple[int, int]
    geometry: NDArray[np.float64]
    names: list[str] = field(default_factory=list)
    instances: set[str] = field(default_factory=set)

    def same_kind(self, other: SeriesFiles) -> bool:
        """Whether the slices of both have one size, orientation and pixel spacing."""
        return (
            self.shape == other.shape
            and np.allclose(self.geometry[:6], other.geometry[:6], atol=1e-4)
            and np.allclose(self.geometry[6:], other.geometry[6:], rtol=1e-4)
        )

    def continues(self, other: SeriesFiles) -> bool:
        """Whether files that lie elsewhere are the rest of this series, and no copy of it."""
        alike = bool(self.uid) and self.uid == other.uid and self.same_kind(other)
        return alike and not self.instances & other.instances


@dataclass(frozen=True)
class Grouped:
    """What a folder's DICOM files are.

    Attributes:
        series: in the order of their first files. A file that belongs to none is one by itself. One that
            can't be read is, too, but where the folder has one series of several files: then it is taken for
            a part of that, which would have a gap without it.
        without_image: what each file is that is no image of slices (a report, a DICOMDIR, a scout), by name.
    """

    series: tuple[SeriesFiles, ...]
    without_image: Mapping[str, str]


def group_series(folder: Path, names: Iterable[str]) -> Grouped:
    """Sort a folder's DICOM files by series, and within one by size, orientation and pixel spacing.

    So a second acquisition of another size doesn't spoil the series. Slices are put in order, and held
    against each other, when a series is read.
    """
    groups: list[SeriesFiles] = []
    by_series: dict[str, list[SeriesFiles]] = {}
    without_image: dict[str, str] = {}
    for name in names:
        found = _group_of(folder / name)
        if isinstance(found, str):
            without_image[name] = found
            continue
        alike = [group for group in by_series.get(found.uid, ()) if group.same_kind(found)]
        if not alike:
            groups.append(found)
            if found.uid:
                by_series.setdefault(found.uid, []).append(found)
            alike = [found]
        alike[0].names.append(name)
        alike[0].instances |= found.instances
    several = [group for group in groups if len(group.names) > 1]
    if len(several) == 1:
        several[0].names += [name for group in groups if not group.geometry.size for name in group.names]
        groups = [group for group in groups if group.geometry.size]
    return Grouped(tuple(groups), without_image)


def unnumbered(name: str) -> str:
    """Return a name with 0 for each number in it, the same for the files of a series: IM0 for IM0007."""
    return re.sub(r"\d+", "0", name)


def _group_of(path: Path) -> SeriesFiles | str:
    """Return the group that a file would begin, without its name; of no image, what it is."""
    try:
        with decoding(path, "a DICOM image"):
            import pydicom

            # What is damaged, or no DICOM at all, is said when it is read.
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_ATTRIBUTES], force=True)
            if "DirectoryRecordSequence" in dataset:
                return "a DICOMDIR"
            if "Rows" not in dataset and dataset.get("Modality") in WITHOUT_IMAGE:
                return object_name(dataset)
            other = no_slice(dataset)
            if other is not None:
                return other
            shape = int(dataset.Rows), int(dataset.Columns)
            geometry = np.array([*dataset.ImageOrientationPatient, *dataset.PixelSpacing], np.float64)
            uid = str(dataset.get("SeriesInstanceUID") or "")
            frames = int(dataset.get("NumberOfFrames") or 1)
            instance = str(dataset.get("SOPInstanceUID") or path)
    except ImageError:
        return SeriesFiles("", (0, 0), np.zeros(0))
    alone = frames > 1 or geometry.shape != (8,) or not np.isfinite(geometry).all()
    return SeriesFiles("" if alone else uid, shape, geometry, instances={instance})
