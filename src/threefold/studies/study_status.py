"""How far the runs of a study are. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from threefold.reporting.table import Table
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import RunPlan, plan_runs
from threefold.training.folder import is_held

RunState = Literal["waiting", "running", "finished", "failed", "interrupted"]


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


def standing_of(folder: StudyFolder) -> Iterator[RunStanding]:
    """Yield how far each run of a study is.

    Raises:
        RunError: the folder is not a study.
    """
    for plan in plan_runs(folder.read()):
        outcome, run = folder.outcome(plan.id), folder.run(plan.id)
        status = run.read_status() if run.status.is_file() else {}
        # A run that was killed with its study left a status but no outcome.
        state: RunState = "interrupted" if status else "waiting"
        if outcome is not None and (status or outcome.state == "failed"):
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
