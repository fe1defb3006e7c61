"""The cohorts of a study: a user's own, phantoms that it makes, labels that it propagates."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from threefold.atlases.outcome import left_out_of
from threefold.atlases.propagation import propagate
from threefold.atlases.spec import PropagationSpec
from threefold.checksums import remove_table
from threefold.cohorts.cohort import Cohort, fingerprint, read_cohort
from threefold.cohorts.degradation import degrade
from threefold.cohorts.failures import listed
from threefold.cohorts.splits import make_split
from threefold.errors import RunError, UsageError
from threefold.file_names import portable
from threefold.phantoms.registry import phantom_of
from threefold.run import write_atomically
from threefold.runs.evaluate import write_label_tables
from threefold.studies.study_claims import has_cases_of
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import LABELS, ClaimSpec, CohortSource, StudySpec, claim_cohorts, plan_runs
from threefold.studies.study_worker import experiment_of
from threefold.training.progress import TrainingProgress
from threefold.validation import parse_spec, read_json

MadeOf = dict[str, Any]
"""What a cohort was made of, as JSON."""


@dataclass(frozen=True)
class PointedStudy:
    """A study on a user's cohort.

    Attributes:
        study: the study.
        left_out: claims of the original that have no meaning there.
    """

    study: StudySpec
    left_out: tuple[ClaimSpec, ...]


def name_of(text: str, otherwise: str) -> str:
    """Return a text as a name that can be a part of a path; `otherwise` where nothing is left of it."""
    return portable(re.sub(r"[^A-Za-z0-9_.+=]+", "-", text).strip("-._+=")[:80] or otherwise)


def require_inside(study: StudySpec) -> None:
    """Refuse a study's own cohorts whose tables name files outside of their folders.

    Raises:
        CohortError: naming the path; or a cohort can't be read.
    """
    for source in study.cohorts.values():
        if source.folder is not None:
            read_cohort(Path(source.folder), allow_outside=False)


def pointed_at(study: StudySpec, cohort: Path) -> PointedStudy:
    """Return a study of a user's own cohort in place of all of its own.

    Where one of the study's cohorts gets propagated structures, the user's does too. Where they are one
    cohort with its references moved by several distances, they are the user's. Else claims that hold one
    cohort against another have no meaning, and are left out, as are those on groups that the user's does not
    have; what is said of several is said once.

    Raises:
        CohortError: the cohort can't be read.
        UsageError: something else of the study has no meaning on one cohort.
    """
    folder = cohort.resolve()
    there = read_cohort(folder, allow_outside=True)
    content = study.model_dump()
    are_one_cohort = any(source.degradation is not None for source in study.cohorts.values())
    if are_one_cohort:
        content["cohorts"] = {
            name: {"folder": str(folder), "degradation": source.degradation}
            for name, source in study.cohorts.items()
        }
    else:
        name = name_of(folder.name, "cohort")
        ways = [source.propagation for source in study.cohorts.values() if source.propagation is not None]
        content["cohorts"] = {name: {"folder": str(folder), "propagation": next(iter(ways), None)}}
        for variant in content["variants"].values():
            variant["cohorts"] = None
    kept = [
        claim
        for claim in study.claims
        if (are_one_cohort or _is_within_one_cohort(claim))
        and has_cases_of(there, claim.group)
        and has_cases_of(there, claim.baseline_group or claim.group)
    ]
    anywhere = {} if are_one_cohort else {"cohorts": None, "baseline_cohort": None}
    claims = dict.fromkeys(claim.model_copy(update=anywhere) for claim in kept)
    content["claims"] = [claim.model_dump() for claim in claims]
    return PointedStudy(
        parse_spec(StudySpec, content, where=f"{study.name} on {folder}", error=UsageError),
        tuple(claim for claim in study.claims if claim not in kept),
    )


def _is_within_one_cohort(claim: ClaimSpec) -> bool:
    """Whether a claim does not hold one cohort against another, and so has a meaning on any."""
    if claim.baseline_cohort is not None and claim.cohorts != (claim.baseline_cohort,):
        return False
    return claim.variant != claim.baseline or (claim.baseline_group or claim.group) != claim.group


def prepare_cohort(
    name: str, source: CohortSource, study: StudySpec, folder: StudyFolder, progress: TrainingProgress
) -> Cohort:
    """Return a cohort of the study, made where it is not there yet.

    Raises:
        CohortError, UsageError: it can't be read or made.
        RunError: one made otherwise is there, or runs of one.
    """
    cohort, made_of = _source_cohort(name, source, folder, progress)
    out = folder.cohort(name, source)
    if source.degradation is not None:
        spec = source.degradation
        return _made_once(
            out,
            {"cohort": made_of, "degradation": spec.model_dump(mode="json")},
            partial(degrade, cohort, out, spec, progress=partial(progress.step, f"degrading {name}")),
            said=f"its references are moved by {spec.displacement:g} mm",
            progress=progress,
            runs=folder.runs(name),
        )
    if source.propagation is None:
        return cohort
    return _propagated(name, cohort, made_of, source.propagation, study, folder, progress)


def judge_labels(
    name: str, cohort: Cohort, study: StudySpec, folder: StudyFolder, progress: TrainingProgress
) -> None:
    """Hold a cohort's own structures against its references, where a claim asks for it and both are there.

    Done once, and again where the cohort was made anew.
    """
    against = {
        claim.baseline_cohort or of_variant
        for claim in study.claims
        if claim.baseline == LABELS
        for of_variant in claim_cohorts(study, claim)
    }
    possible = any(case.structures is not None and case.reference is not None for case in cohort.cases)
    tables = folder.labels(name)
    if name not in against or not possible:
        return
    note, judged = tables.path.with_name(f"{name}.json"), json.dumps(_identity(cohort), indent=2) + "\n"
    if tables.predictions.is_file() and note.is_file() and note.read_text(encoding="utf-8") == judged:
        return
    note.unlink(missing_ok=True)
    remove_table(tables.predictions)  # else new structures could stand beside old cases
    write_label_tables(cohort, None, tables, progress=partial(progress.step, f"judging {name}"))
    write_atomically(note, judged)  # last: where it is, the tables are this cohort's


def _propagated(
    name: str,
    cohort: Cohort,
    made_of: MadeOf,
    changes: Mapping[str, Any],
    study: StudySpec,
    folder: StudyFolder,
    progress: TrainingProgress,
) -> Cohort:
    """Return the cohort with the structures of its atlases; what is there in part goes on."""
    spec = parse_spec(PropagationSpec, changes, where=f"cohorts.{name}.propagation", error=UsageError)
    splits = [
        make_split(cohort, experiment_of(folder, plan).data.split)
        for plan in plan_runs(study)
        if plan.cohort == name
    ]
    held_out = {case.case_id for split in splits for case in split.cases(cohort, "test")}
    out = folder.cohort(name, study.cohorts[name])
    now = {"cohort": made_of, "propagation": spec.model_dump(mode="json"), "held out": sorted(held_out)}
    _require_same(out, now, folder.runs(name))
    progress.say(f"{out}: {'already there' if out.is_dir() else 'propagating the labels of the atlases'}")
    made = propagate(
        cohort,
        out,
        spec,
        held_out=held_out,
        renew=not folder.runs(name).exists(),
        progress=partial(progress.step, f"propagating {name}"),
        say=progress.say,
    )
    for line in listed(left_out_of(made)):
        progress.say(f"warning: left out of {out}: {line}")
    return made


def _made_once(
    out: Path,
    made_of: MadeOf,
    make: Callable[[], Cohort],
    *,
    said: str,
    progress: TrainingProgress,
    runs: Path,
) -> Cohort:
    """Return the cohort OUT, made where it is not there; OUT.json says of what."""
    _require_same(out, made_of, runs)
    if out.is_dir():
        progress.say(f"{out}: already there")
        return read_cohort(out, allow_outside=True)
    progress.say(f"{out}: {said}")
    return make()


def _require_same(out: Path, made_of: MadeOf, runs: Path) -> None:
    """Note what a cohort is made of; refuse another one that is there, or that runs were trained on."""
    note = out.with_name(f"{out.name}.json")
    remedy = "Remove it and the cohort beside it: both are made again."
    known = read_json(note, RunError, remedy) if note.is_file() else None
    trained = known is not None and runs.is_dir() and any(runs.iterdir())
    if known != made_of and (out.is_dir() or trained):
        raise RunError(
            f"{out}: is there already, or {runs} was trained on it, made from other settings than the study "
            "says now. Give that cohort another name, or choose another --out."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(made_of, indent=2) + "\n")


def _identity(cohort: Cohort) -> MadeOf:
    """Return what tells a cohort from another: its table's fingerprint, and what it was made of."""
    provenance = cohort.folder / "provenance.json"
    text = provenance.read_bytes() if provenance.is_file() else b""
    return {"fingerprint": fingerprint(cohort), "provenance": hashlib.sha256(text).hexdigest()}


def _source_cohort(
    name: str, source: CohortSource, folder: StudyFolder, progress: TrainingProgress
) -> tuple[Cohort, MadeOf]:
    """Return the cohort that a source starts from, and what tells it from another."""
    if source.folder is not None:
        cohort = read_cohort(Path(source.folder), allow_outside=True)
        return cohort, _identity(cohort)
    phantom = phantom_of(source.phantom or "")
    spec = phantom.spec(source.preset, source.settings, where=f"cohorts.{name}")
    out = folder.made_cohort(name)
    made_of = {"phantom": phantom.name, "seed": source.seed, "spec": spec.model_dump(mode="json")}
    step = partial(progress.step, f"making {name}")
    cohort = _made_once(
        out,
        made_of,
        partial(phantom.make, out, spec, source.seed, step),
        said="making the phantom",
        progress=progress,
        runs=folder.runs(name),
    )
    return cohort, made_of
