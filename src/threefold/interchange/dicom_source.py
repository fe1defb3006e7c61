"""The DICOM instances that an image was made of, for objects that refer to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.dicom import Slice
from threefold.images.dicom_slice import parsed
from threefold.images.geometry import Image

if TYPE_CHECKING:
    from pydicom import Dataset

_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class DicomSource:
    """What an image was made of.

    Attributes:
        slices: as scanned, in the order of their frames where they are of one file, else of their places.
        datasets: one a file, without pixels: one a slice, or of an enhanced file the one.
        path: of the folder or file, for errors.
    """

    slices: tuple[Slice, ...]
    datasets: tuple[Dataset, ...]
    path: Path

    @property
    def multiframe(self) -> bool:
        """Whether the slices are the frames of one file."""
        return self.slices[0].frame is not None

    def labels(self, labels: NDArray[np.uint8], image: Image) -> NDArray[np.uint8]:
        """Bring labels from an image's grid onto the slices as scanned, (slices, rows, columns).

        A resampled image has another grid than its slices: a pixel gets the label of the voxel that its
        centre lies in, and none where it lies in no voxel.
        """
        volume = labels if labels.ndim == 3 else labels[..., None]
        found = [_on_slice(volume, np.linalg.inv(image.affine) @ one.grid.affine, one) for one in self.slices]
        return np.stack(found)

    def thicknesses(self) -> NDArray[np.float64]:
        """Return the mm along the normal that each slice stands for: half the way to each neighbour.

        The first and the last go as far out as in; a slice alone is as thick as it states.
        """
        along = np.array([one.grid.position @ self.slices[0].grid.normal for one in self.slices])
        if len(along) == 1:
            return np.array([self.slices[0].grid.thickness])
        order = np.argsort(along)
        steps = np.diff(along[order])
        found = np.empty_like(along)
        found[order] = (np.concatenate([steps[:1], steps]) + np.concatenate([steps, steps[-1:]])) / 2
        return found


def source_of(image: Image) -> DicomSource:
    """Return what an image was made of; of a case of several channels what its first channel was.

    Raises:
        ImageError: it is no DICOM; a file lacks what a reference needs, or changed since it was read; the
            slices are frames of several files.
    """
    where = image.source
    if not image.slices:
        raise ImageError(f"{where}: is no DICOM, so no DICOM object can refer to it.")
    paths = list(dict.fromkeys(one.path for one in image.slices))
    frames = image.slices[0].frame is not None
    if frames and len(paths) > 1:
        raise ImageError(
            f"{where}: its slices are frames of {len(paths)} files; a segmentation refers to the frames of "
            "one. Predict each file by itself."
        )
    slices = image.slices
    if frames:
        slices = tuple(sorted(slices, key=lambda one: one.frame or 0))
    datasets = tuple(_dataset(path) for path in paths)
    studies = {str(one.StudyInstanceUID) for one in datasets}
    if len(studies) > 1 or len({str(one.FrameOfReferenceUID) for one in datasets}) > 1:
        raise ImageError(
            f"{where}: its files are of {len(studies)} studies or of several frames of reference; expected "
            "one of each. Ask for the original export."
        )
    return DicomSource(slices, datasets, where)


def _dataset(path: Path) -> Dataset:
    dataset, _ = parsed(path, pixels=False)
    missing = [name for name in _REQUIRED if not dataset.get(name)]
    if missing:
        raise ImageError(
            f"{path}: the DICOM file lacks {', '.join(missing)}, without which no object can refer to it. "
            "Ask for the original export."
        )
    how = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
    if dataset.get("PatientIdentityRemoved") == "YES" and not any(dataset.get(name) for name in how):
        dataset.DeidentificationMethod = "not stated"  # which the standard asks for where it was removed
    for name in _MAY_BE_EMPTY:
        if name not in dataset:
            setattr(dataset, name, "")
    return dataset


def _on_slice(volume: NDArray[np.uint8], to_index: NDArray[np.float64], one: Slice) -> NDArray[np.uint8]:
    """Return the labels of one slice, (rows, columns).

    Args:
        volume: (I, J, K) labels.
        to_index: (4, 4) from the slice's (row, column, 0, 1) to indices of the volume.
        one: the slice.
    """
    rows, columns = one.grid.shape
    slice_number = round(to_index[2, 3])
    if volume.shape[:2] == one.grid.shape and np.allclose(
        to_index[:3, [0, 1, 3]], [[1, 0, 0], [0, 1, 0], [0, 0, slice_number]], atol=0.01
    ):
        return volume[..., slice_number]  # the usual case: a slice of the image as it is
    row, column = np.arange(rows)[:, None], np.arange(columns)[None]
    inside = np.ones((rows, columns), bool)
    index: list[NDArray[Any]] = []
    for axis, size in enumerate(volume.shape):
        at = to_index[axis, 0] * row + to_index[axis, 1] * column + to_index[axis, 3]
        nearest = np.rint(at).astype(np.int64)
        inside &= (nearest >= 0) & (nearest < size)
        index.append(np.clip(nearest, 0, size - 1))
    found: NDArray[np.uint8] = volume[tuple(index)] * inside
    return found
