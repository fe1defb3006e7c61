"""Importers of public head-CT sets that come as NIfTI: PhysioNet CT-ICH as it is published, and BHSD."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec, MaskSpec
from threefold.cohorts.importers import HEAD_CT_CLASSES
from threefold.cohorts.staging import Staging, ending, finished, staging
from threefold.cohorts.table import read_text, split_table
from threefold.errors import CohortError
from threefold.images.reading import read_header

Progress = Callable[[int, int], None]
BRAIN = IntensitySpec(unit="HU", window=(0.0, 80.0))

_CT_ICH_TABLES = ("hemorrhage_diagnosis_raw_ct.csv", "hemorrhage_diagnosis.csv")
_CT_ICH_KINDS = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")
_BHSD_STRUCTURES = ("EDH", "IPH", "IVH", "SAH", "SDH")
_BHSD_PARTS = ("label_192", "unlabel_2000")


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
    table = next((path for name in _CT_ICH_TABLES if (path := folder / name).is_file()), None)
    if table is None:
        raise CohortError(
            f"{folder}: neither {' nor '.join(_CT_ICH_TABLES)} is there. Name the folder that holds it, "
            "ct_scans and masks."
        )
    if not (folder / "ct_scans").is_dir():
        raise CohortError(
            f"{folder}: has no folder ct_scans. Earlier releases hold Patients_CT, with pictures; get "
            "version 1.3.1, which holds the scans."
        )
    header, lines = split_table(read_text(table), table)
    records = [(number, cells) for number, cells in lines if any(value.strip() for value in cells.values())]
    names = {_plain(name): name for name in header}
    for needed in ("patientnumber", "slicenumber", "nohemorrhage", *_CT_ICH_KINDS):
        if needed not in names:
            raise CohortError(f"{table}: no column like '{needed}'; found {', '.join(header)}.")
    depths: dict[Path, int] = {}
    rows = []
    with staging(out) as stage:
        for number, cells in records:
            row = _ct_ich_row({key: cells[name] for key, name in names.items()}, folder, site, depths, number)
            for column in ("image", "mask"):
                if row[column] is not None:
                    row[column] = stage.place(row[column], column, f"{site}-{row['scan']}", copy=copy)
            rows.append(row)
            if progress is not None:
                progress(len(rows), len(records))
        spec = CohortSpec(
            name="ct-ich",
            modality="ct",
            dimensions=2,
            classes=HEAD_CT_CLASSES,
            positive=HEAD_CT_CLASSES[1],
            mask=MaskSpec(name="haemorrhage", values=(1, 255)),
            intensity=BRAIN,
            columns={"scan": "number of the scan", "subtypes": "kinds of haemorrhage on the slice"},
        )
        provenance = {
            "made by": "import ct-ich",
            "source": "PhysioNet ct-ich, Hssayeni et al. 2020",
            "copied": copy,
        }
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def import_bhsd(
    folder: Path,
    out: Path,
    *,
    dimensions: Literal[2, 3] = 3,
    site: str = "bhsd",
    copy: bool = True,
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of BHSD (Wu et al. 2023): volumes whose kinds of haemorrhage are drawn, and others.

    The files name no patients: each volume is taken for another patient's, which provenance.json repeats.

    Args:
        folder: holds label_192 (with `images` and `ground truths`, files of the same names, labels 1 to 5)
            and may hold unlabel_2000 (volumes without labels); or is label_192 itself.
        out: the new folder.
        dimensions: 3: a case is a volume. 2: a case is a slice.
        site: name of the hospital.
        copy: copy the volumes; else the table refers to them where they are.
        progress: called with the number of volumes done and of all.

    Raises:
        CohortError: if the folder is not laid out so, or a volume has no ground truth.
        ImageError: a volume's header can't be read.
    """
    pairs = _bhsd_pairs(Path(folder))
    rows: list[dict[str, Any]] = []
    with staging(out) as stage:
        for done, (image, truth) in enumerate(pairs, start=1):
            rows += _bhsd_rows(stage, image, truth, dimensions, site, copy=copy)
            if progress is not None:
                progress(done, len(pairs))
        spec = CohortSpec(
            name="bhsd",
            modality="ct",
            dimensions=dimensions,
            mask=MaskSpec(name="haemorrhage", values=tuple(range(1, len(_BHSD_STRUCTURES) + 1))),
            structures=_BHSD_STRUCTURES,
            intensity=BRAIN,
        )
        provenance = {
            "made by": "import bhsd",
            "source": "BHSD, Wu et al. 2023",
            "assumed": "each volume is of another patient",
            "copied": copy,
        }
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def slice_rows(row: Mapping[str, Any], slices: int) -> list[dict[str, Any]]:
    """Return a volume's row as one row for each of its slices along the third axis."""
    return [{**row, "case_id": f"{row['case_id']}-{index:03d}", "slice": index} for index in range(slices)]


def _plain(name: str) -> str:
    """Return a column's name without what its versions spell differently."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _ct_ich_row(
    cells: Mapping[str, str], folder: Path, site: str, depths: dict[Path, int], number: int
) -> dict[str, Any]:
    try:
        patient, index = int(cells["patientnumber"]), int(cells["slicenumber"]) - 1
        none, *kinds = (int(cells[name]) for name in ("nohemorrhage", *_CT_ICH_KINDS))
    except ValueError as error:
        raise CohortError(f"row {number} of the diagnoses: {error}. Expected whole numbers.") from None
    if none == (sum(kinds) > 0):
        raise CohortError(
            f"row {number} of the diagnoses: No_Hemorrhage is {none} and {sum(kinds)} kinds are named. "
            "Correct the row."
        )
    image, mask = (_nifti(folder / part / f"{patient:03d}") for part in ("ct_scans", "masks"))
    if image is None:
        raise CohortError(f"row {number} of the diagnoses: there is no {folder}/ct_scans/{patient:03d}.nii.")
    if image not in depths:
        depths[image] = read_header(image).shape[2]
    if not 0 <= index < depths[image]:
        raise CohortError(
            f"row {number} of the diagnoses: slice {index + 1} of {image}, which has {depths[image]}."
        )
    named = [name for name, there in zip(_CT_ICH_KINDS, kinds, strict=True) if there]
    return {
        "case_id": f"{site}-{patient:03d}-{index:03d}",
        "patient_id": f"{site}-{patient:03d}",
        "site": site,
        "image": image,
        "slice": index,
        "mask": mask,
        "label": HEAD_CT_CLASSES[int(bool(named))],
        "scan": f"{patient:03d}",
        "subtypes": " ".join(named),
    }


def _nifti(stem: Path) -> Path | None:
    return next((path for end in (".nii", ".nii.gz") if (path := Path(f"{stem}{end}")).is_file()), None)


def _bhsd_pairs(folder: Path) -> Sequence[tuple[Path, Path | None]]:
    """Return each volume and its ground truth."""
    labelled = folder / _BHSD_PARTS[0] if (folder / _BHSD_PARTS[0]).is_dir() else folder
    images = sorted((labelled / "images").glob("*.nii*"))
    if not images:
        raise CohortError(
            f"{labelled / 'images'}: no NIfTI volumes. Name the folder that holds {_BHSD_PARTS[0]}, with "
            "'images' and 'ground truths' in it."
        )
    pairs: list[tuple[Path, Path | None]] = []
    for image in images:
        truth = labelled / "ground truths" / image.name
        if not truth.is_file():
            raise CohortError(f"{image}: has no ground truth {truth}. Unpack the archive again.")
        pairs.append((image, truth))
    pairs += [(path, None) for path in sorted((folder / _BHSD_PARTS[1]).rglob("*.nii*"))]
    return pairs


def _bhsd_rows(
    stage: Staging, image: Path, truth: Path | None, dimensions: int, site: str, *, copy: bool
) -> list[dict[str, Any]]:
    name = f"{site}-{image.name.removesuffix(ending(image))}"
    placed = None if truth is None else stage.place(truth, "structures", name, copy=copy)
    row = {
        "case_id": name,
        "patient_id": name,
        "site": site,
        "image": stage.place(image, "image", name, copy=copy),
        "mask": placed,
        "structures": placed,
    }
    return [row] if dimensions == 3 else slice_rows(row, read_header(image).shape[2])
