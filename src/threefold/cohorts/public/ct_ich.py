"""PhysioNet CT-ICH: head-CT scans with drawn haemorrhages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import Cohort
from threefold.cohorts.public.ct_ich_pictures import PICTURES, import_ct_ich_pictures
from threefold.cohorts.public.haemorrhage import CLASSES, haemorrhage_spec
from threefold.cohorts.staging import finished, staging
from threefold.cohorts.table import read_text, split_table
from threefold.errors import CohortError, ImageError
from threefold.images.folders import folders_below
from threefold.images.reading import read_header

Progress = Callable[[int, int], None]

_TABLES = ("hemorrhage_diagnosis_raw_ct.csv", "hemorrhage_diagnosis.csv")
_KINDS = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")


def import_ct_ich(
    folder: Path, out: Path, *, site: str = "ct-ich", copy: bool = True, progress: Progress | None = None
) -> Cohort:
    """Make a cohort of CT-ICH: of its pictures where slices.csv is there, else of its scans.

    Args:
        folder: as `import_ct_ich_pictures` or `import_ct_ich_scans` wants it.
        out: the new folder.
        site: name of the hospital.
        copy: copy the scans; else the table refers to them where they are.
        progress: called with the number of slices done and of all.

    Raises:
        CohortError: naming file, row and column, if the folder is not laid out so; or pictures, which are
            always written anew, are to be referred to.
        ImageError: if a file can't be read.
    """
    folder = Path(folder)
    if (folder / PICTURES).is_file():
        if not copy:
            raise CohortError(
                f"{folder}: holds pictures ({PICTURES}), which are written anew in HU: there is nothing "
                "to refer to. Leave out --reference (in Python copy=False)."
            )
        return import_ct_ich_pictures(folder, out, site=site, progress=progress)
    return import_ct_ich_scans(folder, out, site=site, copy=copy, progress=progress)


def import_ct_ich_scans(
    folder: Path, out: Path, *, site: str = "ct-ich", copy: bool = True, progress: Progress | None = None
) -> Cohort:
    """Make a cohort of PhysioNet CT-ICH 1.3.1 as it is downloaded (Hssayeni et al. 2020).

    A case is a slice of a scan; the label is whether the table says that it shows a haemorrhage.

    Args:
        folder: holds ct_scans/NNN.nii, masks/NNN.nii (0 and 255) and hemorrhage_diagnosis_raw_ct.csv (or
            hemorrhage_diagnosis.csv).
        out: the new folder.
        site: name of the hospital.
        copy: copy the scans; else the table refers to them where they are.
        progress: called with the number of slices done and of all.

    Raises:
        CohortError: naming file, row and column, if the folder is not laid out so or the table names a
            scan or a slice that is not there.
    """
    folder = Path(folder)
    table = next((path for name in _TABLES if (path := folder / name).is_file()), None)
    if table is None:
        raise CohortError(
            f"{folder}: neither {' nor '.join(_TABLES)} is there. Name the folder that holds it, "
            "ct_scans and masks."
        )
    if not (folder / "ct_scans").is_dir():
        raise CohortError(
            f"{folder}: has no folder ct_scans. Earlier releases hold Patients_CT, with pictures; get "
            "version 1.3.1, which holds the scans."
        )
    unlisted: dict[Path, str] = {}
    below = folders_below(folder / "masks", unlisted, [])
    if not any(".nii" in name for _, names in below for name in names):
        if (folder / "masks").is_dir() and unlisted:
            raise CohortError(next(iter(unlisted.values())))
        raise CohortError(
            f"{folder}: expected the drawn haemorrhages as masks/NNN.nii beside ct_scans, found none. Every "
            "mask would be absent: get that folder of version 1.3.1 too."
        )
    header, lines = split_table(read_text(table), table)
    records = [(number, cells) for number, cells in lines if any(value.strip() for value in cells.values())]
    names = {_plain(name): name for name in header}
    for needed in ("patientnumber", "slicenumber", "nohemorrhage", *_KINDS):
        if needed not in names:
            raise CohortError(f"{table}: no column like '{needed}'; found {', '.join(header)}.")
    depths: dict[Path, int] = {}
    rows = []
    with staging(out) as stage:
        for number, cells in records:
            plain = {key: cells[name] for key, name in names.items()}
            with stage.sparing(f"row {number}"):
                row = _scan_row(plain, folder, site, depths, number)
                for column in ("image", "mask"):
                    if row[column] is not None:
                        row[column] = stage.place(row[column], column, f"{site}-{row['scan']}", copy=copy)
                rows.append(row)
            if progress is not None:
                progress(len(rows) + len(stage.failed), len(records))
        columns = {"scan": "number of the scan", "subtypes": "kinds of haemorrhage on the slice"}
        spec = haemorrhage_spec("ct-ich", dimensions=2, columns=columns, mask_values=(1, 255))
        provenance = {
            "made by": "import ct-ich",
            "source": "PhysioNet ct-ich, Hssayeni et al. 2020",
            "copied": copy,
        }
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _plain(name: str) -> str:
    """Return a column's name without what its versions spell differently."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _scan_row(
    cells: Mapping[str, str], folder: Path, site: str, depths: dict[Path, int], number: int
) -> dict[str, Any]:
    try:
        patient, index = int(cells["patientnumber"]), int(cells["slicenumber"]) - 1
        none, *kinds = (int(cells[name]) for name in ("nohemorrhage", *_KINDS))
    except ValueError as error:
        raise CohortError(f"row {number} of the diagnoses: {error}. Expected whole numbers.") from None
    if none == (sum(kinds) > 0):
        raise CohortError(
            f"row {number} of the diagnoses: No_Hemorrhage is {none} and {sum(kinds)} kinds are named. "
            "Correct the row."
        )
    image, mask = (_nifti(folder / part / f"{patient:03d}") for part in ("ct_scans", "masks"))
    if image is None:
        raise ImageError(f"row {number} of the diagnoses: there is no {folder}/ct_scans/{patient:03d}.nii.")
    if image not in depths:
        depths[image] = read_header(image).shape[2]
    if not 0 <= index < depths[image]:
        raise ImageError(
            f"row {number} of the diagnoses: slice {index + 1} of {image}, which has {depths[image]}."
        )
    named = [name for name, there in zip(_KINDS, kinds, strict=True) if there]
    return {
        "case_id": f"{site}-{patient:03d}-{index:03d}",
        "patient_id": f"{site}-{patient:03d}",
        "site": site,
        "image": image,
        "slice": index,
        "mask": mask,
        "label": CLASSES[int(bool(named))],
        "scan": f"{patient:03d}",
        "subtypes": " ".join(named),
    }


def _nifti(stem: Path) -> Path | None:
    return next((path for end in (".nii", ".nii.gz") if (path := Path(f"{stem}{end}")).is_file()), None)
