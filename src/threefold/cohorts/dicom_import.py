"""Make a cohort of DICOM series as they come: a case for each slice, or for each series as a volume."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from threefold.cohorts.cohort import UNKNOWN, Cohort, CohortSpec
from threefold.cohorts.staging import check_case_id, finished, staging
from threefold.cohorts.table import label_problems
from threefold.errors import CohortError, ImageError
from threefold.file_names import printable
from threefold.images.dicom import Slice, open_series, read_series, read_slice
from threefold.images.dicom_search import FoundSeries, find_series
from threefold.images.geometry import Image, slice_of
from threefold.images.writing import write_nifti
from threefold.validation import sentence

Progress = Callable[[int, int], None]
Uneven = Literal["refuse", "resample", "keep"]


@dataclass(frozen=True)
class Identity:
    """What the table says of whose a series is, and where it was made.

    Attributes:
        patient_id, site: of all series; None: of each as its headers state it.
        keep_identifiers: write what headers state as it is, with names and descriptions; otherwise ids,
            institution and station become pseudonyms, and names are left out.
        key: secret of the pseudonyms: with the same key a patient has the same one in every cohort.
    """

    patient_id: str | None = None
    site: str | None = None
    keep_identifiers: bool = False
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def columns(self, stated: Mapping[str, str]) -> dict[str, str]:
        """Return the columns that say so of a series, by what its first file states.

        Raises:
            ImageError: the patient is not known.
        """
        patient, institution = stated.get("PatientID"), stated.get("InstitutionName")
        if self.patient_id is None and patient is None:
            raise ImageError("has no PatientID. Import it by itself, and name the patient (--patient).")
        found = {
            "patient_id": self.patient_id or self.named("patient", patient or ""),
            "site": self.site or (UNKNOWN if institution is None else self.named("site", institution)),
        }
        if self.patient_id is not None:
            return found
        further = {column: stated[name] for column, name in _ACQUISITION.items() if name in stated}
        for column, name in _IDENTIFYING.items():
            if name in stated:
                further[column] = self.named(column, stated[name])
        if self.keep_identifiers:
            further |= {column: stated[name] for column, name in _NAMES.items() if name in stated}
        return found | further

    def named(self, kind: str, value: str) -> str:
        """Return a value as it is, or its pseudonym: a keyed hash (HMAC-SHA-256, 48 bits of it)."""
        if self.keep_identifiers:
            return value
        digest = hmac.new(self.key, f"{kind}:{value}".encode(), hashlib.sha256).hexdigest()
        return f"{kind}-{digest[:12]}"


_ACQUISITION = {
    "modality": "Modality", "manufacturer": "Manufacturer", "model": "ManufacturerModelName",
    "kernel": "ConvolutionKernel", "kvp": "KVP", "field_strength": "MagneticFieldStrength",
    "slice_thickness": "SliceThickness",
}  # fmt: skip
_IDENTIFYING = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "station": "StationName"}
_NAMES = {
    "patient_name": "PatientName", "study_description": "StudyDescription",
    "series_description": "SeriesDescription",
}  # fmt: skip


def import_dicom(
    folder: Path,
    out: Path,
    *,
    spec: CohortSpec,
    identity: Identity,
    label: str | None = None,
    uneven: Uneven = "refuse",
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of a folder of DICOM series: a case for each slice, or for each series as a volume.

    A series that can't be read as a whole, also for one damaged file, is left out, as provenance.json says:
    a gap in a volume would pass for tissue. Of slices that are kept as scanned, the damaged one alone is.

    Args:
        folder: holds the series of one patient, or of many, at any depth. Cases are numbered by patient.
        out: the new folder, with NIfTI files in the series' own units (HU for CT).
        spec: what the columns will mean (`dimensions`: slices or volumes).
        identity: whose the series are. Of a patient that is named, the series have to be one patient's; else
            there are also columns of the study, the series, the scanner and the acquisition.
        label: class name of every case; None: unknown.
        uneven: a series with uneven or tilted slices is refused; resampled onto an even, upright grid; or
            (slices only) kept as scanned, each slice on its own plane, which changes no voxel.
        progress: called with the number of series done and of all.

    Raises:
        CohortError: if the combination is not possible, the label is no class of `spec`, the files are of
            several patients and one is named, no series can be read, or `out` exists.
        ImageError: the folder is not there, or holds no series.
    """
    if spec.dimensions == 3 and uneven == "keep":
        raise CohortError(
            f"{folder}: a volume can't keep uneven slices; resample them (--uneven resample), or make a "
            "cohort of slices (dimensions: 2)."
        )
    for problem in label_problems(label, spec) if label is not None else ():
        raise CohortError(sentence(f"label: {problem}"))
    if identity.patient_id is not None:
        check_case_id(f"{identity.site or UNKNOWN}-{identity.patient_id}")
    found = find_series(Path(folder))
    if not found.series and not found.unreadable:
        others = f" It has {', '.join(found.passed[:5])}." if found.passed else ""
        raise ImageError(f"{folder}: expected DICOM series in it, found no DICOM image.{others}")
    if identity.patient_id is not None:
        _refuse_several_patients(Path(folder), found.series)
    names = _names_of_cases(found.series, identity)
    notes: dict[str, list[str]] = {}
    rows: list[dict[str, Any]] = []
    with staging(out) as stage:
        stage.failed.update(found.unreadable)
        for number, (series, own_name) in enumerate(zip(found.series, names, strict=True), start=1):
            with stage.sparing(series.name):
                columns = identity.columns(series.stated)
                for case_id, read in _cases_of(series, own_name, spec.dimensions, uneven):
                    with stage.sparing(case_id):
                        image = read()
                        target = stage.new_file("image", case_id, ".nii.gz")
                        write_nifti(stage.folder / target, image.array, image.affine)
                        row = {"case_id": case_id, **columns, "image": target, "label": label}
                        if identity.patient_id is not None or identity.keep_identifiers:
                            row["origin"] = _origin(image.source, Path(folder))
                        rows.append(row)
                        for note in image.notes:
                            notes.setdefault(note, []).append(case_id)
            if progress is not None:
                progress(number, len(found.series))
        provenance = {
            "made by": "import dicom",
            "uneven": uneven,
            "identifiers": "kept" if identity.keep_identifiers else "pseudonyms",
            "notes": notes,
            "passed over": list(found.passed),
        }
        stage.finish(_described(spec, rows), rows, provenance, allow_outside=False)
    return finished(out, allow_outside=False)


_DESCRIPTIONS = {
    "origin": "the file or folder that the case was made of",
    "study": "the examination",
    "series": "the DICOM series",
    "station": "the scanner",
    "kvp": "tube voltage, kV",
    "field_strength": "T",
    "slice_thickness": "mm",
}


def _described(spec: CohortSpec, rows: Sequence[Mapping[str, Any]]) -> CohortSpec:
    """Return the description with the columns that the headers gave."""
    known = {"case_id", "patient_id", "site", "image", "label"}
    further = dict.fromkeys(column for row in rows for column in row if column not in known)
    columns = {column: _DESCRIPTIONS.get(column, "as the DICOM header states it") for column in further}
    unknown = spec.unknown
    if rows and all(row["site"] == UNKNOWN for row in rows) and "site" not in unknown:
        unknown = (*unknown, "site")
    return spec.model_copy(update={"columns": {**spec.columns, **columns}, "unknown": unknown})


def _names_of_cases(found: Sequence[FoundSeries], identity: Identity) -> list[str]:
    """Return how the ids of each series' cases begin: numbered, where there are several, by patient."""
    if identity.patient_id is not None:
        name = f"{identity.site or UNKNOWN}-{identity.patient_id}"
        return [name if len(found) == 1 else f"{name}-{number}" for number in range(1, len(found) + 1)]
    hidden = replace(identity, keep_identifiers=False)
    counts: Counter[str] = Counter()
    names = []
    for one in found:
        patient = hidden.named("patient", one.patient)
        counts[patient] += 1
        names.append(f"{patient}-{counts[patient]}")
    return names


def _cases_of(
    series: FoundSeries, name: str, dimensions: int, uneven: Uneven
) -> Iterator[tuple[str, Callable[[], Image]]]:
    """Yield each case's id, and what reads it; slices are in the order of their places along the normal.

    Raises:
        ImageError: the series can't be read as a whole, or its slices can't be put in order.
    """
    if series.problem is not None:
        raise ImageError(series.problem)
    if uneven == "keep":
        opened = open_series(series.folder, series.files)
        how = f"kept as scanned: distances {opened.distances()}, tilt {opened.tilt:.1f} degrees"
        for index, one in enumerate(opened.slices):
            yield f"{name}-{index:03d}", partial(_as_scanned, one, how)
        return
    volume = read_series(series.folder, files=series.files, uneven=uneven)
    if dimensions == 3:
        yield name, lambda: volume
        return
    for index in range(volume.array.shape[2]):
        yield f"{name}-{index:03d}", partial(slice_of, volume, index)


def _as_scanned(one: Slice, how: str) -> Image:
    image = read_slice(one)
    return replace(image, notes=(*image.notes, how))


def _origin(source: Path, folder: Path) -> str:
    """Return the place of a file or folder below the one that was imported, or that one's own name."""
    return printable(folder.absolute().name if source == folder else os.path.relpath(source, folder))


def _refuse_several_patients(folder: Path, found: tuple[FoundSeries, ...]) -> None:
    """Refuse series of several patients, without a word of who they are."""
    first_of: dict[str, str] = {}
    for series in (one for one in found if one.patient):
        first_of.setdefault(series.patient, series.name)
    if len(first_of) > 1:
        names = ", ".join([*first_of.values()][:5])
        raise CohortError(
            f"{folder}: holds series of {len(first_of)} patients by their PatientID, for example {names}. "
            "All cases would be one patient's: leave --patient out, and the headers say whose each is."
        )
