"""What a training needs before it can start: of the machine, of the settings, of the cases."""

from __future__ import annotations

from importlib.util import find_spec

from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.splits import Split, make_split, require_targets
from threefold.core.targets import ClassTarget
from threefold.errors import CohortError, ExperimentError, UsageError
from threefold.experiment import Experiment, SegmentationSpec
from threefold.tasks.resolve import targets_of
from threefold.tasks.topology import require_gudhi
from threefold.training.before import trainings_of
from threefold.training.devices import check_devices


def require_settings(experiment: Experiment) -> None:
    """Refuse settings that contradict each other or this machine.

    Raises:
        UsageError: the experiment asks for devices or extras that are not there.
        ExperimentError: an augmentation does not fit the grid.
    """
    check_devices(experiment.training)
    _require_augmentation(experiment)
    _require_extras(experiment)


def require_split(experiment: Experiment, cohort: Cohort) -> Split:
    """Divide a cohort as an experiment asks; refuse parts that can't teach or select one of its trainings.

    Raises:
        CohortError: saying what is missing.
    """
    split = make_split(cohort, experiment.data.split)
    for training in trainings_of(experiment):
        require_targets(cohort, split, [*dict.fromkeys(targets_of(training, cohort.spec).values())])
        _require_estimable(training, cohort, split)
    return split


def _require_estimable(experiment: Experiment, cohort: Cohort, split: Split) -> None:
    """Refuse a selection metric that the validation part can't give.

    Raises:
        CohortError: saying what is missing.
    """
    metric = experiment.training.selection.metric
    cases = split.cases(cohort, "validation")
    missing = _missing_for(metric, experiment, cohort, cases)
    if missing is not None:
        raise CohortError(
            f"{cohort.folder}: training.selection.metric is {metric}, but of the {len(cases)} validation "
            f"cases {missing}. Choose another metric (training.selection.metric=loss), another split "
            "(data.split.seed, data.split.validation), or add such cases."
        )


def _missing_for(metric: str, experiment: Experiment, cohort: Cohort, cases: tuple[Case, ...]) -> str | None:
    targets = targets_of(experiment, cohort.spec)
    if metric == "loss":
        if len(targets) < len(experiment.tasks):  # one that every case teaches
            return None
        some = any(target in case.targets for case in cases for target in targets.values())
        return None if some else f"none has a {' or a '.join(dict.fromkeys(targets.values()))}"
    task = experiment.monitors[metric][0] if metric in experiment.monitors else metric.partition(".")[0]
    if task not in targets:
        return None
    target = targets[task]
    there = [case.targets[target] for case in cases if target in case.targets]
    known = cohort.spec.all_targets[target]
    if isinstance(known, ClassTarget):
        absent = [name for k, name in enumerate(known.classes) if k not in there]
        return f"none is labelled '{absent[0]}'" if absent else None
    return None if there else f"none has a {target}"


def _require_augmentation(experiment: Experiment) -> None:
    size = experiment.data.preprocessing.size
    if experiment.data.augmentation.quarter_turns and (len(size) != 2 or len(set(size)) != 1):
        raise ExperimentError(
            "data.augmentation.quarter_turns needs a square grid, but data.preprocessing.size is "
            f"{list(size)}. Make it square, or use rotation."
        )


def _require_extras(experiment: Experiment) -> None:
    """Refuse what needs a library that is not installed.

    Raises:
        UsageError: naming the extra.
    """
    if experiment.training.tensorboard and find_spec("tensorboard") is None:
        raise UsageError(
            "training.tensorboard is on, but tensorboard is not installed: "
            "pip install 'threefold[tensorboard]', or leave it off."
        )
    if any(task.homology > 0 for task in experiment.tasks_of(SegmentationSpec).values()):
        require_gudhi()
