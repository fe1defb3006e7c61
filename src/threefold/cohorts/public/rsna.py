"""The RSNA 2019 intracranial haemorrhage challenge: slices of head CT with labels."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import Cohort
from threefold.cohorts.failures import Failures
from threefold.cohorts.public.haemorrhage import CLASSES, haemorrhage_spec
from threefold.cohorts.staging import finished, staging
from threefold.core.targets import MultilabelTarget
from threefold.errors import CohortError, ImageError
from threefold.paths import Boundary, open_file

Progress = Callable[[int, int], None]

_KINDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
_FINDINGS = ("any", *_KINDS)
_TABLE, _FOLDER = "stage_2_train.csv", "stage_2_train"


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

    `label` says whether a reader saw any haemorrhage, the target `findings` which of the kinds (six labels).

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
    labels = _labels(folder / _TABLE)
    whose, unreadable = _patients(folder / _FOLDER, list(labels), progress)
    chosen = {*sorted({*whose.values()}, key=_draw)[:patients]}
    rows = []
    with staging(out, folder / _FOLDER) as stage:
        stage.failed.update(unreadable)
        for name, patient in whose.items():
            if patient not in chosen:
                continue
            kinds = labels[name]
            file = folder / _FOLDER / f"{name}.dcm"
            with stage.sparing(name):
                row: dict[str, Any] = {
                    "case_id": name,
                    "patient_id": patient,
                    "site": site,
                    "image": stage.place(file, "image", name, copy=copy),
                    "label": CLASSES[kinds["any"]],
                }
                rows.append(row | {f"findings_{kind}": kinds[kind] for kind in _FINDINGS})
        findings = MultilabelTarget(kind="multilabel", classes=_FINDINGS)
        spec = haemorrhage_spec("rsna-2019", dimensions=2, targets={"findings": findings})
        provenance = {
            "made by": "import rsna",
            "source": "RSNA 2019 intracranial hemorrhage detection, Flanders et al. 2020",
            "patients": patients,
            "copied": copy,
        }
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _labels(table: Path) -> dict[str, dict[str, int]]:
    """Return by slice its labels by kind, `any` among them; rows that are there twice count once."""
    found: dict[str, dict[str, int]] = {}
    for number, name, value in _rows(table):
        slice_name, _, kind = name.rpartition("_")
        if value not in ("0", "1") or kind not in _FINDINGS:
            raise CohortError(f"{table}: row {number}: expected ID_xxx_KIND,0 or 1, found '{name},{value}'.")
        if found.setdefault(slice_name, {}).setdefault(kind, int(value)) != int(value):
            raise CohortError(f"{table}: row {number}: '{name}' has another label in an earlier row.")
    for slice_name, kinds in found.items():
        missing = {*_FINDINGS} - {*kinds}
        if missing:
            raise CohortError(f"{table}: {slice_name} has no row for {', '.join(sorted(missing))}.")
    return found


def _rows(table: Path) -> Iterator[tuple[int, str, str]]:
    """Yield number, ID and Label; the table has 4.5 million rows, so that it is read as it comes."""
    try:
        with io.TextIOWrapper(open_file(table), encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            header = next(reader, [])
            if header[:2] != ["ID", "Label"]:
                raise CohortError(f"{table}: expected the columns ID,Label, found {','.join(header)}.")
            for number, row in enumerate(reader, start=1):
                if row:
                    yield number, row[0], row[1].strip() if len(row) > 1 else ""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CohortError(f"{table}: can't be read ({error}). Name the folder that holds it.") from error


def _patients(
    folder: Path, names: Sequence[str], progress: Progress | None
) -> tuple[dict[str, str], Failures]:
    """Return the patient of each slice that can be read, and why the others can't."""
    from threefold.images.dicom_search import patient_of

    found: dict[str, str] = {}
    unreadable: Failures = {}
    boundary = Boundary(folder)
    for done, name in enumerate(names, start=1):
        path = folder / f"{name}.dcm"
        try:
            if (how := boundary.leaves(path)) is not None:
                raise ImageError(how)
            found[name] = patient_of(path)
        except ImageError as problem:
            unreadable[name] = str(problem)
        if progress is not None:
            progress(done, len(names))
    return found, unreadable


def _draw(patient: str) -> bytes:
    return hashlib.sha256(patient.encode()).digest()
