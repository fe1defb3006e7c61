"""The cohorts of a study: a user's own, phantoms that it makes, labels that it propagates."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

from threefold.atlases.propagation import propagate
from threefold.atlases.spec import PropagationSpec
from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.cohorts.degradation import DegradationSpec, degrade
from threefold.cohorts.splits import make_split
from threefold.errors import RunError, UsageError
from threefold.phantoms.registry import PHANTOMS
from threefold.run import write_atomically
from threefold.studies.evaluations import write_label_tables
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import LABELS, CohortSource, StudySpec, claim_cohorts, plan_runs
from threefold.studies.study_worker import experiment_of
from threefold.training.progress import TrainingProgress
from threefold.validation import parse_spec


def pointed_at(study: StudySpec, cohort: Path) -> StudySpec:
    """Return a study of a user's own cohort in place of all of its own.

    Where one of the study's cohorts gets propagated structures, the user's does too. Claims that hold one
    cohort against another have no meaning then, and are left out; what is said of several is said once.
    """
    folder = cohort.resolve()
    name = re.sub(r"[^A-Za-z0-9_.+=]+", "-", folder.name).strip("-._+=")[:80] or "cohort"
    propagation = next((s.propagation for s in study.cohorts.values() if s.propagation is not None), None)
    source = CohortSource(folder=str(folder), propagation=propagation)
    content = study.model_dump()
    content["cohorts"] = {name: source.model_dump()}
    for variant in content["variants"].values():
        variant["cohorts"] = None
    anywhere = {"cohorts": None, "baseline_cohort": None}
    claims = [
        claim.model_copy(update=anywhere)
        for claim in study.claims
        if claim.variant != claim.baseline or (claim.baseline_group or claim.group) != claim.group
    ]
    content["claims"] = [claim.model_dump() for claim in dict.fromkeys(claims)]
    return parse_spec(StudySpec, content, where=f"{study.name} on {folder}", error=UsageError)


def prepare_cohort(
    name: str, source: CohortSource, study: StudySpec, folder: StudyFolder, progress: TrainingProgress
) -> Cohort:
    """Return a cohort of the study, made where it is not there yet."""
    cohort = _source_cohort(name, source, folder, progress)
    out = folder.cohort(name, source)
    if source.degradation is not None:
        return _degraded(name, cohort, source.degradation, out, progress)
    if source.propagation is None:
        return cohort
    spec = parse_spec(
        PropagationSpec, source.propagation, where=f"cohorts.{name}.propagation", error=UsageError
    )
    splits = [
        make_split(cohort, experiment_of(folder, plan).data.split)
        for plan in plan_runs(study)
        if plan.cohort == name
    ]
    held_out = {case.case_id for split in splits for case in split.cases(cohort, "test")}
    progress.say(f"{out}: {'already there' if out.is_dir() else 'propagating the labels of the atlases'}")
    step = partial(progress.step, f"propagating {name}")
    return propagate(cohort, out, spec, held_out=held_out, progress=step)


def judge_labels(
    name: str, cohort: Cohort, study: StudySpec, folder: StudyFolder, progress: TrainingProgress
) -> None:
    """Hold a cohort's own structures against its references, where a claim asks for it and both are there."""
    against = {
        claim.baseline_cohort or of_variant
        for claim in study.claims
        if claim.baseline == LABELS
        for of_variant in claim_cohorts(study, claim)
    }
    possible = any(case.structures is not None and case.reference is not None for case in cohort.cases)
    tables = folder.labels(name)
    if name in against and possible and not tables.predictions.is_file():
        write_label_tables(cohort, None, tables, progress=partial(progress.step, f"judging {name}"))


def _degraded(
    name: str, cohort: Cohort, spec: DegradationSpec, out: Path, progress: TrainingProgress
) -> Cohort:
    note, made_of = out.with_name(f"{out.name}.json"), json.loads(spec.model_dump_json())
    if out.is_dir():
        if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != made_of:
            raise _made_otherwise(out, name)
        progress.say(f"{out}: already there")
        return read_cohort(out, allow_outside=True)
    progress.say(f"{out}: its references are moved by {spec.displacement:g} mm")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(made_of, indent=2) + "\n")
    return degrade(cohort, out, spec, progress=partial(progress.step, f"degrading {name}"))


def _made_otherwise(out: Path, name: str) -> RunError:
    return RunError(
        f"{out}: is there already, made from other settings than cohorts.{name} says now. Give that cohort "
        "another name, or choose another --out."
    )


def _source_cohort(
    name: str, source: CohortSource, folder: StudyFolder, progress: TrainingProgress
) -> Cohort:
    if source.folder is not None:
        return read_cohort(Path(source.folder), allow_outside=True)
    out = folder.made_cohort(name)
    phantom = PHANTOMS[source.phantom or ""]
    spec = phantom.spec(source.preset, source.settings, where=f"cohorts.{name}")
    note = out.with_name(f"{name}.json")
    made_of = {"phantom": phantom.name, "seed": source.seed, "spec": spec.model_dump(mode="json")}
    if out.is_dir():
        known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
        if known != made_of:
            raise _made_otherwise(out, name)
        progress.say(f"{out}: already there")
        return read_cohort(out)
    progress.say(f"making the phantom cohort {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(made_of, indent=2) + "\n")
    return phantom.make(out, spec, source.seed, partial(progress.step, f"making {name}"))
