"""Importers of public head-CT sets that come as DICOM: CQ500 and RSNA 2019."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import Cohort, CohortSpec
from threefold.cohorts.importers import HEAD_CT_CLASSES
from threefold.cohorts.public_ct import BRAIN
from threefold.cohorts.staging import finished, staging
from threefold.cohorts.table import read_text, split_table
from threefold.errors import CohortError, ImageError

Progress = Callable[[int, int], None]

_READERS = ("R1", "R2", "R3")
_CQ500_KINDS = ("IPH", "IVH", "SDH", "EDH", "SAH")
THIN_BELOW = 2.0
"""mm between slices below which a series of CQ500 is thin."""
_UNWANTED = re.compile(r"bone|post|(?<!pre )(?<!pre_)(?<!pre-)contrast", re.IGNORECASE)
_RSNA_KINDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
_RSNA_TABLE, _RSNA_FOLDER = "stage_2_train.csv", "stage_2_train"


def import_cq500(
    folder: Path,
    out: Path,
    *,
    thin: bool = False,
    site: str = "cq500",
    copy: bool = True,
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of CQ500 (Chilamkurthy et al. 2018): a volume for each scan, read by three radiologists.

    The label is what most readers say of an intracranial haemorrhage; the columns of its kinds hold 1 where
    most readers see that kind. Of a scan's series the one without contrast and not in a bone kernel is
    taken. A scan without such a series, with several, or with uneven or missing slices is left out;
    provenance.json says which and why.

    Args:
        folder: holds reads.csv, and at any depth CQ500CTn CQ500CTn/Unknown Study/SERIES/*.dcm.
        out: the new folder.
        thin: take the series whose slices are less than 2 mm apart; else the other, or the only one.
        site: name of the hospital.
        copy: copy the series; else the table refers to them where they are.
        progress: called with the number of scans done and of all.

    Raises:
        CohortError: naming file, row and column, if the folder is not laid out so, or no scan is left.
    """
    from threefold.images.dicom import series_grid

    folder = Path(folder)
    table = folder / "reads.csv"
    header, records = split_table(read_text(table), table)
    for name in ("name", *(f"{reader}:{kind}" for reader in _READERS for kind in ("ICH", *_CQ500_KINDS))):
        if name not in header:
            raise CohortError(f"{table}: no column '{name}'; found {', '.join(header[:12])}. Is it CQ500's?")
    scans = {scan: path for path in sorted(folder.rglob("CQ500CT*")) if (scan := _scan(path.name))}
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with staging(out) as stage:
        for done, (number, cells) in enumerate(records, start=1):
            case_id = f"{site}-{_scan(cells['name']) or cells['name']}"
            try:
                series = _series(scans.get(_scan(cells["name"]) or ""), thin=thin)
                series_grid(series)
            except (CohortError, ImageError) as problem:
                left_out[case_id] = str(problem)
            else:
                row: dict[str, Any] = {
                    "case_id": case_id,
                    "patient_id": case_id,
                    "site": site,
                    "image": stage.place(series, "image", case_id, copy=copy),
                    "label": HEAD_CT_CLASSES[_majority(cells, "ICH", table, number)],
                }
                rows.append(row | {kind: _majority(cells, kind, table, number) for kind in _CQ500_KINDS})
            if progress is not None:
                progress(done, len(records))
        if not rows:
            first = next(iter(left_out.items()), ("reads.csv", "has no rows"))
            raise CohortError(f"{folder}: no scan can be taken; {first[0]}: {first[1]}")
        spec = CohortSpec(
            name="cq500",
            modality="ct",
            dimensions=3,
            classes=HEAD_CT_CLASSES,
            positive=HEAD_CT_CLASSES[1],
            intensity=BRAIN,
            columns={kind: f"1 where most readers see {kind}" for kind in _CQ500_KINDS},
        )
        provenance = {
            "made by": "import cq500",
            "source": "CQ500, Chilamkurthy et al. 2018, CC BY-NC-SA 4.0",
            "series": "thin" if thin else "thick",
            "left out": left_out,
            "copied": copy,
        }
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def import_rsna(
    folder: Path,
    out: Path,
    *,
    patients: int | None = None,
    site: str = "rsna",
    copy: bool = True,
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of the RSNA 2019 intracranial haemorrhage challenge: slices with labels, without masks.

    Patients are those of the files' headers. A file that can't be read is left out; provenance.json says
    which and why.

    Args:
        folder: holds stage_2_train.csv (ID,Label with rows ID_xxx_subtype) and stage_2_train/ID_xxx.dcm.
        out: the new folder.
        patients: take so many of them, drawn by the hash of their ids, the same ones each time; None: all.
        site: name of the hospital; the set names none.
        copy: copy the slices; else the table refers to them where they are.
        progress: called with the number of files looked at and of all.

    Raises:
        CohortError: naming file and row, if the folder is not laid out so or a label contradicts another.
    """
    folder = Path(folder)
    labels = _rsna_labels(folder / _RSNA_TABLE)
    whose, left_out = _rsna_patients(folder / _RSNA_FOLDER, list(labels), progress)
    chosen = {*sorted({*whose.values()}, key=_draw)[:patients]}
    rows = []
    with staging(out) as stage:
        for name, patient in whose.items():
            if patient not in chosen:
                continue
            kinds = labels[name]
            file = folder / _RSNA_FOLDER / f"{name}.dcm"
            row: dict[str, Any] = {
                "case_id": name,
                "patient_id": patient,
                "site": site,
                "image": stage.place(file, "image", name, copy=copy),
                "label": HEAD_CT_CLASSES[kinds["any"]],
            }
            rows.append(row | {kind: kinds[kind] for kind in _RSNA_KINDS})
        if not rows:
            raise CohortError(
                f"{folder / _RSNA_FOLDER}: none of the {len(labels)} slices of the table is there."
            )
        spec = CohortSpec(
            name="rsna-2019",
            modality="ct",
            dimensions=2,
            classes=HEAD_CT_CLASSES,
            positive=HEAD_CT_CLASSES[1],
            intensity=BRAIN,
            columns={kind: f"1 where a reader saw {kind} haemorrhage" for kind in _RSNA_KINDS},
        )
        provenance = {
            "made by": "import rsna",
            "source": "RSNA 2019 intracranial hemorrhage detection, Flanders et al. 2020",
            "patients": patients,
            "left out": left_out,
            "copied": copy,
        }
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _scan(name: str) -> str | None:
    """Return the scan that a name of CQ500 is about: CT12 of CQ500-CT-12 or of CQ500CT12 CQ500CT12."""
    found = re.match(r"CQ500-?CT-?(\d+)\b", name)
    return None if found is None else f"CT{int(found[1])}"


def _series(scan: Path | None, *, thin: bool) -> Path:
    """Return the folder of the scan's series to take, by the distance of its slices.

    Names say the distance now and then only, and "pre contrast" of a plain series.
    """
    from threefold.images.dicom import open_series

    if scan is None:
        raise CohortError("its folder is not there")
    spacings: dict[Path, float] = {}
    for folder in sorted({path.parent for path in scan.rglob("*.dcm")}):
        if _UNWANTED.search(folder.name) is None:
            spacings[folder] = open_series(folder).spacing
    wanted = [folder for folder, mm in spacings.items() if (mm < THIN_BELOW) == thin]
    if not thin and not wanted:
        wanted = [*spacings]
    if len(wanted) != 1:
        names = ", ".join(f"{folder.name} ({mm:g} mm)" for folder, mm in spacings.items()) or "none"
        kind = "thin" if thin else "plain"
        raise CohortError(f"expected one {kind} series, found {len(wanted)} of: {names}")
    return wanted[0]


def _majority(cells: Mapping[str, str], kind: str, table: Path, number: int) -> int:
    votes = [cells[f"{reader}:{kind}"].strip() for reader in _READERS]
    others = [vote for vote in votes if vote not in ("0", "1")]
    if others:
        raise CohortError(
            f"{table}: row {number}, {kind}: expected 0 or 1 of each reader, found '{others[0]}'."
        )
    return int(sum(map(int, votes)) >= 2)


def _rsna_labels(table: Path) -> dict[str, dict[str, int]]:
    """Return by slice its labels by kind, `any` among them; rows that are there twice count once."""
    found: dict[str, dict[str, int]] = {}
    for number, name, value in _rsna_rows(table):
        slice_name, _, kind = name.rpartition("_")
        if value not in ("0", "1") or kind not in ("any", *_RSNA_KINDS):
            raise CohortError(f"{table}: row {number}: expected ID_xxx_KIND,0 or 1, found '{name},{value}'.")
        if found.setdefault(slice_name, {}).setdefault(kind, int(value)) != int(value):
            raise CohortError(f"{table}: row {number}: '{name}' has another label in an earlier row.")
    for slice_name, kinds in found.items():
        missing = {"any", *_RSNA_KINDS} - {*kinds}
        if missing:
            raise CohortError(f"{table}: {slice_name} has no row for {', '.join(sorted(missing))}.")
    return found


def _rsna_rows(table: Path) -> Iterator[tuple[int, str, str]]:
    """Yield number, ID and Label; the table has 4.5 million rows, so that it is read as it comes."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = next(reader, [])
            if header[:2] != ["ID", "Label"]:
                raise CohortError(f"{table}: expected the columns ID,Label, found {','.join(header)}.")
            for number, row in enumerate(reader, start=1):
                if row:
                    yield number, row[0], row[1].strip() if len(row) > 1 else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(f"{table}: can't be read ({error}). Name the folder that holds it.") from error


def _rsna_patients(
    folder: Path, names: Sequence[str], progress: Progress | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the patient of each slice that can be read, and why the others can't."""
    from threefold.images.dicom import patient_of

    found: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for done, name in enumerate(names, start=1):
        path = folder / f"{name}.dcm"
        try:
            found[name] = patient_of(path)
        except ImageError as problem:
            left_out[name] = str(problem)
        if progress is not None:
            progress(done, len(names))
    return found, left_out


def _draw(patient: str) -> bytes:
    return hashlib.sha256(patient.encode()).digest()
