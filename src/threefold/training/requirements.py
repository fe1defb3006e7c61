"""What a training needs before it can start: of the machine, of the settings, of the cases."""

from __future__ import annotations

from importlib.util import find_spec

from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.splits import Split, make_split, require_targets, required_targets
from threefold.errors import CohortError, ExperimentError, UsageError
from threefold.experiment import Experiment
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
        require_targets(cohort, split, required_targets(training.tasks))
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
    if metric in ("auc", "average_precision", "balanced_accuracy"):
        there = {case.label for case in cases}
        absent = [name for k, name in enumerate(cohort.spec.classes) if k not in there]
        return f"none is labelled '{absent[0]}'" if absent else None
    targets = required_targets(experiment.tasks)
    if metric == "dice":
        assert experiment.tasks.segmentation is not None
        target = experiment.tasks.segmentation.target
        return None if any(getattr(case, target) for case in cases) else f"none has a {target}"
    if metric == "loss" and experiment.tasks.reconstruction is None:
        some = any(getattr(case, target) is not None for case in cases for target in targets)
        return None if some else f"none has a {' or a '.join(targets)}"
    return None


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
    segmentation = experiment.tasks.segmentation
    if segmentation is not None and segmentation.homology > 0:
        require_gudhi()
