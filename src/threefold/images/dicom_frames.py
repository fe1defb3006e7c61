"""Enhanced multi-frame DICOM: many slices in one file, each with attributes of its own (PS3.3 C.7.6.16)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from threefold.errors import ImageError
from threefold.images.decoding import decoding

if TYPE_CHECKING:
    from pydicom import Dataset

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "CTImageFrameTypeSequence",
    "MRImageFrameTypeSequence",
    "PETFrameTypeSequence",
)
"""Functional groups whose attributes mean of a frame what those of the same name mean of a slice."""
_MAPPING = "RealWorldValueMappingSequence"
_PIXEL_GROUP = 0x7FE0


def frames_of(path: Path, dataset: Dataset) -> list[Dataset]:
    """Return the attributes of each frame as a file of that slice alone would have them, without pixels.

    Args:
        path: of the file, for errors.
        dataset: of an enhanced file; without its pixels is enough.

    Raises:
        ImageError: there are not as many groups as frames.
    """
    with decoding(path, "an enhanced DICOM image"):
        frames = int(dataset.get("NumberOfFrames") or 1)
        groups = dataset[_PER_FRAME].value
        if len(groups) != frames:
            raise ImageError(
                f"{path}: {frames} frames, but functional groups of {len(groups)}; expected as many. Copy it "
                "again, or ask for the original export."
            )
        common = _common(dataset)
        return [_frame(dataset, common, number) for number in range(frames)]


def frame_of(path: Path, dataset: Dataset, number: int) -> Dataset:
    """Return the attributes of one frame, counted from 0, as `frames_of` does."""
    with decoding(path, "an enhanced DICOM image"):
        return _frame(dataset, _common(dataset), number)


def _common(dataset: Dataset) -> Dataset:
    """Return what is true of all frames, outside of the functional groups."""
    import pydicom

    common = pydicom.Dataset()
    for element in dataset:
        if element.tag.group != _PIXEL_GROUP and element.keyword not in (
            _SHARED,
            _PER_FRAME,
            "NumberOfFrames",
        ):
            common.add(element)
    return common


def _frame(dataset: Dataset, common: Dataset, number: int) -> Dataset:
    import pydicom

    frame = pydicom.Dataset()
    frame.update(common)
    for group in (*(dataset.get(_SHARED) or []), dataset[_PER_FRAME].value[number]):
        for keyword in _GROUPS:
            for item in group.get(keyword) or []:
                frame.update(item)
        if group.get(_MAPPING):
            frame.add(group[_MAPPING])
    return frame
