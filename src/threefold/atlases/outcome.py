"""What a propagation leaves: the new cohort, quality.csv, provenance.json."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from threefold import __version__
from threefold.atlases.pairing import Pairing
from threefold.atlases.quality import deviations
from threefold.atlases.signals import SIGNALS
from threefold.atlases.spec import PropagationSpec
from threefold.atlases.steps import Step
from threefold.atlases.transforms import affine_text
from threefold.atlases.workplace import (
    MADE_BY,
    TRANSFORMS,
    UNUSED,
    WEIGHTS_NAME,
    Workplace,
    transform_files,
)
from threefold.cohorts.cohort import Case, Cohort, CohortSpec, fingerprint
from threefold.cohorts.failures import Failures, listed, sparing_others
from threefold.cohorts.staging import FOLDERS, PROVENANCE_NAME, Staging, file_columns, row_of
from threefold.csv_tables import table_text
from threefold.errors import CohortError
from threefold.file_names import case_stem
from threefold.images.cache import ContentHashes
from threefold.run import copy_new, write_atomically
from threefold.validation import read_json

Qualities = Mapping[str, Mapping[str, Any]]
"""Case id to the case's row of quality.csv."""

QUALITY_NAME = "quality.csv"
COLUMNS = {
    "atlas": "the atlas whose labels the structures are; empty where the structures were given",
    "registration": "ok, check (look at it) or failed: then there are no structures; empty where given",
}
_EARLIER_MEANING = "ok, or failed: then there are no structures (see quality.csv); empty where given"
RULE = (
    "Cases whose registration failed have no structures, so that training on structures leaves them out; "
    f"their labels are in {UNUSED}. Those to check have theirs. Cases that could not be used are left out of "
    "the table."
)
_MEASURES = (
    "atlas",
    "registration",
    "reason",
    "score",
    "correlation",
    "correlation_affine",
    "mask_steered",
    "mask_dice",
    "mask_dice_affine",
    "folding_voxels",
    "folding_share",
    "log_jacobian_sd",
    *SIGNALS,
    "start",
    "agreement",
    "dice",
    "dice_affine",
    "dice_unregistered",
)


@dataclass(frozen=True)
class Made:
    """What a propagation did.

    Attributes:
        identity: hash of everything that decides the new cohort.
        settings: hash of what decides it beside the old one.
        steps: that the new cohort is made of.
        failed: why a case could not be used, by id; it is left out.
    """

    identity: str
    settings: str
    steps: Sequence[Step]
    failed: Failures


def refuse_own_columns(cohort: Cohort) -> None:
    """Refuse a cohort whose own columns have the names of those that a propagation adds.

    Those of an earlier propagation are replaced.

    Raises:
        CohortError: naming the column.
    """
    there = {name for case in cohort.cases for name, value in case.extra.items() if value}
    for name, meaning in COLUMNS.items():
        if name in there and cohort.spec.columns.get(name) not in (meaning, _EARLIER_MEANING):
            raise CohortError(
                f"{cohort.folder / 'cases.csv'}: column '{name}': a propagated cohort has a column of that "
                f"name, which would replace it. Rename yours, my_{name} say."
            )


def finish(
    cohort: Cohort, pairing: Pairing, spec: PropagationSpec, place: Workplace, made: Made, *, copy: bool
) -> None:
    """Write the new cohort around the propagated structures, and rename it into place.

    Args:
        cohort: the old one.
        pairing: the cases that structures were propagated to.
        spec: how.
        place: holds each case's quality and label map.
        made: the steps; cases whose files can't be copied are added to those that failed.
        copy: copy images and targets; false: refer to them.

    Raises:
        CohortError: no case is left, the disk refuses, or the folder can't be renamed.
    """
    registered = {step.of: step for step in made.steps if step.kind == "registration"}
    for name in {*FOLDERS.values(), UNUSED, TRANSFORMS, "atlases", Path(WEIGHTS_NAME).parent.name}:
        shutil.rmtree(place.folder / name, ignore_errors=True)  # of an attempt that was cut off here
    stage = Staging(place.folder, place.out)
    meaning = stage.place_atlases(cohort.spec, cohort.folder, copy=copy)
    meaning = meaning.model_copy(update={"columns": {**meaning.columns, **COLUMNS}})
    judged = _judge({of: _quality(place, step) for of, step in registered.items()}, spec)
    rows, qualities = [], {}
    for case in cohort.cases:
        with sparing_others(made.failed, case.case_id):
            quality = judged.get(case.case_id)
            if case.case_id not in made.failed:
                rows.append(_row(case, cohort.spec, quality, stage, copy=copy))
        if case.case_id in made.failed:
            quality = {"registration": "failed", "reason": made.failed[case.case_id]}
        if quality is not None:
            qualities[case.case_id] = quality
    if not rows:
        raise CohortError(f"{cohort.folder}: no case is left.\n  " + "\n  ".join(listed(made.failed)))
    for case_id, quality in qualities.items():
        if case_id in registered:
            _place_labels(place, registered[case_id], quality["registration"])
            _place_transforms(place, registered[case_id])
    weights = next((place.file(step, ".safetensors") for step in made.steps if step.kind == "network"), None)
    if weights is not None and weights.is_file():
        _copy(weights, place.folder / WEIGHTS_NAME)
    write_atomically(place.folder / QUALITY_NAME, _quality_table(cohort, qualities))
    provenance = _provenance(cohort, pairing, spec, place, made, qualities)
    stage.finish(meaning, rows, provenance, allow_outside=not copy)
    place.write_steps({step.key: step for step in made.steps})
    place.become_the_cohort()


def left_out_of(propagated: Cohort) -> Failures:
    """Return why cases were left out of a propagated cohort, by id."""
    provenance = propagated.folder / PROVENANCE_NAME
    wrote = "Expected what `threefold propagate` wrote."
    try:
        found = read_json(provenance, CohortError, wrote)["cases"].get("left out", {})
    except (KeyError, AttributeError) as error:
        raise CohortError(
            f"{provenance}: can't be read ({error}). Expected what `threefold propagate` wrote."
        ) from error
    return {str(case_id): str(reason) for case_id, reason in dict(found).items()}


def _quality(place: Workplace, step: Step) -> dict[str, Any]:
    known = place.recall(step)
    assert known is not None  # it was done
    return dict(known["row"])


def _judge(rows: Mapping[str, dict[str, Any]], spec: PropagationSpec) -> Mapping[str, dict[str, Any]]:
    """Return the rows of quality.csv, those that deviate from the cohort's others marked."""
    sound = {of: row for of, row in rows.items() if row["registration"] != "failed"}
    for of, reasons in deviations(sound, spec.failure).items():
        row = rows[of]
        row |= {"registration": "check", "reason": "; ".join(filter(None, (row["reason"], *reasons)))}
    return rows


def _place_labels(place: Workplace, step: Step, status: str) -> None:
    source = place.file(step, ".nii.gz")
    if source.exists():
        folder = UNUSED if status == "failed" else FOLDERS["structures"]
        _copy(source, place.folder / folder / f"{case_stem(step.of)}.nii.gz")


def _place_transforms(place: Workplace, step: Step) -> None:
    for number, one in enumerate((place.recall(step) or {}).get("transforms", ())):
        affine, field = transform_files(place.folder, step.of, one["atlas"])
        try:
            affine.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CohortError(f"{affine.parent}: can't be made ({error}). Repeat the command.") from error
        write_atomically(affine, affine_text(np.array(one["matrix"])))
        _copy(place.file(step, f".{number}.nii.gz"), field)


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        copy_new(source, target)
    except OSError as error:
        raise CohortError(f"{target}: can't be written ({error}). Repeat the command.") from error


def _row(
    case: Case, spec: CohortSpec, quality: Mapping[str, Any] | None, stage: Staging, *, copy: bool
) -> dict[str, Any]:
    row = row_of(case, spec)
    for column in file_columns(spec):
        if row.get(column) is not None:
            row[column] = stage.place(Path(row[column]), column, case.case_id, copy=copy)
    if quality is None:
        return {**row, "atlas": None, "registration": None}
    if quality["registration"] != "failed":
        row["structures"] = Path(FOLDERS["structures"]) / f"{case_stem(case.case_id)}.nii.gz"
    return {**row, "atlas": quality["atlas"], "registration": quality["registration"]}


def _quality_table(cohort: Cohort, qualities: Qualities) -> str:
    names = [f"dice {name}" for name in cohort.spec.structures]
    columns = [*_MEASURES, *names]
    rows = ([case_id, *(_cell(row.get(name)) for name in columns)] for case_id, row in qualities.items())
    return table_text([["case_id", *columns], *rows])


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value


def _provenance(
    cohort: Cohort,
    pairing: Pairing,
    spec: PropagationSpec,
    place: Workplace,
    made: Made,
    qualities: Qualities,
) -> dict[str, Any]:
    used = {atlas.name: atlas for atlases in pairing.values() for atlas in atlases}
    hashes = ContentHashes()
    weights = place.folder / WEIGHTS_NAME
    return {
        "identity": made.identity,
        "settings": made.settings,
        "made_by": MADE_BY,
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
        "weights_sha256": hashes.of(weights) if weights.exists() else None,
        "rule": RULE,
        "cases": {
            "propagated": _with(qualities, "ok"),
            "check": _with(qualities, "check"),
            "failed": _with(qualities, "failed"),
            "kept": sorted(
                case.case_id
                for case in cohort.cases
                if case.case_id not in pairing and case.case_id not in made.failed
            ),
            "left out": dict(sorted(made.failed.items())),
        },
    }


def _with(qualities: Qualities, state: str) -> list[str]:
    return sorted(case_id for case_id, row in qualities.items() if row["registration"] == state)
