"""Make an even, unsheared volume of an uneven or gantry-tilted DICOM series."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.images.dicom import Series, series_pixels
from threefold.images.dicom_pixels import AIR
from threefold.images.geometry import Image


def resample_series(series: Series) -> Image:
    """Resample a series linearly onto an even grid whose third axis is the slices' normal.

    The slices' own plane, orientation and pixel spacing are kept: a tilted gantry shifts each slice within
    its plane against the one before, which is undone by shifting it back (the grid grows so that no slice
    is cut off); along the normal the slices are as far apart as the median distance was. Voxels that no
    slice covers are air in HU, else the series' smallest value.

    Returns:
        (rows, columns, slices) float32, with a note of what was done.
    """
    array, notes = series_pixels(series)
    first = series.slices[0].grid
    offsets = np.array([one.grid.position - first.position for one in series.slices])
    along = offsets @ first.normal
    shifts = offsets @ np.column_stack([first.down, first.right]) / first.spacing  # (n, 2) pixels
    low = np.floor(shifts.min(axis=0) + 1e-6).astype(int)
    high = np.ceil(shifts.max(axis=0) - 1e-6).astype(int)
    shape = (array.shape[0] + high[0] - low[0], array.shape[1] + high[1] - low[1])
    fill = AIR if series.facts.unit == "HU" else float(array.min())
    shifted = np.stack(
        [_shifted(array[..., i], shifts[i] - low, shape, fill) for i in range(array.shape[2])], axis=-1
    )
    step = series.spacing
    places = np.arange(int(np.floor(along[-1] / step + 1e-6)) + 1) * step
    above = np.clip(np.searchsorted(along, places), 1, len(along) - 1)
    weight = np.clip((places - along[above - 1]) / (along[above] - along[above - 1]), 0, 1).astype(np.float32)
    volume = shifted[..., above - 1] * (1 - weight) + shifted[..., above] * weight
    affine = first.affine
    affine[:3, 3] += affine[:3, 0] * low[0] + affine[:3, 1] * low[1]
    affine[:3, 2] *= step / first.thickness
    largest = np.abs(shifts * first.spacing).max()
    done = (
        f"resampled linearly: {len(along)} slices {series.steps.min():.2f} to {series.steps.max():.2f} mm "
        f"apart onto {len(places)} slices {step:.2f} mm apart"
    )
    if largest > 0:
        done += f"; tilt of {series.tilt:.1f} degrees undone by in-plane shifts of up to {largest:.1f} mm"
    notes = (*series.notes, *notes, done)
    return Image(volume, affine, series.folder, notes, series.facts, slices=series.slices)


def _shifted(
    image: NDArray[Any], shift: NDArray[np.float64], shape: tuple[int, int], fill: float
) -> NDArray[np.float32]:
    """Move an image by a non-negative fraction of pixels onto a larger grid, linearly, one axis at a time."""
    out = image.astype(np.float32)
    for axis in (0, 1):
        whole = int(np.floor(shift[axis] + 1e-9))
        part = np.float32(max(shift[axis] - whole, 0.0))
        before = [(0, 0), (0, 0)]
        before[axis] = (whole, shape[axis] - image.shape[axis] - whole)
        out = np.pad(out, before, constant_values=fill)
        if part > 1e-6:
            out = (1 - part) * out + part * np.roll(out, 1, axis)  # its last pixel is padding: it grew by one
    return out
