"""What a propagation leaves: the new cohort, quality.csv, provenance.json."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from threefold import __version__
from threefold.atlases.pairing import Pairing
from threefold.atlases.spec import PropagationSpec
from threefold.atlases.workplace import Workplace
from threefold.cohorts.cohort import Case, Cohort, CohortSpec, fingerprint
from threefold.cohorts.staging import FOLDERS, Staging, row_of
from threefold.errors import CohortError
from threefold.images.cache import ContentHashes
from threefold.run import write_atomically

Qualities = Mapping[str, Mapping[str, Any]]
"""Case id to the case's row of quality.csv."""

QUALITY_NAME = "quality.csv"
COLUMNS = {
    "atlas": "the atlas whose labels the structures are; empty where the structures were given",
    "registration": "ok, or failed: then there are no structures (see quality.csv); empty where given",
}
RULE = "Cases whose registration failed have no structures, so that training on structures leaves them out."
_MEASURES = (
    "atlas",
    "registration",
    "reason",
    "correlation",
    "correlation_affine",
    "mask_steered",
    "mask_dice",
    "mask_dice_affine",
    "folding_voxels",
    "folding_share",
    "log_jacobian_sd",
    "dice",
    "dice_affine",
    "dice_unregistered",
)


def finish(cohort: Cohort, pairing: Pairing, spec: PropagationSpec, place: Workplace, *, copy: bool) -> None:
    """Write the new cohort around the propagated structures, and rename it into place.

    Args:
        cohort: the old one.
        pairing: the cases that structures were propagated to.
        spec: how.
        place: holds each case's quality and label map.
        copy: copy images and targets; false: refer to them.

    Raises:
        CohortError: a file can't be copied, or the folder not be renamed.
    """
    qualities = {case_id: place.recall(f"case {case_id}") or {} for case_id in pairing}
    for name in {*FOLDERS.values(), "atlases"} - {place.structures.name}:
        shutil.rmtree(place.folder / name, ignore_errors=True)  # of an attempt that was cut off here
    stage = Staging(place.folder, place.out)
    meaning = stage.place_atlases(cohort.spec, cohort.folder, copy=copy)
    meaning = meaning.model_copy(update={"columns": {**meaning.columns, **COLUMNS}})
    rows = [_row(case, cohort.spec, qualities.get(case.case_id), stage, copy=copy) for case in cohort.cases]
    write_atomically(place.folder / QUALITY_NAME, _quality_table(cohort, qualities))
    stage.finish(meaning, rows, _provenance(cohort, pairing, spec, place, qualities), allow_outside=not copy)
    try:
        place.folder.replace(place.out)
    except OSError as error:
        raise CohortError(f"{place.out}: can't be made ({error}); the work is in {place.folder}.") from error
    place.at(place.out).clear()


def _row(
    case: Case, spec: CohortSpec, quality: Mapping[str, Any] | None, stage: Staging, *, copy: bool
) -> dict[str, Any]:
    row = row_of(case, spec)
    for column in FOLDERS:
        if row[column] is not None:
            row[column] = stage.place(Path(row[column]), column, case.case_id, copy=copy)
    if quality is None:
        return {**row, "atlas": None, "registration": None}
    if quality["registration"] == "ok":
        row["structures"] = Path(FOLDERS["structures"]) / f"{case.case_id}.nii.gz"
    return {**row, "atlas": quality["atlas"], "registration": quality["registration"]}


def _quality_table(cohort: Cohort, qualities: Qualities) -> str:
    names = [f"dice {name}" for name in cohort.spec.structures]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["case_id", *_MEASURES, *names], lineterminator="\n", restval="")
    writer.writeheader()
    for case_id, row in qualities.items():
        writer.writerow({"case_id": case_id, **{key: _cell(value) for key, value in row.items()}})
    return stream.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value


def _provenance(
    cohort: Cohort, pairing: Pairing, spec: PropagationSpec, place: Workplace, qualities: Qualities
) -> dict[str, Any]:
    used = {atlas.name: atlas for atlases in pairing.values() for atlas in atlases}
    hashes = ContentHashes()
    return {
        "identity": place.identity,
        "made_by": "threefold propagate",
        "version": __version__,
        "cohort": {"name": cohort.spec.name, "fingerprint": fingerprint(cohort)},
        "atlases": [
            {
                "name": atlas.name,
                "label": atlas.label,
                "image_sha256": hashes.of(cohort.folder / atlas.image),
                "structures_sha256": hashes.of(cohort.folder / atlas.structures),
            }
            for atlas in used.values()
        ],
        "propagation": spec.model_dump(mode="json"),
        "weights_sha256": hashes.of(place.weights) if place.weights.exists() else None,
        "rule": RULE,
        "cases": {
            "propagated": _with(qualities, "ok"),
            "failed": _with(qualities, "failed"),
            "kept": sorted(case.case_id for case in cohort.cases if case.case_id not in pairing),
        },
    }


def _with(qualities: Qualities, state: str) -> list[str]:
    return sorted(case_id for case_id, row in qualities.items() if row["registration"] == state)
