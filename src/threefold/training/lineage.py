"""What the weights that a training starts from have seen."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from threefold.cohorts.cohort import Cohort, fingerprint
from threefold.cohorts.splits import Split, read_split
from threefold.errors import RunError
from threefold.experiment import Experiment
from threefold.experiments import read_experiment
from threefold.run import RunFolder
from threefold.runs.finished import verify_settings


def require_unseen(experiment: Experiment, cohort: Cohort, split: Split) -> tuple[str, ...]:
    """Refuse to test on cases that the starting weights, or those they started from, were trained on.

    Weights that are no run of this program tell nothing of what they saw.

    Returns:
        A warning for each run on another cohort that trained on cases of the same names.

    Raises:
        RunError: naming the run and the cases; or the file of a run that is not what it was finished with.
    """
    tested = {case.case_id for case in split.cases(cohort, "test")}
    warnings = []
    for run in _ancestors(experiment):
        seen = seen_of(read_split(run.split), tested)
        if not seen:
            continue
        some = f"{len(seen)} of the {len(tested)} test cases (for example {seen[0]})"
        if run.read_cohort()["fingerprint"] == fingerprint(cohort):
            raise RunError(
                f"{run.path}: trained or selected the weights to start from on {some}. The test would know "
                "its cases from training: use that run's split (data.split), or other weights."
            )
        warnings.append(
            f"{run.path}: the weights to start from were trained or selected on cases of another cohort with "
            f"the names of {some}. If they are the same cases, the test knows them from training: use that "
            "run's split."
        )
    return tuple(warnings)


def seen_of(split: Split, cases: Collection[str]) -> list[str]:
    """Return which of the cases (ids) train or validate in a split, sorted."""
    return sorted(name for name in cases if split.parts.get(name, "test") != "test")


def _ancestors(experiment: Experiment) -> Iterator[RunFolder]:
    """Yield the runs whose weights an experiment starts from, the nearest first."""
    known: set[Path] = set()
    while experiment.initial_weights is not None:
        path = Path(experiment.initial_weights.path).expanduser().resolve()
        run = RunFolder(path if path.is_dir() else path.parent)
        if run.path in known or not (run.split.is_file() and run.experiment.is_file()):
            return
        known.add(run.path)
        verify_settings(run)
        yield run
        experiment = read_experiment(run.experiment)
