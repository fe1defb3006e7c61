"""CQ500: head-CT scans read by three radiologists."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threefold.cohorts.cohort import Cohort
from threefold.cohorts.public.haemorrhage import CLASSES, haemorrhage_spec
from threefold.cohorts.staging import finished, staging
from threefold.cohorts.table import read_text, split_table
from threefold.errors import CohortError, ImageError, IrregularSeriesError
from threefold.file_names import printable
from threefold.images.folders import folders_below

if TYPE_CHECKING:
    from threefold.images.dicom import Series

Progress = Callable[[int, int], None]

THIN_BELOW = 2.0
"""mm between slices below which a series is thin."""
_FEWEST_IMAGES = 5
"""Images below which a series is a scout."""
_READERS = ("R1", "R2", "R3")
_KINDS = ("IPH", "IVH", "SDH", "EDH", "SAH")
_UNWANTED = re.compile(
    r"bone|post|\d ?cc(?![a-z])|(?<!pre[ _-])(?:contrast|(?<![a-z0-9])(?:c|cect|oral|iv)(?![a-z0-9]))",
    re.IGNORECASE,
)
"""Names of series in a bone kernel or with contrast, such as `CT C THIN` or `CT 4cc sec 150cc D3D on`."""


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
    taken; the column `series` holds its name, by which alone contrast and kernel are told. A scan without
    such a series, with several, or with uneven or missing slices is left out; provenance.json says which and
    why, which series of the others were passed over (scouts, and what can't be read), and which scans failed:
    none of their series can be read.

    Args:
        folder: holds reads.csv, and at any depth CQ500CTn CQ500CTn/Unknown Study/SERIES/*.dcm. Its own
            folders may be links to another disk.
        out: the new folder.
        thin: take the series whose slices are less than 2 mm apart; else the other, or the only one.
        site: name of the hospital.
        copy: copy the series; else the table refers to them where they are.
        progress: called with the number of scans done and of all.

    Raises:
        CohortError: naming file, row and column, if the folder is not laid out so, or no scan is left.
    """
    from threefold.images.dicom import refuse_irregular

    folder = Path(folder)
    table = folder / "reads.csv"
    header, records = split_table(read_text(table), table)
    for name in ("name", *(f"{reader}:{kind}" for reader in _READERS for kind in ("ICH", *_KINDS))):
        if name not in header:
            raise CohortError(f"{table}: no column '{name}'; found {', '.join(header[:12])}. Is it CQ500's?")
    scans, unlisted = _find_scans(folder)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    passed_over: dict[str, dict[str, str]] = {}
    with staging(out) as stage:
        stage.failed.update({printable(path): why for path, why in unlisted.items()})
        for done, (number, cells) in enumerate(records, start=1):
            case_id = f"{site}-{_scan(cells['name']) or cells['name']}"
            with stage.sparing(case_id):
                try:
                    series, passed, damaged = _plain_series(scans.get(_scan(cells["name"]) or ""))
                    if passed or damaged:
                        passed_over[case_id] = passed | damaged
                    chosen = _chosen(series, passed, damaged, thin=thin)
                    refuse_irregular(chosen)
                except (CohortError, IrregularSeriesError) as problem:
                    left_out[case_id] = str(problem)
                else:
                    row: dict[str, Any] = {
                        "case_id": case_id,
                        "patient_id": case_id,
                        "site": site,
                        "image": stage.place(chosen.folder, "image", case_id, copy=copy),
                        "label": CLASSES[_majority(cells, "ICH", table, number)],
                        "series": chosen.folder.name,
                    }
                    rows.append(row | {kind: _majority(cells, kind, table, number) for kind in _KINDS})
            if progress is not None:
                progress(done, len(records))
        if not rows and not stage.failed:
            first = next(iter(left_out.items()), ("reads.csv", "has no rows"))
            raise CohortError(f"{folder}: no scan can be taken; {first[0]}: {first[1]}")
        columns = {"series": "name of the series that was taken"}
        columns |= {kind: f"1 where most readers see {kind}" for kind in _KINDS}
        spec = haemorrhage_spec("cq500", dimensions=3, columns=columns)
        provenance = {
            "made by": "import cq500",
            "source": "CQ500, Chilamkurthy et al. 2018, CC BY-NC-SA 4.0",
            "series": "thin" if thin else "thick",
            "left out": left_out,
            "series passed over": passed_over,
            "copied": copy,
        }
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _scan(name: str) -> str | None:
    """Return the scan that a name of CQ500 is about: CT12 of CQ500-CT-12 or of CQ500CT12 CQ500CT12."""
    found = re.match(r"CQ500-?CT-?(\d+)\b", name)
    return None if found is None else f"CT{int(found[1])}"


def _find_scans(folder: Path) -> tuple[dict[str, Path], dict[Path, str]]:
    """Return the folder of each scan, and why, by path, other folders can't be listed."""
    unlisted: dict[Path, str] = {}
    scans: dict[str, Path] = {}
    # A part of the set may be on another disk.
    linked = [path for path in folder.iterdir() if path.is_symlink() and path.is_dir()]
    for top in (folder, *linked):
        for here, _ in folders_below(top, unlisted, []):
            if (scan := _scan(here.name)) is not None:
                scans[scan] = here
    for path in list(unlisted):
        if (scan := _scan(path.name)) is not None:
            scans[scan] = path
        if not any(path.is_relative_to(known) for known in scans.values()):
            continue
        del unlisted[path]  # its scan says so
    return scans, unlisted


def _plain_series(scan: Path | None) -> tuple[list[Series], dict[str, str], dict[str, str]]:
    """Return a scan's series without contrast and not in a bone kernel, and why scouts and damaged ones fail.

    Raises:
        CohortError: there is no such scan.
    """
    from threefold.images.dicom import open_series

    if scan is None:
        raise CohortError("its folder does not exist")
    found: list[Series] = []
    passed: dict[str, str] = {}
    damaged: dict[str, str] = {}
    unlisted: dict[Path, str] = {}
    for folder, names in folders_below(scan, unlisted, []):
        images = sum(name.endswith(".dcm") for name in names)
        if not images or _UNWANTED.search(folder.name) is not None:
            continue
        if images < _FEWEST_IMAGES:
            passed[folder.name] = f"fewer than {_FEWEST_IMAGES} images ({images}): a scout"
            continue
        try:
            found.append(open_series(folder))
        except ImageError as problem:
            damaged[folder.name] = str(problem)
    damaged |= {folder.name: why for folder, why in unlisted.items()}
    return found, passed, damaged


def _chosen(
    found: Sequence[Series], passed: Mapping[str, str], damaged: Mapping[str, str], *, thin: bool
) -> Series:
    """Return the series to take, by the distance of its slices: names say that now and then only.

    Raises:
        CohortError: there is none, or there are several.
        ImageError: there is none that can be read.
    """
    wanted = [series for series in found if (series.spacing < THIN_BELOW) == thin]
    if not thin and not wanted:
        wanted = [*found]
    if len(wanted) != 1:
        known = [f"{series.folder.name} ({series.spacing:g} mm)" for series in found]
        known += [f"{name} ({why})" for name, why in {**passed, **damaged}.items()]
        kind = "thin" if thin else "plain"
        error = ImageError if damaged and not wanted else CohortError
        raise error(f"expected one {kind} series, found {len(wanted)} of: {', '.join(known) or 'none'}")
    return wanted[0]


def _majority(cells: Mapping[str, str], kind: str, table: Path, number: int) -> int:
    votes = [cells[f"{reader}:{kind}"].strip() for reader in _READERS]
    others = [vote for vote in votes if vote not in ("0", "1")]
    if others:
        raise CohortError(
            f"{table}: row {number}, {kind}: expected 0 or 1 of each reader, found '{others[0]}'."
        )
    return int(sum(map(int, votes)) >= 2)
