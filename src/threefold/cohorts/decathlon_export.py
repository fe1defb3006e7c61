"""A cohort as the dataset file of the published aortic-arch implementation (data.json)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import Case, Cohort, CohortSpec
from threefold.cohorts.decathlon import EXTRA, LISTS
from threefold.cohorts.staging import file_columns, row_of
from threefold.cohorts.table import declared_columns
from threefold.errors import CohortError, RunError, some
from threefold.experiment import Part
from threefold.run import write_atomically

FORMAT = 1
_NAMED = 10
_LIST_OF = {part: name for name, part in LISTS.items()}


def export_decathlon(
    cohort: Cohort, out: Path, *, parts: Mapping[str, Part] | None = None
) -> dict[str, list[str]]:
    """Write data.json; it refers to the cohort's files where they are, by paths relative to its folder.

    "testing" gets the reference as mask where there is one, else the structures, as the published
    evaluation reads it. Under the key EXTRA stands all that the published reader does not know: cohort.yaml,
    ids, site, further columns, and which file is what, so that `import_decathlon` gives the same cohort.

    Args:
        cohort: of volumes or of files of one slice each, with masks of 0 and 1.
        out: the file; must not exist.
        parts: of a split, by case id; None: the table's own, and "inference" for cases without one.

    Returns:
        What the published training would stumble over: case ids by what they lack.

    Raises:
        CohortError: naming the case or the key that the format can't say, or if the file exists or can't be
            written.
    """
    out = Path(out)
    if out.exists():
        raise CohortError(f"{out}: exists already. Nothing was overwritten: name another file.")
    spec = cohort.spec
    if spec.mask is not None and spec.mask.values != (1,):
        raise CohortError(
            f"{cohort.folder}: the mask's inside is {list(spec.mask.values)}; the published reader takes "
            "masks of 0 and 1. Convert them first."
        )
    if spec.channels:
        raise CohortError(
            f"{cohort.folder}: its cases have several channels, and the published reader takes one image a "
            "case. Export a cohort of one of them."
        )
    slices = [case.case_id for case in cohort.cases if case.slice_index is not None]
    if slices:
        raise CohortError(
            f"{cohort.folder}: {len(slices)} cases are slices of volumes, which the published reader does "
            f"not know: {some(slices, _NAMED)}. Write the slices as files of their own, or take "
            "these cases out of cases.csv, and repeat the command."
        )
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in LISTS}
    lacking: dict[str, list[str]] = {}
    for case in cohort.cases:
        part = case.split if parts is None else parts[case.case_id]
        lists[_LIST_OF[part]].append(_entry(case, spec, part, out))
        if part in ("train", "validation"):
            for key, value in (("mask", case.mask), ("LP", case.structures), ("label", case.label)):
                if value is None:
                    lacking.setdefault(key, []).append(case.case_id)
    described = spec.model_dump(mode="json", exclude_defaults=True)
    for atlas in described.get("atlases", ()):
        for key in ("image", "structures"):
            atlas[key] = _relative(cohort.folder.absolute() / atlas[key], out)
    content = {
        "name": spec.name,
        "description": f"{len(cohort.cases)} cases, written by Threefold",
        "tensorImageSize": f"{spec.dimensions}D",
        "modality": {"0": spec.modality.upper()},
        "labels": {"0": "background"} | {str(n): name for n, name in enumerate(spec.structures, start=1)},
        "numTraining": len(lists["training"]),
        "numTest": len(lists["testing"]),
        EXTRA: {"format": FORMAT, "cohort": described},
        **lists,
    }
    try:
        write_atomically(out, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except (RunError, OSError) as error:
        raise CohortError(f"{out}: could not be written: {error}") from error
    return lacking


def _entry(case: Case, spec: CohortSpec, part: Part | None, out: Path) -> dict[str, Any]:
    cells = {column: cell for column, cell in row_of(case, spec).items() if cell is not None}
    files = [column for column in file_columns(spec) if column in cells and column != "image"]
    given = {column: _relative(cells[column], out) for column in files}
    told = {column: str(cells[column]) for column in declared_columns(spec) if column in cells}
    mask = given.get("mask")
    if part == "test":
        mask = given.get("reference") or given.get("structures") or mask
    entry: dict[str, Any] = {"image": _relative(case.image, out)}
    if mask is not None:
        entry["mask"] = mask
    if "structures" in given:
        entry["LP"] = given["structures"]
    if case.label is not None:
        entry["label"] = float(case.label)
    entry[EXTRA] = {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "site": case.site,
        "files": given,
        "columns": {name: cell for name, cell in told.items() if name not in given} | dict(case.extra),
    }
    return entry


def summary(cohort: Cohort, parts: Mapping[str, Part] | None) -> dict[str, int]:
    """Return how many cases each list has, without the empty ones."""
    counts = Counter(_LIST_OF[case.split if parts is None else parts[case.case_id]] for case in cohort.cases)
    return {name: counts[name] for name in LISTS if counts[name]}


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out.absolute().parent)).as_posix()
