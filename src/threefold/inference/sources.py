"""From a source to images on the network's grid, held against what the network was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from threefold.cohorts.channels import read_channels
from threefold.cohorts.cohort import CohortSpec
from threefold.cohorts.failures import reason_of
from threefold.cohorts.meaning import objections, shows_nothing
from threefold.cohorts.objection import Objection
from threefold.cohorts.trained_on import TrainedOn
from threefold.errors import CohortError, ImageError, IrregularSeriesError, ThreefoldError
from threefold.experiment import PreprocessingSpec
from threefold.file_names import printable
from threefold.images import dicom
from threefold.images.geometry import Image, closest_axes, slice_of
from threefold.images.preprocessing import prepare_image
from threefold.images.reading import Uneven, read_image
from threefold.inference.engine import Prepared
from threefold.inference.listing import Source
from threefold.validation import did_you_mean

OnError = Callable[[Source, ThreefoldError], None]
"""Called with a source that can't be predicted and why; the others go on."""


@dataclass(frozen=True)
class Asked:
    """What a network can be asked.

    Attributes:
        trained: the cohort that it was trained on: its axes, unit and window.
        spec: its grid and windows.
        seen: what its training images were; None: not known.
        judged: images are held against `trained` and `seen`; False for the cohort that it was trained on,
            which has been audited.
    """

    trained: CohortSpec
    spec: PreprocessingSpec
    seen: TrainedOn | None = None
    judged: bool = True


def prepare(source: Source, asked: Asked, *, uneven: Uneven) -> Iterator[Prepared]:
    """Read a source and bring it to the network's grid; a volume for a 2D network gives all its slices.

    With a spacing in `asked.spec` an image larger than the grid is kept whole, and its window is the grid's
    size.

    Args:
        source: what to read.
        asked: the network.
        uneven: what to do with an unevenly spaced or tilted DICOM series.

    Raises:
        ImageError: naming the file: it can't be read, or is not what the network was trained on.
    """
    yield from _on_grid(source, _read(source, asked, uneven), asked)


def prepare_each(
    source: Source, asked: Asked, *, uneven: Uneven, on_error: OnError | None
) -> Iterator[Prepared]:
    """As `prepare`, and whatever goes wrong with one source is that source's alone.

    Of a DICOM series that files are missing from (damaged ones, or two acquisitions in one place) the rest is
    predicted: as a volume where it still is one, else a 2D network is given its slices one by one.

    Args:
        source, asked, uneven: as for `prepare`.
        on_error: told of each image that can't be predicted; None: it is raised.

    Raises:
        ImageError: where `on_error` is None.
        OSError: the disk is full, or whatever else would stop every source.
    """
    try:
        yield from prepare(source, asked, uneven=uneven)
    except Exception as problem:
        error = _as_image_error(source, problem)
        if on_error is None:
            raise error from problem
        if len(source.files) < 2 or isinstance(problem, IrregularSeriesError):
            on_error(source, error)
            return
        yield from _rest_of_series(source, asked, uneven, on_error, error)


def refuse_other_question(trained: CohortSpec, given: CohortSpec) -> None:
    """Refuse a cohort that a network can't be asked about.

    Raises:
        CohortError: naming what differs: axes, modality, unit, or a class that the network does not know.
    """
    for what, expected, found in (
        ("dimensions", trained.dimensions, given.dimensions),
        ("modality", trained.modality, given.modality),
        ("intensity.unit", trained.intensity.unit, given.intensity.unit),
    ):
        if expected != found:
            raise CohortError(
                f"cohort '{given.name}': {what} is {found}, but the network was trained on {expected} "
                f"(cohort '{trained.name}'). Convert the images, or use a network trained on such."
            )
    if {*trained.channels} != {*given.channels}:
        raise CohortError(
            f"cohort '{given.name}': its cases have {_named(given)}, but the network was trained on "
            f"{_named(trained)} (cohort '{trained.name}'). Declare the same in its cohort.yaml (channels)."
        )
    unknown = [name for name in given.classes if name not in trained.classes]
    if trained.classes and unknown:
        raise CohortError(
            f"cohort '{given.name}': class '{unknown[0]}' is not one that the network was trained on "
            f"({', '.join(trained.classes)}). Rename it in cohort.yaml and cases.csv, or leave it out."
        )


def _named(spec: CohortSpec) -> str:
    return f"the channels {', '.join(spec.channels)}" if spec.channels else "one image each"


def _read(source: Source, asked: Asked, uneven: Uneven) -> Image:
    spacing = (source.cohort or asked.trained).spacing
    if source.channels or asked.trained.channels:
        paths = _channels(source, asked.trained)
        names = tuple(asked.trained.channels)
        return read_channels(paths, names, slice_index=source.slice_index, spacing=spacing, uneven=uneven)
    if source.files:
        return dicom.read_series(source.path, files=source.files, uneven=uneven)
    return read_image(source.path, slice_index=source.slice_index, spacing=spacing, uneven=uneven)


def _channels(source: Source, trained: CohortSpec) -> dict[str, Path]:
    """Return the path of each channel of a source, which are those that the network takes.

    Raises:
        ImageError: naming the channels that it takes, and what is missing.
    """
    where, given = printable(source.where), {name: Path(path) for name, path in source.channels}
    if not given:
        raise ImageError(
            f"{where}: one image, but the network takes {_named(trained)}. Name each (--channel "
            f"{next(iter(trained.channels))}=FILE and so on), or give a cohort that declares them."
        )
    unknown = [name for name in given if name not in trained.channels]
    if unknown:
        raise ImageError(
            f"{where}: there is no channel '{unknown[0]}': the network takes {_named(trained)}."
            f"{did_you_mean(unknown[0], tuple(trained.channels))}"
        )
    missing = [name for name in trained.channels if name not in given]
    if missing and trained.missing_channels == "refuse":
        raise ImageError(
            f"{where}: the channel {missing[0]} is missing, and the network was trained on cases that have "
            "all (missing_channels: refuse). Give it."
        )
    return given


def _on_grid(source: Source, image: Image, asked: Asked) -> Iterator[Prepared]:
    trained, given, where = asked.trained, source.cohort, printable(source.where)
    if image.array.ndim < trained.dimensions:
        raise ImageError(
            f"{where}: has shape {image.array.shape}; expected a volume, as the network was trained on."
        )
    slices = image.array.ndim > trained.dimensions
    if slices and given is not None:
        raise ImageError(
            f"{where}: a volume of shape {image.array.shape}, but the cases of cohort '{given.name}' "
            "are slices. Name the slice in the table's slice column."
        )
    remarks, unlike = _remarks(where, image, asked, vouched=given is not None)
    if slices:
        known = asked.judged and asked.seen is not None and asked.seen.planes  # then `objections` says it
        image = image if known else replace(image, notes=(*image.notes, *_direction_of_slices(image)))
    for index in range(image.array.shape[2]) if slices else (None,):
        one = image if index is None else slice_of(image, index)
        nothing = None if index is None or not asked.judged else _shows_nothing(one, trained)
        remark: tuple[str, ...] = ()
        if nothing is not None:
            remark = (
                f"slice: {nothing.summary} ({nothing.found}); so it has no diagnosis, and an empty mask",
            )
        array, placement = prepare_image(
            one, asked.spec, unit=trained.intensity.unit, window=trained.intensity.window, whole=True
        )
        yield Prepared(
            case_id=source.name if index is None else f"{source.name}#{index}",
            array=array,
            placement=placement,
            image=one,
            slice_index=source.slice_index if index is None else index,
            volume=None if index is None else image,
            window=None if placement.size == asked.spec.size else asked.spec.size,
            remarks=(*remarks, *remark),
            unlike=unlike,
            shows_nothing=nothing is not None,
        )


def _shows_nothing(image: Image, trained: CohortSpec) -> Objection | None:
    """Return why a slice shows nothing, in none of its channels; None where it shows something."""
    found = [shows_nothing(part, trained) for part in image.parts.values()]
    return found[0] if all(found) else None


def _remarks(
    where: str, image: Image, asked: Asked, *, vouched: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what speaks against an image without proof, and what of it makes it unlike training images.

    Raises:
        ImageError: something is proven wrong.
    """
    missing = tuple(
        f"the channel {name} is missing: 0 everywhere" for name, one in image.channels.items() if one is None
    )
    if not asked.judged:
        return missing, ()
    refused: list[str] = []
    found: list[str] = []
    unlike: list[str] = []
    for name, part in image.parts.items():
        seen = None if asked.seen is None else asked.seen.of_channel(name)
        for one in objections(part, asked.trained, seen, vouched=vouched):
            said = f"{f'channel {name}: ' if name else ''}{one.of_network().removesuffix('.')}"
            (refused if one.refused else found).append(said)
            if one.unlike_training:
                unlike.append(said)
    if refused:
        raise ImageError(f"{where}: {'; and '.join(refused)}.")
    return (*missing, *found), tuple(unlike)


def _rest_of_series(
    source: Source, asked: Asked, uneven: Uneven, on_error: OnError, error: ImageError
) -> Iterator[Prepared]:
    """Predict what is left of a series that can't be read as a whole, and say of each other file why not."""
    good = []
    for name in source.files:
        one = Source(f"{source.name}/{printable(name)}", str(source.path / name))
        try:
            _read(one, asked, uneven)
        except Exception as problem:
            on_error(one, _as_image_error(one, problem))
        else:
            good.append(one)
    if len(good) == len(source.files) and asked.trained.dimensions == 3:
        on_error(source, error)
        return
    if 0 < len(good) < len(source.files):
        left = replace(source, files=tuple(one.path.name for one in good))
        missing = (
            f"{len(source.files) - len(good)} of the {len(source.files)} files of its series can't be read: "
            "slices may be missing"
        )
        try:
            image = _read(left, asked, uneven)
            yield from _on_grid(source, replace(image, notes=(*image.notes, missing)), asked)
            return
        except Exception as problem:
            if asked.trained.dimensions == 3:
                on_error(source, _as_image_error(source, problem))
                return
    for one in good:
        try:
            yield from prepare(one, asked, uneven=uneven)
        except Exception as problem:
            on_error(one, _as_image_error(one, problem))


def _as_image_error(source: Source, error: Exception) -> ImageError:
    """Return an exception of one source as the error that names it; one that is every source's is raised."""
    if isinstance(error, ImageError) and reason_of(error) is not None:
        return error
    reason = reason_of(error)
    if reason is None:
        if isinstance(error, OSError | ImageError):
            raise error
        reason = f"can't be prepared ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
    return ImageError(f"{printable(source.where)}: {reason}.")


def _direction_of_slices(volume: Image) -> tuple[str, ...]:
    """Return a note where the slices of a volume (along its third axis) are not axial."""
    axis = closest_axes(volume.affine, 3)[0][2]
    if axis == 2:
        return ()
    planes = ("sagittal", "coronal")[axis]
    return (f"its slices along the third axis are {planes}, not axial",)
