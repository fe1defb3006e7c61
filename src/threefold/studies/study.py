"""Running a study: its cohorts, then each of its runs once, as many at a time as there is room for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from threefold.cohorts.cohort import Cohort
from threefold.errors import RunError, ThreefoldError, UsageError
from threefold.experiment import Experiment
from threefold.experiments import read_experiment
from threefold.locks import alone_in
from threefold.reporting.study_tables import numbered
from threefold.run import RunFolder, make_folder
from threefold.runs.page import left_by
from threefold.studies.protocol import write_down
from threefold.studies.study_claims import require_groups, require_metrics, require_tasks
from threefold.studies.study_cohorts import judge_labels, prepare_cohort
from threefold.studies.study_folder import Outcome, StudyFolder, expected_memory
from threefold.studies.study_pools import Pool
from threefold.studies.study_spec import RunPlan, StudySpec, plan_runs
from threefold.studies.study_worker import experiment_of, lacks_evidence
from threefold.training.folder import check_resumable, check_same_experiment
from threefold.training.plan import require_settings, require_split, resolve_paths
from threefold.training.progress import TrainingProgress


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
        ExperimentError, UsageError: a variant or a claim's metric is not valid; before anything is done. A
            cohort has not a claim's group; before any run.
        CohortError: a cohort can't be made or can't serve a variant; before any run.
        RunError: the folder can't be written, holds another study or runs of other settings or cases, or
            another process runs a study there.
        KeyboardInterrupt: after the runs under way have written their state.
    """
    plans = plan_runs(study, only)
    require_metrics(study)
    experiments = {plan.id: resolve_paths(experiment_of(folder, plan)) for plan in plans}
    require_tasks(study, {plan.variant: experiments[plan.id].tasks for plan in plans})
    _require_own_folder(folder)
    for plan in plans:
        _require_one_device(plan, experiments[plan.id])
        require_settings(experiments[plan.id])
    _require_starts(folder, plans)
    make_folder(folder.path)
    busy = f"{folder.path}: another `threefold study run` is at work there. Wait for it, or stop it first."
    with alone_in(folder.path, busy):
        return _run_alone(study, plans, experiments, folder, pool, progress)


def _run_alone(
    study: StudySpec,
    plans: Sequence[RunPlan],
    experiments: Mapping[str, Experiment],
    folder: StudyFolder,
    pool: Pool,
    progress: TrainingProgress,
) -> list[Outcome]:
    if folder.study.is_file():
        _require_same_study(folder, study)
    else:
        write_down(study, folder)
        folder.write(study)
    needed = {plan.cohort for plan in plans}
    for name, source in study.cohorts.items():
        if name in needed:
            cohort = prepare_cohort(name, source, study, folder, progress)
            require_groups(study, name, cohort)
            for plan in plans:
                if plan.cohort == name:
                    _require_trainable(folder, plan, experiments[plan.id], cohort)
            judge_labels(name, cohort, study, folder, progress)
    _require_the_others(study, plans, folder)
    late = write_down(study, folder)
    folder.write(study)
    if late:
        progress.say(
            "late, as runs of theirs have finished, and marked so in the table of claims: "
            f"{numbered([each.claim for each in late])}. A new study, of other seeds and patients, can test "
            "them."
        )
    return list(_run_all(plans, study, folder, pool, progress))


def _run_all(
    plans: Sequence[RunPlan],
    study: StudySpec,
    folder: StudyFolder,
    pool: Pool,
    progress: TrainingProgress,
) -> Iterator[Outcome]:
    """Yield each run's end, when it comes; runs under way when this is stopped are, and written down so."""
    known = {plan.id: outcome for plan in plans if (outcome := folder.outcome(plan.id)) is not None}
    finished = {plan.id for plan in plans if folder.is_finished(plan.id)}
    # A run that finished before the study asked for evidence is started again, for that alone.
    waiting = [plan for plan in plans if plan.id not in finished or lacks_evidence(folder, study, plan)]
    lacking = len(finished) - (len(plans) - len(waiting))
    progress.say(
        f"{len(plans)} runs, {len(finished)} of them finished before"
        + (f", of which {lacking} are still to be looked into" if lacking else "")
    )
    try:
        yield from _run_waiting(plans, waiting, known, finished, study, folder, pool, progress)
    except BaseException:
        for outcome in pool.stop():
            folder.remember(_added(_whole(outcome, study, folder), known))
        raise


def _run_waiting(
    plans: Sequence[RunPlan],
    waiting: list[RunPlan],
    known: dict[str, Outcome],
    finished: set[str],
    study: StudySpec,
    folder: StudyFolder,
    pool: Pool,
    progress: TrainingProgress,
) -> Iterator[Outcome]:
    """Submit what waits as there is room, what it starts from first; yield each run's end.

    Args:
        plans: all that are asked for.
        waiting: those that are to be run; emptied.
        known: how runs ended so far, by id; kept up.
        finished: ids of those that ended well; kept up.
        study, folder, pool, progress: as for `run_study`.
    """
    done, total = len(plans) - len(waiting), len(plans)
    running: set[str] = set()
    ended_now: set[str] = set()
    while waiting or running:
        for plan in [plan for plan in waiting if plan.start is None or plan.start not in running]:
            start = plan.start
            if start is not None and start not in finished and plan.id not in finished:
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
        for ended in pool.wait():
            outcome = _whole(ended, study, folder)
            running.discard(outcome.run)
            ended_now.add(outcome.run)
            if outcome.state == "finished":
                finished.add(outcome.run)
                done += 1
            yield _note(_added(outcome, known), known, folder, progress, f"{done}/{total} ")


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
        log = folder.log(outcome.run)
        what = f"{outcome.state}: {outcome.message}"
        what += f"\n  all that it said: {log}" if log.is_file() else ""
    progress.say(f"{before}{outcome.run}: {what}")
    return outcome


def _whole(outcome: Outcome, study: StudySpec, folder: StudyFolder) -> Outcome:
    """Return as finished a run that was trained and evaluated, and stopped while it was looked into."""
    evaluated = left_by("evaluate", folder.run(outcome.run)).is_file()
    if outcome.state == "finished" or not study.evidence or not evaluated:
        return outcome
    return replace(outcome, state="finished", message=f"no evidence: {outcome.message or outcome.state}")


def _added(outcome: Outcome, known: Mapping[str, Outcome]) -> Outcome:
    """Return an outcome with the time of all attempts together, and the most memory of any."""
    before = known.get(outcome.run)
    if before is None:
        return outcome
    seconds, memory = before.seconds + outcome.seconds, max(before.memory, outcome.memory)
    return replace(outcome, seconds=seconds, memory=memory)


def _without_start(plan: RunPlan) -> Outcome:
    return Outcome(plan.id, "failed", f"{plan.start}, whose weights it starts from, did not finish", 0.0, 0.0)


def _require_one_device(plan: RunPlan, experiment: Experiment) -> None:
    training = experiment.training
    if training.devices * training.nodes > 1:
        raise UsageError(
            f"variant {plan.variant}: training.devices is {training.devices} and training.nodes "
            f"{training.nodes}, but a study gives each run one device and computes several runs at once. "
            "Leave them at 1, or train that experiment alone: `threefold train ... --devices N`."
        )


def _require_starts(folder: StudyFolder, plans: Sequence[RunPlan]) -> None:
    """Refuse to start a run from one that finished and whose weights are gone: it came from `study pack`."""
    for plan in plans:
        if plan.start is None or folder.is_finished(plan.id) or not folder.is_finished(plan.start):
            continue
        start = folder.run(plan.start)
        if not start.weights.is_file():
            raise RunError(
                f"{plan.id}: starts from {plan.start}, which has finished but has no {start.weights.name}: a "
                f"study that was packed comes without. Remove {start.path} to train it anew."
            )


def _require_own_folder(folder: StudyFolder) -> None:
    """Refuse a folder that holds something else: a study fills it."""
    if folder.study.is_file() or folder.protocol.is_file() or not folder.path.is_dir():
        return
    if any(not path.name.startswith(".") for path in folder.path.iterdir()):
        raise RunError(
            f"{folder.path}: is not empty and not a study (no {folder.study.name}). Choose a new --out."
        )


def _require_same_study(folder: StudyFolder, study: StudySpec) -> None:
    name = folder.read().name
    if name != study.name:
        raise RunError(f"{folder.path}: holds the study '{name}', not '{study.name}'. Choose another --out.")


def _before_a_move(run: RunFolder, plan: RunPlan, experiment: Experiment) -> Experiment:
    """Return the experiment with the path of its start as it was before the study's folder was moved."""
    weights, known = experiment.initial_weights, read_experiment(run.experiment).initial_weights
    if plan.start is None or weights is None or known is None:
        return experiment
    if not Path(known.path).as_posix().endswith(f"/runs/{plan.start}"):
        return experiment
    as_it_was = weights.model_copy(update={"path": known.path})
    return experiment.model_copy(update={"initial_weights": as_it_was})


def _require_the_others(study: StudySpec, plans: Sequence[RunPlan], folder: StudyFolder) -> None:
    """Refuse a study of whose runs that are not asked for now some were started as something else.

    They are compared with those that are.
    """
    asked = {plan.id for plan in plans}
    for plan in plan_runs(study):
        run = folder.run(plan.id)
        if plan.id not in asked and run.status.is_file():
            experiment = resolve_paths(experiment_of(folder, plan))
            try:
                check_same_experiment(run, _before_a_move(run, plan, experiment))
            except RunError as error:
                raise RunError(_anew(error, run)) from error


def _anew(error: RunError, run: RunFolder) -> str:
    return f"{error}\nTo train it anew within this study, remove {run.path} first."


def _require_trainable(folder: StudyFolder, plan: RunPlan, experiment: Experiment, cohort: Cohort) -> None:
    """Refuse what can't be trained, and a run that is there already but was started as something else."""
    run = folder.run(plan.id)
    try:
        if run.status.is_file():
            check_resumable(run, _before_a_move(run, plan, experiment), cohort)
        else:
            require_split(experiment, cohort)
    except RunError as error:
        raise RunError(_anew(error, run)) from error
    except ThreefoldError as error:
        raise type(error)(f"variant {plan.variant}: {error}") from error
