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


@dataclass(frozen=True)
class FoundSeries:
    """Files of one series.

    Attributes:
        name: its folder, as the search sees it; where that holds several series, and of which file it begins.
        folder: that its files lie in.
        files: their names, sorted.
        patient: PatientID, as the first file states it; empty where it does not.
        problem: why it can't be read as the series that it was; None: nothing speaks against it so far.
    """

    name: str
    folder: Path
    files: tuple[str, ...]
    patient: str
    problem: str | None


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
    have a gap. Hidden files and folders are not looked at, links to folders not followed.

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
                uid, patient = (
                    short(dataset.get(name) or "", 80) for name in ("SeriesInstanceUID", "PatientID")
                )
        except ImageError as error:
            damaged[path.parent][path.name] = str(error)
            continue
        if other is not None:
            passed.append(f"{_place(path, folder)} ({other})")
            continue
        found.setdefault((path.parent, uid), _Files(patient)).names.append(path.name)
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
    """Files of one series in one folder, and the first one's PatientID."""

    patient: str
    names: list[str] = field(default_factory=list)


def _named(
    folder: Path, found: Mapping[tuple[Path, str], _Files], damaged: dict[Path, dict[str, str]]
) -> Iterator[FoundSeries]:
    """Yield the series with their names and problems; take what damaged files are theirs for sure."""
    series_in = Counter(here for here, _ in found)
    folders_of = {uid: [here for here, other in found if other == uid] for _, uid in found if uid}
    for (here, uid), files in found.items():
        name, problem = printable(folder.absolute().name) if here == folder else _place(here, folder), None
        if series_in[here] > 1:
            name += f"/series of {printable(files.names[0])}"
        elif here in damaged:
            problem = _gap(damaged.pop(here), len(files.names))
        several = folders_of.get(uid, [])
        if len(several) > 1:
            places = ", ".join(_place(one, folder) for one in several[:5])
            problem = (
                f"{printable(here)}: series {uid} lies in {len(several)} folders: {places}. Put its files "
                "into one, and take copies out."
            )
        yield FoundSeries(name, here, tuple(files.names), files.patient, problem)


def _gap(damaged: Mapping[str, str], good: int) -> str:
    first = next(iter(damaged.values()))
    more = f" (and {len(damaged) - 1} more files)" if len(damaged) > 1 else ""
    return f"{first}{more} Without it there would be a gap in the series ({good} of its files can be read)."


def _place(path: Path, folder: Path) -> str:
    return printable(Path(os.path.relpath(path, folder)).as_posix())
