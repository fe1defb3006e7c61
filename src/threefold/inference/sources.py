"""What can be asked to be predicted: images, folders of images, DICOM series, cohorts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from threefold.cohorts.cohort import SPEC_NAME, Cohort, CohortSpec, read_cohort
from threefold.errors import CohortError, ImageError
from threefold.experiment import PreprocessingSpec
from threefold.images.formats import format_of
from threefold.images.geometry import Image, closest_axes, slice_affine
from threefold.images.preprocessing import prepare_image
from threefold.images.reading import Uneven, read_image
from threefold.inference.engine import Prepared

PathLike = str | os.PathLike[str]
Inputs = Cohort | PathLike | Iterable[PathLike]

_PICTURES = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg")
_DICOM_SUFFIXES = (".dcm", ".ima")


@dataclass(frozen=True)
class Source:
    """One image to predict, or a volume whose slices are.

    Attributes:
        name: the case id (of a volume's slice k: NAME#k).
        path: a file, or a folder with one DICOM series.
        slice_index: of a volume, this slice alone.
        cohort: what the cohort that names it says of its voxels; None for a bare file.
    """

    name: str
    path: Path
    slice_index: int | None = None
    cohort: CohortSpec | None = None


def find_sources(inputs: Inputs, *, allow_outside: bool = False) -> tuple[Source, ...]:
    """List the images of files, folders and cohorts, in order; no voxel is read.

    A folder with cohort.yaml is a cohort. Any other folder stands for all images in it and in its folders:
    those of its files that are DICOM are together one series, each other image is a case by itself. Files
    that are no images, and hidden ones, are passed over. Names are paths within the folder without ending;
    where two would be equal the ending, and then the whole path, tells them apart.

    Args:
        inputs: a cohort, a path, or several paths.
        allow_outside: accept cohorts whose paths leave their folder.

    Raises:
        CohortError: a cohort can't be read, or names a case that another input names too.
        ImageError: a folder holds no image.
    """
    if isinstance(inputs, Cohort):
        return tuple(_of_cohort(inputs))
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    fixed: list[Source] = []
    named: list[tuple[Source, tuple[str, str, str]]] = []
    order: list[Source] = []
    for path in map(Path, paths):
        if (path / SPEC_NAME).is_file():
            found = list(_of_cohort(read_cohort(path, allow_outside=allow_outside)))
            fixed += found
        else:
            choices = list(_of_folder(path)) if path.is_dir() else [(path, Path(path.name))]
            if not choices:
                raise ImageError(
                    f"{path}: holds no image; expected {', '.join(_PICTURES)} or DICOM files, or a cohort."
                )
            found = [Source(name=str(at), path=at) for at, _ in choices]
            named += [(one, _names(*choice)) for one, choice in zip(found, choices, strict=True)]
        order += found
    names = _told_apart(fixed, named)
    return tuple(replace(source, name=names.get(id(source), source.name)) for source in order)


def prepare(
    source: Source, trained: CohortSpec, spec: PreprocessingSpec, *, uneven: Uneven
) -> Iterator[Prepared]:
    """Read a source and bring it to the network's grid; a volume for a 2D network gives all its slices.

    With a spacing in `spec` an image larger than the grid is kept whole, and its window is the grid's size.

    Args:
        source: what to read.
        trained: the cohort that the network was trained on: its axes, unit and window.
        spec: the network's grid and windows.
        uneven: what to do with an unevenly spaced or tilted DICOM series.

    Raises:
        ImageError: naming the file: it can't be read, or is not what the network was trained on.
    """
    given = source.cohort
    if given is None and trained.intensity.unit == "HU" and format_of(source.path) == "picture":
        raise ImageError(
            f"{source.path}: a picture of grey values, but the network was trained on CT numbers (HU). "
            "Give the DICOM or NIfTI file that it was made from."
        )
    spacing = (given or trained).spacing
    image = read_image(source.path, slice_index=source.slice_index, spacing=spacing, uneven=uneven)
    if image.array.ndim < trained.dimensions:
        raise ImageError(
            f"{source.path}: has shape {image.array.shape}; expected a volume, as the network was trained on."
        )
    slices = image.array.ndim > trained.dimensions
    if slices and given is not None:
        raise ImageError(
            f"{source.path}: a volume of shape {image.array.shape}, but the cases of cohort '{given.name}' "
            "are slices. Name the slice in the table's slice column."
        )
    if slices:
        image = replace(image, notes=(*image.notes, *_direction_of_slices(image)))
    for index in range(image.array.shape[2]) if slices else (None,):
        one = image if index is None else _slice(image, index)
        array, placement = prepare_image(
            one, spec, unit=trained.intensity.unit, window=trained.intensity.window, whole=True
        )
        yield Prepared(
            case_id=source.name if index is None else f"{source.name}#{index}",
            array=array,
            placement=placement,
            image=one,
            slice_index=source.slice_index if index is None else index,
            volume=None if index is None else image,
            window=None if placement.size == spec.size else spec.size,
        )


def refuse_other_question(trained: CohortSpec, given: CohortSpec) -> None:
    """Refuse a cohort that a network can't be asked about.

    Raises:
        CohortError: naming what differs: axes, unit, or a class that the network does not know.
    """
    for what, expected, found in (
        ("dimensions", trained.dimensions, given.dimensions),
        ("intensity.unit", trained.intensity.unit, given.intensity.unit),
    ):
        if expected != found:
            raise CohortError(
                f"cohort '{given.name}': {what} is {found}, but the network was trained on {expected} "
                f"(cohort '{trained.name}'). Convert the images, or use a network trained on such."
            )
    unknown = [name for name in given.classes if name not in trained.classes]
    if trained.classes and unknown:
        raise CohortError(
            f"cohort '{given.name}': class '{unknown[0]}' is not one that the network was trained on "
            f"({', '.join(trained.classes)}). Rename it in cohort.yaml and cases.csv, or leave it out."
        )


def _slice(volume: Image, index: int) -> Image:
    return replace(volume, array=volume.array[..., index], affine=slice_affine(volume.affine, index))


def _direction_of_slices(volume: Image) -> tuple[str, ...]:
    """Return a note where the slices of a volume (along its third axis) are not axial."""
    axis = closest_axes(volume.affine, 3)[0][2]
    if axis == 2:
        return ()
    planes = ("sagittal", "coronal")[axis]
    return (f"its slices along the third axis are {planes}, not axial",)


def _of_cohort(cohort: Cohort) -> Iterator[Source]:
    for case in cohort.cases:
        yield Source(case.case_id, case.image, case.slice_index, cohort.spec)


def _of_folder(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each image and where it is within the folder (a series of the folder itself: by its name)."""
    for at, within, files in os.walk(folder):
        within[:] = sorted(name for name in within if not name.startswith("."))
        here = Path(at)
        images = [
            here / name for name in sorted(files) if name.lower().endswith(_PICTURES) and name[0] != "."
        ]
        if any(_is_dicom(here / name) for name in files):
            relative = here.relative_to(folder)
            yield here, relative if relative.parts else Path(folder.resolve().name)
        yield from ((image, image.relative_to(folder)) for image in images)


def _is_dicom(path: Path) -> bool:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in _DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _names(path: Path, within: Path) -> tuple[str, str, str]:
    """Return the names to choose from, the shortest first."""
    suffixes = (*_PICTURES, *_DICOM_SUFFIXES)
    ending = max((s for s in suffixes if within.name.lower().endswith(s)), key=len, default="")
    longer = within.as_posix()
    stem = (
        longer.removesuffix(longer[len(longer) - len(ending) :]) if ending and not path.is_dir() else longer
    )
    return stem, longer, path.as_posix()


def _told_apart(fixed: list[Source], named: list[tuple[Source, tuple[str, str, str]]]) -> dict[int, str]:
    """Choose for each source, by its id(), the shortest of its names that no other source has."""
    taken = Counter(source.name for source in fixed)
    for name, count in taken.items():
        if count > 1:
            raise CohortError(f"case '{name}' is in two of the cohorts. Predict them one at a time.")
    chosen: dict[int, str] = {}
    open_sources = list(named)
    for length in range(3):
        counts = taken + Counter(names[length] for _, names in open_sources)
        chosen |= {id(source): names[length] for source, names in open_sources if counts[names[length]] == 1}
        open_sources = [pair for pair in open_sources if id(pair[0]) not in chosen]
        taken += Counter(chosen.values()) - taken
    if open_sources:
        raise ImageError(f"{open_sources[0][0].path}: named twice. Name each image once.")
    return chosen
