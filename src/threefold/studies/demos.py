"""The demos: each system's whole way, from a phantom to tables and figures, at a size for two cores."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.experiment import Experiment
from threefold.phantoms.head_ct import PRESETS, make_head_ct_cohort
from threefold.reporting.run_report import Report
from threefold.studies.evaluations import evaluate_run
from threefold.training.progress import TrainingProgress
from threefold.training.run import train


def hematoma_demo(
    experiment: Experiment,
    out: Path,
    *,
    seed: int,
    progress: TrainingProgress,
) -> Report:
    """Make the head-CT phantom's demo cohort, train on it and evaluate by hospital.

    Each stage that is already there is not done again, so a demo that was stopped goes on where it was.

    Args:
        experiment: what to train.
        out: gets `cohort` and `run`.
        seed: of the phantom.
        progress: told of each slice and of what the training does; the caller stops it.

    Raises:
        RunError: OUT/run is another experiment's.
        CohortError: OUT/cohort is not a cohort, or can't be written.
    """
    folder = out / "cohort"
    cohort: Cohort
    if folder.exists():
        progress.say(f"{folder}: already there")
        cohort = read_cohort(folder)
    else:
        progress.say(f"making the phantom cohort {folder}")
        out.mkdir(parents=True, exist_ok=True)
        cohort = make_head_ct_cohort(folder, PRESETS["demo"], seed, partial(progress.step, "making slices"))
    run = train(experiment, cohort, out / "run", resume=True, progress=progress)
    progress.say("evaluating by hospital")
    return evaluate_run(run)
