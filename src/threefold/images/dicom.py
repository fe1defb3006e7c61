"""Read DICOM: one file (a slice, or an enhanced one with many), or a folder that is one series, strictly.

A series is refused where slices are missing, doubled, unevenly spaced, turned against each other or
sheared by a tilted gantry: a volume with one affine can't say where such slices lie. `resampling` makes an
even volume of an uneven or tilted one, when asked to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError, IrregularSeriesError, some
from threefold.images.decoding import decoding, short
from threefold.images.dicom_frames import frame_of, frames_of
from threefold.images.dicom_kinds import is_enhanced, other_object
from threefold.images.dicom_pixels import (
    Pixels,
    padding_note,
    read_encoding,
    read_pixels,
    stated_number,
)
from threefold.images.dicom_slice import LPS_TO_RAS, SliceGrid, parsed, slice_grid
from threefold.images.facts import Facts, common_facts
from threefold.images.formats import looks_like_dicom
from threefold.images.geometry import Affine, Header, Image, slice_affine
from threefold.images.memory import refuse_beyond_memory

if TYPE_CHECKING:
    from pydicom import Dataset

SPACING_TOLERANCE = 0.01
"""Distances that differ by less than this share of their median (or by 0.01 mm) are taken as even."""
_MOST_NAMES = 10
TILT_TOLERANCE = 0.1
"""Degrees between the slices' normal and the line through their positions that pass as rounding."""


@dataclass(frozen=True)
class Slice:
    """One file of a series, or one frame of a file: where it lies, and what it says of itself (or empty).

    Attributes:
        frame: of an enhanced multi-frame file, from 0; None: the file is the slice.
        tilt: GantryDetectorTilt.
        between: SpacingBetweenSlices, mm.
    """

    path: Path
    frame: int | None
    grid: SliceGrid
    uid: str
    description: str
    tilt: str
    between: float | None
    facts: Facts
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its file, and which frame of it (from 1, as viewers count)."""
        return self.path.name if self.frame is None else f"frame {self.frame + 1} of {self.path.name}"


@dataclass(frozen=True)
class Series:
    """The slices of one series, sorted along their normal.

    Attributes:
        name: folder (or enhanced file), series UID and description, as errors show them.
        steps: (n - 1,) distances between neighbours along the normal, mm.
        tilt: degrees between the normal and the line from slice to slice, the largest one.
    """

    folder: Path
    name: str
    slices: tuple[Slice, ...]
    steps: NDArray[np.float64]
    tilt: float
    notes: tuple[str, ...]

    @property
    def spacing(self) -> float:
        """Median distance between neighbours; the slice thickness where there is one slice alone."""
        return float(np.median(self.steps)) if len(self.steps) else self.slices[0].grid.thickness

    @property
    def even(self) -> bool:
        """Whether all the distances are the same, within the tolerance."""
        tolerance = max(SPACING_TOLERANCE * self.spacing, 0.01)
        return bool((np.abs(self.steps - self.spacing) <= tolerance).all())

    @property
    def facts(self) -> Facts:
        """What the slices state, where all state the same."""
        return common_facts([one.facts for one in self.slices])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns, slices."""
        return (*self.slices[0].grid.shape, len(self.slices))

    @property
    def affine(self) -> Affine:
        """Affine of the whole, (row, column, slice) to RAS+ mm; right only for an even, untilted series."""
        affine = self.slices[0].grid.affine
        if len(self.slices) > 1:
            ends = [s.grid.position for s in (self.slices[0], self.slices[-1])]
            affine[:3, 2] = LPS_TO_RAS @ (ends[1] - ends[0]) / (len(self.slices) - 1)
        return affine

    def distances(self) -> str:
        """The distances between neighbours, each with how often it occurs."""
        values, counts = np.unique(np.round(self.steps, 2), return_counts=True)
        return ", ".join(f"{value:.2f} mm ({count}x)" for value, count in zip(values, counts, strict=True))


def read_file(
    path: Path, *, slice_index: int | None = None, uneven: Literal["refuse", "resample"] = "refuse"
) -> Image:
    """Read one file: a slice (rows, columns); of an enhanced one the volume of its frames. In HU for CT.

    Args:
        path: of the file.
        slice_index, uneven: of an enhanced file, as for `read_series`; a slice is its own slice 0.

    Raises:
        ImageError: if it is damaged, holds no image or colour, lacks its place or that of its frames, or does
            not say what its values mean; no slice of that index.
    """
    dataset, notes = parsed(path, pixels=True)
    if is_enhanced(path, dataset):
        del dataset
        image = read_series(path.parent, files=[path.name], slice_index=slice_index, uneven=uneven)
        return replace(image, source=path)
    if slice_index not in (None, 0):
        raise ImageError(f"{path}: there is no slice {slice_index}; the file is one slice (0).")
    return _image_of(_slice(path, dataset, notes), dataset)


def file_header(path: Path) -> Header:
    """Return the grid and the facts of one file, without its pixels."""
    dataset, notes = parsed(path, pixels=False)
    if is_enhanced(path, dataset):
        series = open_series(path.parent, [path.name])
        refuse_irregular(series)
        return Header(series.shape, series.affine, series.notes, series.facts)
    encoding = read_encoding(path, dataset)
    grid = slice_grid(path, dataset)
    return Header(grid.shape, grid.affine, (*notes, *encoding.notes), encoding.facts)


def series_header(folder: Path) -> Header:
    """Return the grid and the facts of the one series in a folder, strictly, without its pixels."""
    series = open_series(folder)
    refuse_irregular(series)
    return Header(series.shape, series.affine, series.notes, series.facts)


def read_series(
    folder: Path,
    *,
    files: Sequence[str] | None = None,
    slice_index: int | None = None,
    uneven: Literal["refuse", "resample"] = "refuse",
) -> Image:
    """Read the one series in a folder as a volume (rows, columns, slices), or one slice of it.

    Args:
        folder: of the series.
        files: names of its files; None: all of the folder.
        slice_index: of the slice to read, in the order of their places; None: the volume.
        uneven: what to do with slices that are unevenly spaced or tilted.

    Raises:
        ImageError: no series or several; slices missing, doubled, unevenly spaced, tilted or turned.
    """
    series = open_series(folder, files)
    if uneven == "resample" and not (series.even and series.tilt <= TILT_TOLERANCE):
        from threefold.images.resampling import resample_series

        image = resample_series(series)
        if slice_index is None:
            return image
        _check_slice(series, slice_index, image.array.shape[2])
        array = np.ascontiguousarray(image.array[..., slice_index])
        return replace(image, array=array, affine=slice_affine(image.affine, slice_index))
    refuse_irregular(series)
    if slice_index is None:
        array, notes = series_pixels(series)
        notes = (*series.notes, *notes)
        return Image(array, series.affine, folder, notes, series.facts, slices=series.slices)
    _check_slice(series, slice_index, len(series.slices))
    one = series.slices[slice_index]
    pixels = _pixels(one, parsed(one.path, pixels=True)[0])
    notes = (*pixels.notes, *padding_note(pixels.padded, one.facts))
    affine = slice_affine(series.affine, slice_index)
    return Image(pixels.values, affine, folder, (*series.notes, *notes), series.facts, slices=(one,))


def read_slice(one: Slice) -> Image:
    """Read one slice of a series on its own plane, (rows, columns)."""
    return _image_of(one, parsed(one.path, pixels=True)[0])


def _image_of(one: Slice, dataset: Dataset) -> Image:
    """Return a slice on its own plane; `dataset` is its file's, pixels included."""
    pixels = _pixels(one, dataset)
    notes = (*one.notes, *pixels.notes, *padding_note(pixels.padded, one.facts))
    return Image(pixels.values, one.grid.affine, one.path, notes, one.facts, slices=(one,))


def series_pixels(series: Series) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Return the pixels of all slices, (rows, columns, slices), and notes on them."""
    each = int(np.prod(series.shape))
    refuse_beyond_memory(series.folder, f"{' x '.join(map(str, series.shape))} voxels", 5 * each)
    volume: NDArray[Any] = np.empty(series.shape, np.int16)
    counts: Counter[str] = Counter()
    padded = 0
    opened: tuple[Path, Dataset] | None = None
    for index, one in enumerate(series.slices):
        if opened is None or opened[0] != one.path:  # the frames of a file are read at once
            opened = one.path, parsed(one.path, pixels=True)[0]
        pixels = _pixels(one, opened[1])
        volume = volume.astype(np.result_type(volume, pixels.values), copy=False)
        volume[..., index] = pixels.values
        counts.update(pixels.notes)
        padded += pixels.padded
    return volume, (*_counted(counts, len(series.slices)), *padding_note(padded, series.facts))


def _pixels(one: Slice, dataset: Dataset) -> Pixels:
    """Return the pixels of a slice; `dataset` is its file's, pixels included."""
    if one.frame is None:
        return read_pixels(one.path, dataset, read_encoding(one.path, dataset))
    attributes = frame_of(one.path, dataset, one.frame)
    return read_pixels(one.path, dataset, read_encoding(one.path, attributes), frame=one.frame)


def _counted(counts: Counter[str], slices: int) -> tuple[str, ...]:
    return tuple(f"in {count} of {slices} slices: {note}" for note, count in counts.items())


def open_series(folder: Path, files: Sequence[str] | None = None) -> Series:
    """Read the headers of the one series in a folder, or of some of its files; sort them along their normal.

    Files that are no images (a licence, a DICOMDIR, a report, a pipe) are passed over and noted.

    Raises:
        ImageError: no series, several, slices of different grids, or two at one place.
    """
    slices, notes = _headers(folder, files)
    by_series = defaultdict(list)
    for one in slices:
        by_series[one.uid].append(one)
    if not by_series:
        raise ImageError(_nothing_found(folder, notes))
    if len(by_series) > 1:
        found = "; ".join(
            f"{uid} '{files[0].description}' ({len(files)} files, for example {files[0].path.name})"
            for uid, files in sorted(by_series.items())
        )
        raise ImageError(
            f"{folder}: expected one DICOM series, found {len(by_series)}: {found}. "
            "Put each in a folder of its own and name that folder."
        )
    paths = {one.path for one in slices}
    where = folder if len(paths) > 1 or slices[0].frame is None else slices[0].path
    name = f"{where}: series {slices[0].uid} '{slices[0].description}'"
    _refuse_mixed(name, slices)
    slices.sort(key=lambda one: one.grid.distance)
    positions = np.array([one.grid.position for one in slices])
    moves = np.diff(positions, axis=0)
    steps = moves @ slices[0].grid.normal
    _refuse_doubled(name, slices, steps)
    shear = np.linalg.norm(moves - steps[:, None] * slices[0].grid.normal, axis=1)
    tilt = float(np.degrees(np.arctan2(shear, steps)).max(initial=0.0))
    counts = Counter(note for one in slices for note in one.notes)
    notes += (*_counted(counts, len(slices)), *_stated_distance(slices, steps))
    return Series(folder, name, tuple(slices), steps, tilt, notes)


def _stated_distance(slices: list[Slice], steps: NDArray[np.float64]) -> tuple[str, ...]:
    """Return a note where the distance that is stated is not the one between the slices' places."""
    stated = slices[0].between
    if stated is None or not len(steps) or abs(stated - np.median(steps)) <= SPACING_TOLERANCE * stated:
        return ()
    measured = f"{np.median(steps):.2f} mm"
    return (
        f"SpacingBetweenSlices says {stated:.2f} mm, the slices' places {measured}: the places are taken",
    )


def refuse_irregular(series: Series) -> None:
    """Raise an IrregularSeriesError, with what was found, unless the series is even and untilted."""
    problems = []
    if not series.even:
        problems.append(f"its slices are unevenly spaced: {series.distances()}{_missing(series)}")
    if series.tilt > TILT_TOLERANCE:
        stated = series.slices[0].tilt
        said = f" (GantryDetectorTilt says {stated})" if stated else ""
        problems.append(
            f"it is sheared by a gantry tilt of {series.tilt:.1f} degrees{said}: each slice is shifted "
            "against the one before"
        )
    if problems:
        raise IrregularSeriesError(
            f"{series.name}: expected {len(series.slices)} evenly spaced slices above each other, but "
            f"{'; and '.join(problems)}. Complete the series, or ask for it to be resampled onto an even "
            "grid (--uneven resample; in Python uneven='resample')."
        )


def _headers(folder: Path, files: Sequence[str] | None) -> tuple[list[Slice], tuple[str, ...]]:
    """Read the header of each DICOM image in a folder, or of some of its files; note what was passed over."""
    slices, passed = [], []
    for path in sorted(folder.iterdir() if files is None else (folder / name for name in files)):
        if path.name.startswith("."):
            continue
        if not path.is_file():
            if not path.is_dir():  # a pipe, a device, a link to nowhere
                passed.append(path.name)
            continue
        if files is None and not looks_like_dicom(path):  # a file that is named is said to be of the series
            passed.append(path.name)
            continue
        dataset, notes = parsed(path, pixels=False)
        other = other_object(path, dataset)
        if other is not None:  # a DICOMDIR, a report, a presentation state
            passed.append(f"{path.name} ({other})")
        elif is_enhanced(path, dataset):
            slices += [_slice(path, one, notes, frame) for frame, one in enumerate(frames_of(path, dataset))]
        else:
            slices.append(_slice(path, dataset, notes))
    if not passed:
        return slices, ()
    return slices, (f"passed over, not DICOM images: {some(passed, _MOST_NAMES)}",)


def _slice(path: Path, dataset: Dataset, notes: tuple[str, ...], frame: int | None = None) -> Slice:
    encoding = read_encoding(path, dataset)
    with decoding(path, "a DICOM image"):
        uid, description, tilt = (
            short(dataset.get(name) or missing, 80)
            for name, missing in (
                ("SeriesInstanceUID", "without UID"),
                ("SeriesDescription", "no description"),
                ("GantryDetectorTilt", ""),
            )
        )
        between = stated_number(dataset, "SpacingBetweenSlices")
    grid = slice_grid(path, dataset)
    notes += encoding.notes
    return Slice(path, frame, grid, uid, description, tilt, between, encoding.facts, notes)


def _nothing_found(folder: Path, notes: tuple[str, ...]) -> str:
    within = sorted(path.name for path in folder.iterdir() if path.is_dir())
    hint = f" It has folders: {', '.join(within[:5])}. Name the one with the series." if within else ""
    others = "".join(f" ({note})" for note in notes)
    return f"{folder}: a folder; expected one DICOM series in it, found no DICOM image{others}.{hint}"


def _refuse_mixed(name: str, slices: list[Slice]) -> None:
    first = slices[0]
    for other in slices[1:]:
        a, b = first.grid, other.grid
        same = (
            a.shape == b.shape
            and np.allclose(a.spacing, b.spacing, rtol=1e-4)
            and np.allclose([a.right, a.down], [b.right, b.down], atol=1e-4)
        )
        if not same:
            raise ImageError(
                f"{name}: expected slices of one size, spacing and orientation, but {first.name} has "
                f"{_grid_text(a)} and {other.name} has {_grid_text(b)}. A scout image, or several "
                "acquisitions? Take them out of the folder."
            )


def _grid_text(grid: SliceGrid) -> str:
    rows, columns = grid.shape
    axes = np.round([*grid.right, *grid.down], 4).tolist()
    return f"{rows} x {columns} pixels of {grid.spacing[0]:.4g} x {grid.spacing[1]:.4g} mm along {axes}"


def _refuse_doubled(name: str, slices: list[Slice], steps: NDArray[np.float64]) -> None:
    doubled = np.flatnonzero(steps < 0.01)
    if len(doubled):
        pairs = ", ".join(f"{slices[i].name} and {slices[i + 1].name}" for i in doubled[:5])
        raise ImageError(
            f"{name}: expected every slice once, but {len(doubled)} lie where another one is: {pairs}. "
            "Take the copies (or the second acquisition, echo or time) out."
        )


def _missing(series: Series) -> str:
    """Say where slices are missing: at distances that are whole multiples of the usual one."""
    times = series.steps / series.spacing
    gaps = [i for i, t in enumerate(times) if round(t) >= 2 and abs(t - round(t)) < 0.05]
    others = np.delete(times, gaps)
    if not gaps or (np.abs(others - 1) > 2 * SPACING_TOLERANCE).any():
        return ""
    where = ", ".join(
        f"{round(times[i]) - 1} between {series.slices[i].name} and {series.slices[i + 1].name}"
        for i in gaps[:5]
    )
    return f". Slices are missing: {where}"


def _check_slice(series: Series, index: int, slices: int) -> None:
    if not 0 <= index < slices:
        raise ImageError(f"{series.name}: there is no slice {index}; it has {slices} (0 to {slices - 1}).")
