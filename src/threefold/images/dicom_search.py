"""Find what DICOM files are: the series in a folder and the folders below it, the patient of a file."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from threefold.errors import ImageError
from threefold.file_names import printable
from threefold.images.decoding import decoding, short
from threefold.images.dicom_groups import unnumbered
from threefold.images.dicom_kinds import other_object
from threefold.images.dicom_pixels import read_encoding
from threefold.images.dicom_slice import parsed
from threefold.images.folders import folders_below
from threefold.images.formats import looks_like_dicom

STATED = (
    "PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "StudyDescription",
    "SeriesDescription", "InstitutionName", "StationName", "Manufacturer", "ManufacturerModelName",
    "Modality", "ConvolutionKernel", "KVP", "MagneticFieldStrength", "SliceThickness",
)  # fmt: skip
"""Attributes that say whose series it is, and how it was made."""


@dataclass(frozen=True)
class FoundSeries:
    """Files of one series.

    Attributes:
        name: its folder, as the search sees it; where that holds several series, and of which file it begins.
        folder: that its files lie in.
        files: their names, sorted; paths within the folder, where they lie in several below it.
        stated: what its first file states of patient, study, scanner and acquisition (`STATED`), without what
            is empty.
        problem: why it can't be read as the series that it was; None: nothing speaks against it so far.
    """

    name: str
    folder: Path
    files: tuple[str, ...]
    stated: Mapping[str, str]
    problem: str | None

    @property
    def patient(self) -> str:
        """PatientID; empty where it is not stated."""
        return self.stated.get("PatientID", "")


@dataclass(frozen=True)
class FoundInFolder:
    """What a folder holds.

    Attributes:
        series: in the order of their folders and first files.
        unreadable: why, by place: folders that can't be listed, and files of no series that is known.
        passed: what was passed over: files that are no DICOM images, and links to folders.
    """

    series: tuple[FoundSeries, ...]
    unreadable: Mapping[str, str]
    passed: tuple[str, ...]


def find_series(folder: Path) -> FoundInFolder:
    """Read the headers below a folder, and sort the files by series.

    A damaged file in the folder of one series is taken for a part of it: without the file the series would
    have a gap. A series may lie in several folders, unless one holds copies of what is in another. Hidden
    files and folders are not looked at, links to folders not followed.

    Raises:
        ImageError: there is no such folder.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder; expected one with the files of DICOM series.")
    unreadable: dict[str, str] = {}
    passed: list[str] = []
    damaged: dict[Path, dict[str, str]] = defaultdict(dict)
    found: dict[tuple[Path, str], _Files] = {}
    unlisted: dict[Path, str] = {}
    links: list[Path] = []
    unknown: list[Path] = []
    for path in (here / name for here, names in folders_below(folder, unlisted, links) for name in names):
        try:
            if not path.is_file():
                passed.append(_place(path, folder))
                continue
            if not looks_like_dicom(path):
                unknown.append(path)
                continue
            dataset, _ = parsed(path, pixels=False)
            other = other_object(path, dataset)
            with decoding(path, "a DICOM image"):
                uid, instance = (
                    short(dataset.get(name) or "", 80) for name in ("SeriesInstanceUID", "SOPInstanceUID")
                )
                facts = {name: text for name in STATED if (text := short(dataset.get(name) or "", 80))}
        except ImageError as error:
            damaged[path.parent][path.name] = str(error)
            continue
        if other is not None:
            passed.append(f"{_place(path, folder)} ({other})")
            continue
        files = found.setdefault((path.parent, uid), _Files(facts))
        files.names.append(path.name)
        files.instances.add(instance or str(path))
    known = {(here, unnumbered(name)) for (here, _), one in found.items() for name in one.names}
    for path in unknown:
        if (path.parent, unnumbered(path.name)) in known:
            reason = f"{path}: is no DICOM file, though it is named as one. Copy it again."
            damaged[path.parent][path.name] = reason
        else:
            passed.append(_place(path, folder))
    passed += (f"{_place(path, folder)} (a link to a folder)" for path in links)
    unreadable |= {_place(path, folder): why for path, why in unlisted.items()}
    series = tuple(_named(folder, found, damaged))
    for here, reasons in damaged.items():
        unreadable |= {_place(here / name, folder): reason for name, reason in reasons.items()}
    return FoundInFolder(series, unreadable, tuple(sorted(passed)))


def patient_of(path: Path) -> str:
    """Return the PatientID of one file, without reading its pixels.

    Raises:
        ImageError: it is damaged, names no patient, or is too short for its pixels.
    """
    dataset, _ = parsed(path, pixels=False)
    patient = str(dataset.get("PatientID") or "").strip()
    if not patient:
        raise ImageError(f"{path}: has no PatientID")
    rows, columns = read_encoding(path, dataset).shape
    needed = rows * columns * int(dataset.BitsAllocated) // 8
    if not dataset.file_meta.TransferSyntaxUID.is_compressed and path.stat().st_size < needed:
        raise ImageError(f"{path}: is {path.stat().st_size} bytes, its pixels alone are {needed}")
    return patient


@dataclass
class _Files:
    """Files of one series in one folder, what the first one states, and the UIDs of all."""

    stated: Mapping[str, str]
    names: list[str] = field(default_factory=list)
    instances: set[str] = field(default_factory=set)


def _named(
    folder: Path, found: Mapping[tuple[Path, str], _Files], damaged: dict[Path, dict[str, str]]
) -> Iterator[FoundSeries]:
    """Yield the series with their names and problems; take what damaged files are theirs for sure."""
    series_in = Counter(here for here, _ in found)
    folders_of: dict[str, list[Path]] = {}
    for here, uid in found:
        folders_of.setdefault(uid or str(here), []).append(here)
    for uid, folders in folders_of.items():
        parts = [found[here, uid if (here, uid) in found else ""] for here in folders]
        problem = None
        for here in folders:
            if series_in[here] == 1 and here in damaged:
                problem = _gap(damaged.pop(here), sum(len(part.names) for part in parts))
        if len(folders) > 1 and sum(len(part.instances) for part in parts) > len(
            set().union(*(part.instances for part in parts))
        ):
            places = ", ".join(_place(one, folder) for one in folders[:5])
            problem = (
                f"series {uid} lies in {len(folders)} folders, with copies of the same files: {places}. Take "
                "the copies out."
            )
            for here, part in zip(folders, parts, strict=True):
                name = _name(folder, here, part.names[0], series_in[here] > 1)
                yield FoundSeries(name, here, tuple(part.names), part.stated, f"{printable(here)}: {problem}")
            continue
        home = Path(os.path.commonpath(folders))
        files = [
            (here / name).relative_to(home).as_posix()
            for here, part in zip(folders, parts, strict=True)
            for name in part.names
        ]
        several = series_in[home] > 1 if len(folders) == 1 else len(folders_of) > 1
        yield FoundSeries(
            _name(folder, home, files[0], several), home, tuple(files), parts[0].stated, problem
        )


def _name(folder: Path, here: Path, first: str, several: bool) -> str:
    name = printable(folder.absolute().name) if here == folder else _place(here, folder)
    return f"{name}/series of {printable(first)}" if several else name


def _gap(damaged: Mapping[str, str], good: int) -> str:
    first = next(iter(damaged.values()))
    more = f" (and {len(damaged) - 1} more files)" if len(damaged) > 1 else ""
    return f"{first}{more} Without it there would be a gap in the series ({good} of its files can be read)."


def _place(path: Path, folder: Path) -> str:
    return printable(Path(os.path.relpath(path, folder)).as_posix())
