"""Running a study: its cohorts, then each of its runs once, as many at a time as there is room for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from threefold.atlases.propagation import propagate
from threefold.atlases.spec import PropagationSpec
from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.cohorts.degradation import degrade
from threefold.cohorts.splits import make_split
from threefold.errors import CohortError, RunError, UsageError
from threefold.experiment.spec import Spec
from threefold.phantoms.fetal_heart import make_fetal_heart_cohort
from threefold.phantoms.fetal_protocol import PRESETS as FETAL_HEART_PRESETS
from threefold.phantoms.fetal_protocol import FetalHeartSpec
from threefold.phantoms.head_ct import make_head_ct_cohort
from threefold.phantoms.head_protocol import PRESETS as HEAD_CT_PRESETS
from threefold.phantoms.head_protocol import HeadCtSpec
from threefold.reporting.table import Table
from threefold.run import write_atomically
from threefold.studies.evaluations import write_label_tables
from threefold.studies.study_folder import Outcome, StudyFolder, expected_memory
from threefold.studies.study_pools import Pool
from threefold.studies.study_spec import LABELS, CohortSource, RunPlan, StudySpec, plan_runs
from threefold.studies.study_worker import experiment_of, lacks_evidence
from threefold.training.folder import is_held
from threefold.training.progress import TrainingProgress
from threefold.training.requirements import require_settings, require_split
from threefold.validation import did_you_mean, parse_spec

RunState = Literal["waiting", "running", "finished", "failed", "interrupted"]


_PHANTOMS: Mapping[str, tuple[Mapping[str, Spec], type[Spec], Callable[..., Cohort]]] = {
    "head-ct": (HEAD_CT_PRESETS, HeadCtSpec, make_head_ct_cohort),
    "fetal-heart": (FETAL_HEART_PRESETS, FetalHeartSpec, make_fetal_heart_cohort),
}


@dataclass(frozen=True)
class RunStanding:
    """How far a run of a study is.

    Attributes:
        plan: what it trains.
        state: waiting, running, finished, failed or interrupted.
        epoch, epochs: trained, and asked for; None before the first.
        message: what it died of.
        seconds: that its last attempt took; None where none has ended.
    """

    plan: RunPlan
    state: RunState
    epoch: int | None
    epochs: int | None
    message: str
    seconds: float | None


def pointed_at(study: StudySpec, cohort: Path) -> StudySpec:
    """Return a study of a user's own cohort in place of all of its own.

    Where one of the study's cohorts gets propagated structures, the user's does too.
    """
    name = cohort.resolve().name
    propagation = next((s.propagation for s in study.cohorts.values() if s.propagation is not None), None)
    source = CohortSource(folder=str(cohort.resolve()), propagation=propagation)
    content = study.model_dump()
    content["cohorts"] = {name: source.model_dump()}
    for part in (*content["variants"].values(), *content["claims"]):
        part["cohorts"] = None
    for claim in content["claims"]:
        claim["baseline_cohort"] = None
    return StudySpec.model_validate(content)


def run_study(
    study: StudySpec, folder: StudyFolder, pool: Pool, progress: TrainingProgress, only: Sequence[str] = ()
) -> list[Outcome]:
    """Run what of a study has not finished yet.

    A run that fails is written down and does not stop the others, except those that start from it. Repeated
    after a kill, the call goes on where it was; what failed is tried again.

    Args:
        study: what to run.
        folder: where its files go.
        pool: what computes the runs.
        progress: told of each cohort and run.
        only: patterns of run ids; none: all.

    Returns:
        How the runs of this call ended.

    Raises:
        ExperimentError, UsageError: a variant is not valid; before anything is done.
        CohortError: a cohort can't be made or can't serve a variant; before any run.
        RunError: the folder can't be written.
        KeyboardInterrupt: after the runs under way have written their state.
    """
    plans = plan_runs(study, only)
    for plan in plans:
        require_settings(experiment_of(folder, plan))
    folder.write(study)
    needed = {plan.cohort for plan in plans}
    for name, source in study.cohorts.items():
        if name in needed:
            cohort = _prepare(name, source, study, folder, progress)
            for plan in plans:
                if plan.cohort == name:
                    _require_trainable(folder, plan, cohort)
            _judge_labels(name, cohort, study, folder, progress)
    try:
        return list(_run_all(plans, study, folder, pool, progress))
    except BaseException:
        pool.stop()
        raise


def standing_of(folder: StudyFolder) -> Iterator[RunStanding]:
    """Yield how far each run of a study is.

    Raises:
        RunError: the folder is not a study.
    """
    for plan in plan_runs(folder.read()):
        outcome, run = folder.outcome(plan.id), folder.run(plan.id)
        status = run.read_status() if run.status.is_file() else {}
        state: RunState = "waiting"
        if outcome is not None:
            state = outcome.state
        if is_held(run):
            state = "running"
        yield RunStanding(
            plan=plan,
            state=state,
            epoch=status.get("epoch"),
            epochs=status.get("epochs"),
            message=outcome.message if outcome is not None and state == outcome.state else "",
            seconds=None if outcome is None else outcome.seconds,
        )


def status_table(runs: Sequence[RunStanding]) -> Table:
    """Return how far each run of a study is, a row each."""
    rows = [
        (
            each.plan.id,
            each.state,
            "" if each.epoch is None else f"{each.epoch}/{each.epochs}",
            "" if each.seconds is None else f"{each.seconds / 60:.1f}",
            each.message.splitlines()[0] if each.message else "",
        )
        for each in runs
    ]
    counts = Counter(each.state for each in runs)
    title = f"{len(runs)} runs: " + ", ".join(f"{number} {state}" for state, number in counts.items())
    return Table(title, ("run", "state", "epoch", "minutes", "what stopped it"), tuple(rows))


def _run_all(
    plans: Sequence[RunPlan],
    study: StudySpec,
    folder: StudyFolder,
    pool: Pool,
    progress: TrainingProgress,
) -> Iterator[Outcome]:
    """Yield each run's end, when it comes."""
    known = {plan.id: outcome for plan in plans if (outcome := folder.outcome(plan.id)) is not None}
    waiting = [
        plan for plan in plans if not _is_done(known.get(plan.id)) or lacks_evidence(folder, study, plan)
    ]
    done, total = len(plans) - len(waiting), len(plans)
    progress.say(f"{total} runs, {done} of them finished before")
    running: set[str] = set()
    ended_now: set[str] = set()
    while waiting or running:
        for plan in [plan for plan in waiting if plan.start is None or plan.start not in running]:
            start = plan.start
            if start is not None and not _is_done(known.get(start)):
                if start in ended_now:
                    waiting.remove(plan)
                    ended_now.add(plan.id)
                    yield _note(_without_start(plan), known, folder, progress)
                continue
            memory = expected_memory(plan.id, known, study.memory)
            if not pool.has_room(memory):
                break
            waiting.remove(plan)
            running.add(plan.id)
            pool.submit(plan.id, memory)
        if not running:
            continue
        for outcome in pool.wait():
            running.discard(outcome.run)
            ended_now.add(outcome.run)
            done += outcome.state == "finished"
            yield _note(outcome, known, folder, progress, f"{done}/{total} ")


def _note(
    outcome: Outcome,
    known: dict[str, Outcome],
    folder: StudyFolder,
    progress: TrainingProgress,
    before: str = "",
) -> Outcome:
    known[outcome.run] = outcome
    folder.remember(outcome)
    what = f"{outcome.state} after {outcome.seconds / 60:.1f} min, {outcome.memory:.1f} GiB"
    if outcome.message:
        what = f"{outcome.state}: {outcome.message}\n  all that it said: {folder.log(outcome.run)}"
    progress.say(f"{before}{outcome.run}: {what}")
    return outcome


def _is_done(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.state == "finished"


def _without_start(plan: RunPlan) -> Outcome:
    return Outcome(plan.id, "failed", f"{plan.start}, whose weights it starts from, did not finish", 0.0, 0.0)


def _require_trainable(folder: StudyFolder, plan: RunPlan, cohort: Cohort) -> None:
    try:
        require_split(experiment_of(folder, plan), cohort)
    except CohortError as error:
        raise CohortError(f"variant {plan.variant}: {error}") from error


def _prepare(
    name: str, source: CohortSource, study: StudySpec, folder: StudyFolder, progress: TrainingProgress
) -> Cohort:
    """Return a cohort of the study, made where it is not there yet."""
    cohort = _source_cohort(name, source, folder, progress)
    out = folder.cohort(name, source)
    if source.degradation is not None:
        if out.is_dir():
            progress.say(f"{out}: already there")
            return read_cohort(out, allow_outside=True)
        progress.say(f"{out}: its references are moved by {source.degradation.displacement:g} mm")
        return degrade(cohort, out, source.degradation, progress=partial(progress.step, f"degrading {name}"))
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


def _judge_labels(
    name: str, cohort: Cohort, study: StudySpec, folder: StudyFolder, progress: TrainingProgress
) -> None:
    """Hold a cohort's own structures against its references, where a claim asks for it and both are there."""
    asked = any(c.baseline == LABELS and name in (c.cohorts or study.cohorts) for c in study.claims)
    possible = any(case.structures is not None and case.reference is not None for case in cohort.cases)
    tables = folder.labels(name)
    if asked and possible and not tables.predictions.is_file():
        write_label_tables(cohort, None, tables, progress=partial(progress.step, f"judging {name}"))


def _source_cohort(
    name: str, source: CohortSource, folder: StudyFolder, progress: TrainingProgress
) -> Cohort:
    if source.folder is not None:
        return read_cohort(Path(source.folder), allow_outside=True)
    out = folder.made_cohort(name)
    make, spec = _phantom(name, source)
    note = out.with_name(f"{name}.json")
    made_of = {"phantom": source.phantom, "seed": source.seed, "spec": spec}
    if out.is_dir():
        known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
        if known != made_of:
            raise RunError(
                f"{out}: is there already, made from other settings than cohorts.{name} says now. Give that "
                "cohort another name, or choose another --out."
            )
        progress.say(f"{out}: already there")
        return read_cohort(out)
    progress.say(f"making the phantom cohort {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(made_of, indent=2) + "\n")
    return make(out, progress=partial(progress.step, f"making {name}"))


def _phantom(name: str, source: CohortSource) -> tuple[Callable[..., Cohort], dict[str, Any]]:
    """Return what makes a phantom, and its whole specification."""
    presets, model, make = _PHANTOMS[source.phantom or ""]
    if source.preset not in presets:
        hint = did_you_mean(source.preset, list(presets))
        raise UsageError(f"cohorts.{name}.preset: there is no '{source.preset}'.{hint}")
    content = {**presets[source.preset].model_dump(), **source.settings}
    spec = parse_spec(model, content, where=f"cohorts.{name}.settings", error=UsageError)
    return partial(make, spec=spec, seed=source.seed), json.loads(spec.model_dump_json())
