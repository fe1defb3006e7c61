"""Make a cohort of a patient's DICOM series: a case for each slice, or for each series as a volume."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from threefold.cohorts.cohort import Cohort, CohortSpec
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


def import_dicom(
    folder: Path,
    out: Path,
    *,
    spec: CohortSpec,
    site: str,
    patient_id: str,
    label: str | None = None,
    uneven: Uneven = "refuse",
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of the series of one patient: a case for each slice, or for each series as a volume.

    A series that can't be read as a whole, also for one damaged file, is left out, as provenance.json says:
    a gap in a volume would pass for tissue. Of slices that are kept as scanned, the damaged one alone is.

    Args:
        folder: holds the series, at any depth. Of several the cases are numbered.
        out: the new folder, with NIfTI files in the series' own units (HU for CT).
        spec: what the columns will mean (`dimensions`: slices or volumes).
        site, patient_id: of the series; names in DICOM headers are not taken over.
        label: class name of every case; None: unknown.
        uneven: a series with uneven or tilted slices is refused; resampled onto an even, upright grid; or
            (slices only) kept as scanned, each slice on its own plane, which changes no voxel.
        progress: called with the number of series done and of all.

    Raises:
        CohortError: if the combination is not possible, the label is no class of `spec`, the files are of
            several patients, no series can be read, or `out` exists.
        ImageError: the folder is not there, or holds no series.
    """
    if spec.dimensions == 3 and uneven == "keep":
        raise CohortError(
            f"{folder}: a volume can't keep uneven slices; resample them (--uneven resample), or make a "
            "cohort of slices (dimensions: 2)."
        )
    for problem in label_problems(label, spec) if label is not None else ():
        raise CohortError(sentence(f"label: {problem}"))
    name = f"{site}-{patient_id}"
    check_case_id(name)
    found = find_series(Path(folder))
    if not found.series and not found.unreadable:
        others = f" It has {', '.join(found.passed[:5])}." if found.passed else ""
        raise ImageError(f"{folder}: expected DICOM series in it, found no DICOM image.{others}")
    _refuse_several_patients(Path(folder), found.series)
    notes: dict[str, list[str]] = {}
    rows: list[dict[str, Any]] = []
    with staging(out) as stage:
        stage.failed.update(found.unreadable)
        for number, series in enumerate(found.series, start=1):
            own_name = name if len(found.series) == 1 else f"{name}-{number}"
            with stage.sparing(series.name):
                for case_id, read in _cases_of(series, own_name, spec.dimensions, uneven):
                    with stage.sparing(case_id):
                        image = read()
                        target = stage.new_file("image", case_id, ".nii.gz")
                        write_nifti(stage.folder / target, image.array, image.affine)
                        rows.append(
                            {
                                "case_id": case_id,
                                "patient_id": patient_id,
                                "site": site,
                                "image": target,
                                "label": label,
                                "origin": _origin(image.source, Path(folder)),
                            }
                        )
                        for note in image.notes:
                            notes.setdefault(note, []).append(case_id)
            if progress is not None:
                progress(number, len(found.series))
        columns = {**spec.columns, "origin": "the file or folder that the case was made of"}
        provenance = {
            "made by": "import dicom",
            "uneven": uneven,
            "notes": notes,
            "passed over": list(found.passed),
        }
        stage.finish(spec.model_copy(update={"columns": columns}), rows, provenance, allow_outside=False)
    return finished(out, allow_outside=False)


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
            "All cases would be one patient's: import each patient's folder by itself, and merge the cohorts."
        )
