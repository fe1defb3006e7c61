"""Masks and structures as files, held against their image and against cohort.yaml. Needs no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import CohortSpec
from threefold.core.targets import LabelsTarget, MaskTarget
from threefold.errors import ImageError
from threefold.images.formats import format_of, states_place
from threefold.images.geometry import Header, Image, describe_difference
from threefold.images.reading import read_header, read_label_map


def read_label_map_of(
    name: str, path: Path, slice_index: int | None, image: Image, spec: CohortSpec
) -> Image:
    """Read a case's label map of a target: `read_mask` or `read_structures`."""
    read = read_structures if isinstance(spec.all_targets.get(name), LabelsTarget) else read_mask
    return read(path, slice_index, image, spec, name)


def read_mask(
    path: Path, slice_index: int | None, image: Image, spec: CohortSpec, name: str = "mask"
) -> Image:
    """Read a case's mask, on the image's grid; its array is uint8, 1 inside.

    Args:
        path: the file.
        slice_index: of the case.
        image: the case's.
        spec: says which values are inside and outside.
        name: of the target.

    Raises:
        ImageError: another grid than the image's, a value that is neither inside nor outside, or no such
            mask in cohort.yaml.
    """
    target = spec.all_targets.get(name)
    if not isinstance(target, MaskTarget):
        raise ImageError(
            f"{path}: a label map is given, but cohort.yaml has no `{name}`. Add its name and values."
        )
    labels = _read_on_grid(path, slice_index, image, spec)
    inside, outside = (np.isin(labels.array, values) for values in (target.values, target.outside))
    expected = f"{_listed(target.outside)} and {list(target.values)}"
    _refuse_values(path, labels.array, ~inside & ~outside, expected)
    return replace(labels, array=inside.astype(np.uint8))


def read_structures(
    path: Path, slice_index: int | None, image: Image, spec: CohortSpec, name: str = "structures"
) -> Image:
    """Read a case's label map of structures, on the image's grid; its array is uint8.

    Args:
        path: the file.
        slice_index: of the case.
        image: the case's.
        spec: says how many structures there are.
        name: of the target.

    Raises:
        ImageError: another grid than the image's, or a value above the number of structures.
    """
    labels = _read_on_grid(path, slice_index, image, spec)
    array: NDArray[Any] = labels.array
    target = spec.all_targets.get(name)
    count = len(target.names) if isinstance(target, LabelsTarget) else 0
    _refuse_values(path, array, (array < 0) | (array > count), f"0 to {count} ({name} of cohort.yaml)")
    return replace(labels, array=array.astype(np.uint8))


def _listed(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(values) == 1 else str(list(values))


def _read_on_grid(path: Path, slice_index: int | None, image: Image, spec: CohortSpec) -> Image:
    """Read a label map, or the slice of it that the image is, and hold its grid against the image's."""
    if slice_index is not None and len(read_header(path).shape) < 3:
        slice_index = None  # the image is a slice of a volume, its target a slice by itself
    labels = read_label_map(path, slice_index=slice_index, spacing=spec.spacing)
    grids = (Header(one.array.shape, one.affine) for one in (image, labels))
    difference = target_difference(image.source, path, *grids)
    if difference is not None:
        raise ImageError(
            f"{path}: not on the grid of its image {image.source}: {difference}. "
            "Resample the label map onto the image (nearest neighbour), or correct the table."
        )
    return labels


def target_difference(image: Path, target: Path, image_grid: Header, target_grid: Header) -> str | None:
    """Say how a target's grid differs from its image's; None where they agree.

    PNG and JPEG do not say where they lie. As a target of a picture or of a DICOM slice, which are stored
    in rows and columns as they are, their shape alone is compared; a NIfTI image is not, and needs a NIfTI.

    Args:
        image, target: the files.
        image_grid, target_grid: shape and affine of each; of a slice, those of the slice.

    Raises:
        ImageError: if a file is missing or of no known format.
    """
    affine = target_grid.affine
    if not states_place(target) and states_place(image):
        if format_of(image) == "nifti":
            return "a picture does not say where it lies, and a NIfTI image is not stored as rows and columns"
        affine = image_grid.affine
    return describe_difference(image_grid.shape, image_grid.affine, target_grid.shape, affine)


def _refuse_values(path: Path, array: NDArray[Any], wrong: NDArray[np.bool_], expected: str) -> None:
    if not wrong.any():
        return
    values, counts = np.unique(array[wrong], return_counts=True)
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    found = ", ".join(f"{v} ({c} voxels)" for v, c in list(zip(values, counts, strict=True))[:6])
    more = f" and {len(values) - 6} more values" if len(values) > 6 else ""
    lossy = " JPEG changes label values: use PNG." if path.suffix.lower() in (".jpg", ".jpeg") else ""
    raise ImageError(
        f"{path}: expected the values {expected}, found {found}{more}, the first at {where}. "
        f"Correct the file, or cohort.yaml.{lossy}"
    )
