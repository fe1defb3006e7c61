"""The demos: each system's whole way, from a phantom to tables and figures, at a size for two cores."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.experiment import Experiment
from threefold.phantoms.registry import PHANTOMS
from threefold.reporting.run_report import Report
from threefold.run import make_folder
from threefold.runs.evaluate import evaluate_run
from threefold.studies.chain import Chain, ChainReport, run_chain
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
    cohort = _phantom("head-ct", seed, out, progress)
    run = train(experiment, cohort, out / "run", resume=True, progress=progress)
    progress.say("evaluating by hospital")
    return evaluate_run(run)


def aortic_arch_demo(chain: Chain, *, seed: int, progress: TrainingProgress) -> ChainReport:
    """Make the fetal-heart phantom's demo cohort and run a chain on it: propagation, then each training.

    Each stage that is already there is not done again.

    Args:
        chain: what to do; its folder also gets `cohort`.
        seed: of the phantom.
        progress: told of each volume and of what propagation and trainings do; the caller stops it.

    Returns:
        As `run_chain`.

    Raises:
        RunError: a stage's folder is another experiment's.
        CohortError: OUT/cohort is not a cohort, or can't be written.
    """
    return run_chain(chain, _phantom("fetal-heart", seed, chain.out, progress), progress)


def _phantom(name: str, seed: int, out: Path, progress: TrainingProgress) -> Cohort:
    """Return the phantom's demo cohort OUT/cohort, made where it is not there yet."""
    folder = out / "cohort"
    if folder.exists():
        progress.say(f"{folder}: already there")
        return read_cohort(folder)
    progress.say(f"making the phantom cohort {folder}")
    make_folder(out)
    phantom = PHANTOMS[name]
    return phantom.make(folder, phantom.presets["demo"], seed, partial(progress.step, "making images"))
