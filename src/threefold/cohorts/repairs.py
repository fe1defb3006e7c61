"""Repairs of files on import, of their format and only where asked: colour, and grids of label maps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import CohortSpec
from threefold.cohorts.staging import Staging
from threefold.cohorts.targets import target_difference
from threefold.errors import ImageError
from threefold.images.formats import format_of
from threefold.images.geometry import Header, Image
from threefold.images.pictures import open_picture
from threefold.images.reading import read_header, read_image, read_label_map
from threefold.images.writing import label_map_suffix, write_nifti, write_png

_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Repairs:
    """What an import may change of files.

    Attributes:
        grey: make grey pictures of coloured ones, by luminance (ITU-R BT.601).
        resample_masks: bring label maps on another grid onto their image's, by nearest neighbour.
    """

    grey: bool = False
    resample_masks: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything to repair."""
        return self.grey or self.resample_masks


NO_REPAIRS = Repairs()


def repair_case(
    stage: Staging,
    row: dict[str, Any],
    folder: Path,
    columns: Sequence[str],
    spec: CohortSpec,
    repairs: Repairs,
) -> list[str]:
    """Write what has to be repaired of a case into the cohort in the making, and name it in the row.

    Args:
        stage: the cohort.
        row: of the table; the repaired files' cells become absolute paths into the cohort.
        folder: that the row's paths are relative to.
        columns: those that hold label maps.
        spec: of the cohort.
        repairs: what is asked for.

    Returns:
        What was done, in words.

    Raises:
        ImageError: a file can't be read or written.
    """
    done = []
    source = folder / row["image"]
    if repairs.grey:
        found = grey_of(source)
        if found is not None:
            row["image"] = stage.new_file("image", row["case_id"], ".png")
            write_png(stage.folder / row["image"], found[0])
            done.append(f"image {found[1]}")
    if not repairs.resample_masks:
        return done
    grey = stage.folder / row["image"] if done else source
    index = int(row["slice"]) if row.get("slice") else None
    for column in columns:
        if row.get(column):
            image = read_image(grey, slice_index=index, spacing=spec.spacing)
            resampled = resampled_label_map(folder / row[column], image, index, spec)
            if resampled is not None:
                row[column] = stage.new_file(column, row["case_id"], label_map_suffix(image))
                _write(stage.folder / row[column], resampled[0], image)
                done.append(f"{column} {resampled[1]}")
    return done


def _write(path: Path, array: NDArray[Any], image: Image) -> None:
    if path.suffix == ".png":
        write_png(path, array.astype(np.uint8))
    else:
        write_nifti(path, array, image.affine, place=image.stored_place)


def grey_of(path: Path) -> tuple[NDArray[np.uint8], str] | None:
    """Return a coloured picture's luminance, (rows, columns), and what was done; None of any other file.

    Raises:
        ImageError: as `open_picture`; transparent pixels.
    """
    if format_of(path) != "picture":
        return None
    picture = open_picture(path)
    if picture.mode not in ("RGB", "RGBA", "P"):
        return None
    import PIL.Image

    with PIL.Image.open(io.BytesIO(picture.data), formats=("PNG", "JPEG")) as opened:
        pixels = np.asarray(opened.convert("RGBA"), np.int16)
    if (pixels[..., 3] != 255).any():
        raise ImageError(f"{path}: has transparent pixels; expected an opaque picture. Save it without.")
    colours = pixels[..., :3]
    spread = colours.max(axis=2) - colours.min(axis=2)
    if not spread.any():
        return None
    grey = np.rint(colours @ _LUMINANCE).astype(np.uint8)
    coloured = int((spread > 0).sum())
    return (
        grey,
        f"made grey: {coloured} of {spread.size} pixels were coloured, by {int(spread.max())} at most",
    )


def resampled_label_map(
    path: Path, image: Image, slice_index: int | None, spec: CohortSpec
) -> tuple[NDArray[Any], str] | None:
    """Return a label map's voxels on its image's grid and what was done; None where it lies there already.

    Args:
        path: of the label map.
        image: (I, J) or (I, J, K).
        slice_index: of the image in its volume.
        spec: the spacing of files that do not say theirs.

    Raises:
        ImageError: the file can't be read, or has another number of axes than the image.
    """
    if slice_index is not None and len(read_header(path).shape) < 3:
        slice_index = None
    labels = read_label_map(path, slice_index=slice_index, spacing=spec.spacing)
    grids = [Header(one.array.shape, one.affine) for one in (image, labels)]
    difference = target_difference(image.source, path, grids[0], grids[1])
    if difference is None:
        return None
    if labels.array.ndim != image.array.ndim:
        raise ImageError(
            f"{path}: {labels.array.ndim} axes, its image has {image.array.ndim}. Correct the table."
        )
    pictures = {format_of(path), format_of(image.source)} == {"picture"}
    to_labels = _scaling(image, labels) if pictures else np.linalg.inv(labels.affine) @ image.affine
    array = _nearest(np.asarray(labels.array), to_labels, image.array.shape)
    return array, f"resampled (nearest neighbour): {difference}"


def _scaling(image: Image, labels: Image) -> NDArray[np.float64]:
    """Return the map from pixels to pixels of two pictures that show the same field of view."""
    scale = np.eye(4)
    for axis in range(2):
        factor = labels.array.shape[axis] / image.array.shape[axis]
        scale[axis, axis], scale[axis, 3] = factor, (factor - 1) / 2
    return scale


def _nearest(array: NDArray[Any], to_array: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the nearest voxels on another grid; 0 outside."""
    flat = array if array.ndim == 3 else array[..., None]
    out = np.zeros((*shape, 1)[:3], array.dtype)
    rows = np.moveaxis(np.indices(out.shape[1:]), 0, -1).reshape(-1, 2)
    for i in range(out.shape[0]):  # a plane at a time: less memory
        points = np.column_stack([np.full(len(rows), i), rows, np.ones(len(rows))]) @ to_array.T
        if array.ndim == 2:
            points[:, 2] = 0
        index = np.floor(points[:, :3] + 0.5).astype(np.int64)
        inside = ((index >= 0) & (index < flat.shape)).all(axis=1)
        plane = np.zeros(len(rows), array.dtype)
        plane[inside] = flat[tuple(index[inside].T)]
        out[i] = plane.reshape(out.shape[1:])
    return out.reshape(shape)
