"""From an image on its file's grid to the network's grid, and back.

The way there: canonical orientation, intensity windows to 0..1, scaled to fit (aspect kept in mm) or to a
spacing, centred, padded or cropped. A `Placement` remembers it, so that what a network predicts returns to
the file's grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.experiment import PreprocessingSpec
from threefold.images.geometry import Image, closest_axes
from threefold.images.memory import refuse_beyond_memory
from threefold.validation import did_you_mean

_LARGE = 2**24
"""Voxels of an image from which on the memory is looked at: to ask takes longer than a smaller one."""
_BYTES_A_VOXEL = 9
"""Of an image while it is windowed and scaled: two float32 arrays of its shape, and a little more."""

WINDOWS: dict[str, tuple[float, float]] = {
    # level and width, as Radiopaedia's "Windowing (CT)" lists them for the head
    "brain": (0.0, 80.0),  # 40 / 80
    "subdural": (-32.5, 182.5),  # 75 / 215, amid the 130 to 300 that are in use
    "bone": (-800.0, 2000.0),  # 600 / 2800
}
"""Names of windows, in HU."""


@dataclass(frozen=True)
class Placement:
    """How a file's grid lies in the network's grid. Plain numbers, so that it goes to JSON and back.

    Attributes:
        shape: the file's grid, (I, J) or (I, J, K).
        affine: 4 rows of 4: the file's voxel indices to RAS+ mm.
        axes: for each canonical axis, the file axis it is.
        flips: for each canonical axis, whether it runs against the file axis.
        scaled: voxels that the resampled image has, per canonical axis.
        offset: where they begin in the network's grid; negative where it holds a part of them only.
        size: the network's grid.
    """

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    scaled: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def inside(self) -> tuple[slice, ...]:
        """The part of the network's grid that the image covers."""
        return tuple(
            slice(max(o, 0), min(o + m, n))
            for o, m, n in zip(self.offset, self.scaled, self.size, strict=True)
        )

    @property
    def covered(self) -> tuple[slice, ...]:
        """The part of the resampled image that the network's grid holds."""
        return tuple(
            slice(part.start - o, part.stop - o) for part, o in zip(self.inside, self.offset, strict=True)
        )

    @property
    def crops(self) -> bool:
        """Whether the network's grid holds a part of the image only."""
        return any(o < 0 or o + m > n for o, m, n in zip(self.offset, self.scaled, self.size, strict=True))

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """The file's grid in canonical axis order."""
        return tuple(self.shape[axis] for axis in self.axes)


def prepare_image(
    image: Image,
    spec: PreprocessingSpec,
    *,
    unit: str,
    window: tuple[float, float] | None,
    whole: bool = False,
    focus: Sequence[float] | None = None,
) -> tuple[NDArray[np.float32], Placement]:
    """Bring an image to the network's grid and to 0..1.

    Slices are turned so that rows run towards posterior and columns towards the patient's left (sagittal
    and coronal ones: rows towards inferior), volumes to RAS+; oblique ones to their closest axes.
    Each channel is windowed first and scaled after, so that bright bone does not smear into brain.
    Scaling is linear, and averages where it shrinks.

    Args:
        image: (I, J) or (I, J, K) voxels, finite; or several channels of that shape.
        spec: size, spacing and windows.
        unit: what a voxel means, as in cohort.yaml: HU, grey or arbitrary.
        window: the cohort's own [low, high]; None: the image's own 1st and 99th percentile.
        whole, focus: as `place` takes them.

    Returns:
        (C, *S) float32 in 0..1, 0 where padded: a channel for each window of each channel of the image; and
        the placement.

    Raises:
        ImageError: if image and spec differ in their number of axes, or a window does not fit the unit.
    """
    placement = place(image, spec.size, spacing=spec.spacing, whole=whole, focus=focus)
    parts = [*image.channels.values()] or [image]
    count = len(spec.windows or (None,))
    _refuse_beyond_memory(image, placement, count * len(parts))
    channels = np.zeros((len(parts), count, *placement.size), np.float32)
    for part, windowed in zip(parts, channels, strict=True):
        if part is None:
            continue
        array = canonical(np.asarray(part.array), placement)
        windows = windows_of(part, spec, unit=unit, window=window)
        for channel, (low, high) in zip(windowed, windows, strict=True):
            scaled = np.clip((array.astype(np.float32) - low) / (high - low), 0, 1)
            channel[placement.inside] = resize(scaled, placement.scaled)[placement.covered]
    return channels.reshape(-1, *placement.size), placement


def _refuse_beyond_memory(image: Image, placement: Placement, channels: int) -> None:
    """Refuse what could be read, but not be windowed and scaled.

    Raises:
        ImageError: saying how much it takes, and how much is free.
    """
    voxels, size = math.prod(placement.shape), math.prod(placement.size)
    if max(voxels, size) < _LARGE:
        return
    shape = " x ".join(map(str, placement.shape))
    needed = _BYTES_A_VOXEL * voxels + 4 * size * (channels + 2)
    refuse_beyond_memory(image.source, f"{shape} voxels", needed, "prepare")


def prepare_labels(image: Image, placement: Placement) -> NDArray[np.uint8]:
    """Bring a label map (on the grid of the placed image) to the network's grid, nearest.

    Returns:
        (*S) uint8, 0 where padded.

    Raises:
        ImageError: if its shape is not the placed image's, or a value does not fit 0..255.
    """
    array: NDArray[Any] = image.array
    if array.shape != placement.shape:
        raise ImageError(f"{image.source}: has shape {array.shape}; expected {placement.shape}, the image's.")
    if array.size and (array.min() < 0 or array.max() > 255):
        raise ImageError(
            f"{image.source}: values {array.min()} to {array.max()}; expected labels from 0 to 255."
        )
    labels = np.zeros(placement.size, np.uint8)
    nearest = _nearest(canonical(array, placement), placement.scaled)
    labels[placement.inside] = nearest[placement.covered]
    return labels


def restore(
    array: NDArray[Any], placement: Placement, *, order: Literal["nearest", "linear"]
) -> NDArray[Any]:
    """Bring an array on the network's grid back to the file's own grid.

    Args:
        array: (*S) labels or probabilities.
        placement: of the image.
        order: nearest keeps the type; linear gives float32.

    Returns:
        An array of the file's shape, in its axis order; 0 where the network's grid does not reach.
    """
    if array.shape != placement.size:
        raise ValueError(f"array has shape {array.shape}, the placement's grid is {placement.size}")
    resample = _nearest if order == "nearest" else resize
    scaled = array[placement.inside]
    if placement.crops:
        scaled = np.zeros(placement.scaled, array.dtype)
        scaled[placement.covered] = array[placement.inside]
    canonical = resample(scaled, placement.canonical_shape)
    flipped = canonical[tuple(slice(None, None, -1 if flip else 1) for flip in placement.flips)]
    return np.ascontiguousarray(flipped.transpose(np.argsort(placement.axes)))


def place(
    image: Image,
    size: Sequence[int],
    *,
    spacing: float | Sequence[float] | None = None,
    whole: bool = False,
    focus: Sequence[float] | None = None,
) -> Placement:
    """Return where an image lies in a grid of `size` voxels.

    Args:
        image: (I, J) or (I, J, K).
        size: of the grid, per canonical axis.
        spacing: mm per voxel of the grid, one number or one per canonical axis (up to what makes the image a
            whole number of voxels). None: as large as fits, aspect kept.
        whole: make the grid larger along axes where the image, at that spacing, exceeds it, so that nothing
            is cut off.
        focus: a place in the image, as indices along the file's axes (whole numbers are voxel centres), that
            a part of it is centred on as far as the image's border allows; None: the middle. An axis along
            which the image fits is centred on its middle.

    Raises:
        ImageError: if the image has another number of axes than the grid.
    """
    dimensions = image.array.ndim
    if dimensions != len(size):
        raise ImageError(
            f"{image.source}: has shape {image.array.shape}; expected {len(size)} axes, as "
            f"preprocessing.size {tuple(size)} has. A slice of a volume needs its number in the slice column."
        )
    axes, flips = canonical_axes(image.affine, dimensions)
    extent = [image.array.shape[axis] * image.spacing[axis] for axis in axes]  # mm
    if spacing is None:
        side = max(mm / n for mm, n in zip(extent, size, strict=True))
        scaled = tuple(min(n, max(1, round(mm / side))) for mm, n in zip(extent, size, strict=True))
    else:
        sides = [spacing] * dimensions if isinstance(spacing, int | float) else list(spacing)
        scaled = tuple(max(1, round(mm / side)) for mm, side in zip(extent, sides, strict=True))
    if whole:
        size = [max(n, m) for n, m in zip(size, scaled, strict=True)]
    middle = [0.5 if focus is None else (focus[axis] + 0.5) / image.array.shape[axis] for axis in axes]
    return Placement(
        shape=image.array.shape,
        affine=tuple(tuple(float(value) for value in row) for row in image.affine),
        axes=axes,
        flips=flips,
        scaled=scaled,
        offset=tuple(
            (n - m) // 2 if m <= n else -window_start(m, n, m * (1 - at if flip else at))
            for n, m, at, flip in zip(size, scaled, middle, flips, strict=True)
        ),
        size=tuple(size),
    )


def window_start(length: int, window: int, centre: float) -> int:
    """Return where a window along an axis begins: about `centre` (0..length), within the axis."""
    return min(max(round(centre - window / 2), 0), length - window)


def centre_of(labels: NDArray[Any]) -> tuple[float, ...] | None:
    """Return the mean index of the voxels that are not 0, along each axis; None where there is none."""
    inside = labels != 0
    count = int(inside.sum())
    if count == 0:
        return None
    axes = range(labels.ndim)
    counts = (inside.sum(axis=tuple(other for other in axes if other != axis)) for axis in axes)
    return tuple(float(along @ np.arange(len(along))) / count for along in counts)


def canonical_axes(affine: NDArray[np.float64], dimensions: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return the file axis of each canonical axis, and whether it has to be flipped.

    Volumes: towards right, anterior, superior. Slices: rows and columns run towards left, posterior or
    inferior, and the rows along the later one of these (axial: posterior, left).
    """
    patient, signs = closest_axes(affine, dimensions)
    order = sorted(range(dimensions), key=lambda axis: patient[axis], reverse=dimensions == 2)
    wanted = 1 if dimensions == 3 else -1
    return tuple(order), tuple(signs[axis] != wanted for axis in order)


def windows_of(
    image: Image, spec: PreprocessingSpec, *, unit: str, window: tuple[float, float] | None
) -> list[tuple[float, float]]:
    """Return [low, high] of each channel, in the image's unit.

    Raises:
        ImageError: an unknown name, a named window for another unit than HU, or low not below high.
    """
    found = []
    for wanted in spec.windows or (None,):
        if isinstance(wanted, str):
            if wanted not in WINDOWS:
                raise ImageError(
                    f"there is no window '{wanted}'; preprocessing.windows takes {', '.join(WINDOWS)} or "
                    f"[low, high].{did_you_mean(wanted, tuple(WINDOWS))}"
                )
            if unit != "HU":
                raise ImageError(
                    f"{image.source}: the window '{wanted}' is in HU, but the cohort's unit is {unit}. "
                    "Give preprocessing.windows as [low, high] in that unit, or leave it out."
                )
            wanted = WINDOWS[wanted]
        low, high = wanted or window or _own_window(np.asarray(image.array))
        if not low < high:
            raise ImageError(f"window [{low}, {high}]: expected low below high.")
        found.append((float(low), float(high)))
    return found


def _own_window(array: NDArray[Any]) -> tuple[float, float]:
    """1st and 99th percentile; where they are the same (a small object on nothing) the whole range."""
    low, high = (float(value) for value in np.percentile(array, (1, 99)))
    if not low < high:
        low, high = float(array.min()), float(array.max())
    return (low, high) if low < high else (low, low + 1.0)


def canonical(array: NDArray[Any], placement: Placement) -> NDArray[Any]:
    """Return an array on the file's grid in canonical axis order (volumes: RAS+), unscaled."""
    turned = array.transpose(placement.axes)
    return turned[tuple(slice(None, None, -1 if flip else 1) for flip in placement.flips)]


def resize(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Resize by linear interpolation, with a triangle filter as wide as the step where an axis shrinks.

    Voxels are areas: the outer edges of the two grids fall together. One small matrix product an axis.
    """
    out = np.ascontiguousarray(array, np.float32)
    for axis, (old, new) in enumerate(zip(array.shape, shape, strict=True)):
        if old != new:
            out = np.moveaxis(np.tensordot(_linear_weights(old, new), out, (1, axis)), 0, axis)
    return np.ascontiguousarray(out)


@lru_cache(maxsize=64)
def _linear_weights(old: int, new: int) -> NDArray[np.float32]:
    """(new, old) weights of a triangle filter, rows summing to 1; edges use the voxels that are there."""
    step = old / new
    width = max(step, 1.0)
    centres = (np.arange(new) + 0.5) * step
    distance = np.abs(np.arange(old) + 0.5 - centres[:, None]) / width  # (new, old)
    weights = np.maximum(1 - distance, 0)
    normalised: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def _nearest(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Resize by taking the voxel that each new voxel's centre lies in."""
    for axis, (old, new) in enumerate(zip(array.shape, shape, strict=True)):
        if old != new:
            array = array.take((np.arange(new) * 2 + 1) * old // (2 * new), axis)
    return array
