"""What images, folders of images and cohorts stand for: a list of sources, before any voxel is read."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from threefold.cohorts.cohort import SPEC_NAME, Case, Cohort, CohortSpec, read_cohort
from threefold.errors import CohortError, ImageError, some
from threefold.file_names import printable
from threefold.images.dicom_groups import SeriesFiles, group_series, unnumbered
from threefold.images.formats import format_of
from threefold.images.readers import readers

PathLike = str | os.PathLike[str]

_PICTURES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg")
_DICOM_SUFFIXES = (".dcm", ".ima")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Source:
    """One image to predict, or a volume whose slices are.

    Attributes:
        name: the case id (of a volume's slice k: NAME#k).
        where: path of a file, or of a folder with one DICOM series.
        slice_index: of a volume, this slice alone.
        cohort: what the cohort that names it says of its voxels; None for a bare file.
        files: names of the files of a DICOM series that was found in the folder `where`; empty: whatever is
            there.
        channels: of a case of several, name and path of each that is there, the first of which is `where`.
    """

    name: str
    where: str
    slice_index: int | None = None
    cohort: CohortSpec | None = None
    files: tuple[str, ...] = ()
    channels: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> Path:
        """The file or folder. (Kept as text: a Path takes several times its memory.)"""
        return Path(self.where)

    @classmethod
    def of(cls, case: Case, spec: CohortSpec) -> Source:
        """Return the source that a case of a cohort is."""
        channels = tuple((name, str(path)) for name, path in case.channels.items())
        return cls(case.case_id, str(case.image), case.slice_index, spec, channels=channels)


@dataclass
class PassedOver:
    """What folders hold that is no image to predict: the names by the reason, in the order of the first."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, path: PathLike) -> None:
        """Add a file or folder."""
        self.names.setdefault(kind, []).append(printable(path))

    @property
    def counts(self) -> dict[str, int]:
        """How many there are, by the reason."""
        return {kind: len(names) for kind, names in self.names.items()}

    def lines(self) -> list[str]:
        """Return a line for each reason, with the first few names."""
        return [f"{kind} ({len(names)}): {some(names, _SHOWN)}" for kind, names in self.names.items()]


@dataclass(frozen=True)
class Listing:
    """What was asked to be predicted.

    Attributes:
        sources: in order, each name once.
        passed: what folders hold beside.
        asked: the inputs, as absolute paths in words.
    """

    sources: tuple[Source, ...]
    passed: PassedOver
    asked: tuple[str, ...]


Inputs = Listing | Cohort | PathLike | Iterable[PathLike] | Mapping[str, PathLike]


def find_sources(inputs: Inputs, *, allow_outside: bool = False) -> Listing:
    """List the images of files, folders and cohorts, in order; of DICOM files, headers are read.

    A folder with cohort.yaml is a cohort. Any other folder stands for all images in it and in its folders:
    its DICOM files by series (also one whose files lie in several folders; a copy of it is another), each
    other image by itself. Passed over are DICOM files without an image of slices (a report, a scout), links
    to folders (not followed), files of unknown formats, hidden images, pipes, sockets and devices. What has
    the name of an image (or of the other files of a DICOM series), and what can't be read, is listed, so
    that it fails by name when it is read.

    Names are paths within the folder without ending; where two would be equal the ending, and then the whole
    path, tells them apart.

    Args:
        inputs: a cohort, a path, several paths, the files of one case by channel, or what this returned
            before.
        allow_outside: accept cohorts whose paths leave their folder.

    Raises:
        CohortError: a cohort can't be read, or names a case that another input names too.
        ImageError: a folder holds no image; an image is named twice.
    """
    if isinstance(inputs, Listing):
        return inputs
    if isinstance(inputs, Mapping):
        return _one_case(inputs)
    if isinstance(inputs, Cohort):
        return Listing(tuple(_of_cohort(inputs)), PassedOver(), (printable(inputs.folder.absolute()),))
    paths = [Path(one) for one in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    passed = PassedOver()
    fixed: list[str] = []
    named: list[tuple[int, tuple[str, str, str]]] = []
    order: list[Source] = []
    for path in paths:
        if (path / SPEC_NAME).is_file():
            found = list(_of_cohort(read_cohort(path, allow_outside=allow_outside)))
            fixed += [source.name for source in found]
        else:
            is_folder = path.is_dir()
            found = _of_folder(path, passed) if is_folder else [Source(path.name, str(path))]
            if not found:
                raise ImageError(_no_image(path, passed))
            named += [
                (len(order) + number, _names(one, within=not is_folder)) for number, one in enumerate(found)
            ]
        order += found
    chosen = _told_apart(fixed, named, order)
    sources = (replace(one, name=chosen.get(number, one.name)) for number, one in enumerate(order))
    return Listing(tuple(sources), passed, tuple(printable(path.absolute()) for path in paths))


def _one_case(channels: Mapping[str, PathLike]) -> Listing:
    """List one case of several channels, named by the first channel's file.

    Args:
        channels: file, or folder with a DICOM series, of each channel that there is, by its name.
    """
    paths = [str(path) for path in channels.values()]
    source = Source(Path(paths[0]).name, paths[0], channels=(*zip(channels, paths, strict=True),))
    named = replace(source, name=_names(source, within=False)[0])
    return Listing(
        (named,), PassedOver(), tuple(f"{name}={Path(path).absolute()}" for name, path in named.channels)
    )


def _of_cohort(cohort: Cohort) -> Iterator[Source]:
    for case in cohort.cases:
        yield Source.of(case, cohort.spec)


_Found = tuple[Source, SeriesFiles | None]
"""A source, and of DICOM files what they are."""


def _of_folder(folder: Path, passed: PassedOver) -> list[Source]:
    """Return what a folder holds, named by its place within (a series of the folder itself: by its name)."""
    unreadable: list[str] = []
    found: list[_Found] = []

    def note(error: OSError) -> None:
        unreadable.append(str(error.filename or folder))

    for at, within, files in os.walk(folder, onerror=note):
        found += [(Source(os.path.relpath(one, folder), one), None) for one in unreadable]
        unreadable.clear()
        linked = [name for name in within if (Path(at) / name).is_symlink()]
        for name in linked:
            passed.add("linked folders, which are not followed", Path(at) / name)
        within[:] = sorted(name for name in within if name[0] != "." and name not in linked)
        relative = os.path.relpath(at, folder)
        found += _of_one_folder(at, "" if relative == "." else relative, sorted(files), passed)
    found += [(Source(os.path.relpath(one, folder), one), None) for one in unreadable]
    return _joined(found, folder)


def _joined(found: list[_Found], folder: Path) -> list[Source]:
    """Join the parts of series that lie in several folders, in the place of the first part."""
    parts: list[list[_Found]] = []
    by_series: dict[str, list[list[_Found]]] = {}
    for one in found:
        series = one[1]
        known = [] if series is None else by_series.setdefault(series.uid, [])
        for whole in known:
            first = whole[0][1]
            if series is not None and first is not None and first.continues(series):
                whole.append(one)
                first.instances |= series.instances
                break
        else:
            parts.append([one])
            known.append(parts[-1])
    return [each[0][0] if len(each) == 1 else _whole(each, folder, alone=len(parts) == 1) for each in parts]


def _whole(parts: list[_Found], folder: Path, *, alone: bool) -> Source:
    """Return the source that is a series whose files lie in several folders."""
    files = [path for source, series in parts for path in _paths(source, series)]
    common = os.path.commonpath([Path(path).parent for path in files])
    relative = os.path.relpath(common, folder)
    name = folder.resolve().name if relative == "." else relative
    names = tuple(os.path.relpath(path, common) for path in files)
    return Source(name if alone else f"{name}/series of {names[0]}", common, files=names)


def _paths(source: Source, series: SeriesFiles | None) -> list[str]:
    if not source.files or series is None:
        return [source.where]
    return [str(source.path / name) for name in source.files]


def _of_one_folder(at: str, relative: str, files: list[str], passed: PassedOver) -> Iterator[_Found]:
    dicom: list[str] = []
    images: list[str] = []
    unknown: list[str] = []
    for name in files:
        if name[0] == ".":
            if name.lower().endswith((*_PICTURES, *_DICOM_SUFFIXES)):
                passed.add("hidden images", Path(at) / name)
            continue
        kind = _kind(Path(at) / name, passed)
        if kind == "dicom":
            dicom.append(name)
        elif kind == "image":
            images.append(name)
        elif kind == "unknown":
            unknown.append(name)
    names_of_series = {unnumbered(name) for name in dicom}
    for name in unknown:
        if unnumbered(name) in names_of_series:
            dicom.append(name)
        else:
            passed.add("files of no known format", Path(at) / name)
    if dicom:
        groups = group_series(Path(at), dicom)
        for name, what in groups.without_image.items():
            passed.add(f"DICOM files without an image to predict, {what}", Path(at) / name)
        whole = relative or Path(at).resolve().name
        longer = sum(len(series.names) > 1 for series in groups.series)
        for series in groups.series:
            names = tuple(series.names)
            if (len(names) > 1 and longer == 1) or len(dicom) - len(groups.without_image) == 1:
                yield Source(whole, at, files=names), series
            elif len(names) == 1:
                yield Source(str(Path(relative) / names[0]), str(Path(at) / names[0])), series
            else:
                yield Source(f"{whole}/series of {names[0]}", at, files=names), series
    yield from ((Source(str(Path(relative) / name), str(Path(at) / name)), None) for name in images)


def _kind(path: Path, passed: PassedOver) -> str | None:
    """Return dicom or image for what is to be read, by its name, else by its bytes; unknown where neither
    tells; None: it is passed over.
    """
    lower = path.name.lower()
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # to open a pipe would wait for ever
            passed.add("pipes, sockets and devices", path)
            return None
        if lower.endswith(_DICOM_SUFFIXES):
            return "dicom"
        if lower.endswith(_PICTURES):
            return "image"
        return "dicom" if format_of(path) == "dicom" else "image"
    except FileNotFoundError:
        passed.add("links that lead nowhere", path)
    except PermissionError:
        return "image"  # which then fails by name
    except ImageError:
        return "unknown"
    except OSError as error:
        passed.add("links that lead nowhere" if error.errno == errno.ELOOP else "unreadable files", path)
    return None


def _no_image(folder: Path, passed: PassedOver) -> str:
    beside = f" It holds {'; '.join(passed.lines())}." if passed.counts else ""
    return (
        f"{printable(folder)}: holds no image; expected {', '.join(_PICTURES)} or DICOM files, or a cohort."
        f"{beside}"
    )


def _names(source: Source, *, within: bool) -> tuple[str, str, str]:
    """Return the names to choose from, the shortest first.

    Args:
        source: named by its place.
        within: it is a file that was named itself.
    """
    longer = source.name if not within else Path(source.where).name
    others = (suffix for reader in readers() for suffix in reader.suffixes)
    suffixes = _PICTURES if source.files else (*_PICTURES, *_DICOM_SUFFIXES, *others)
    ending = max((s for s in suffixes if longer.lower().endswith(s)), key=len, default="")
    stem = longer[: len(longer) - len(ending)] if ending and not source.files else longer
    full = source.where if not source.files else f"{source.where}/{source.files[0]}"
    return printable(stem), printable(longer), printable(full)


def _told_apart(
    fixed: list[str], named: list[tuple[int, tuple[str, str, str]]], order: list[Source]
) -> dict[int, str]:
    """Choose for each source, by its number, the shortest of its names that no other source has."""
    taken = Counter(fixed)
    for name, count in taken.items():
        if count > 1:
            raise CohortError(f"case '{name}' is in two of the cohorts. Predict them one at a time.")
    chosen: dict[int, str] = {}
    open_sources = named
    for length in range(3):
        counts = taken + Counter(names[length] for _, names in open_sources)
        settled = {number: names[length] for number, names in open_sources if counts[names[length]] == 1}
        open_sources = [pair for pair in open_sources if pair[0] not in settled]
        taken.update(settled.values())
        chosen |= settled
    if open_sources:
        path = printable(order[open_sources[0][0]].where)
        raise ImageError(f"{path}: named twice. Name each image once.")
    return chosen
