"""The target of each task of an experiment. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from threefold.cohorts.cohort import CohortSpec
from threefold.core.targets import ClassTarget, LabelsTarget, TargetSpec
from threefold.errors import ExperimentError
from threefold.experiment import (
    AnyTaskSpec,
    ClassificationSpec,
    Experiment,
    RegionSpec,
    SegmentationSpec,
)


def target_of(name: str, spec: AnyTaskSpec, experiment: Experiment, cohort: CohortSpec) -> str | None:
    """Return the target that a task learns; None: it learns from the image alone.

    Raises:
        ExperimentError: the target does not exist, is ambiguous, or has another kind.
    """
    asked: str | None = getattr(spec, "target", None)
    kinds = spec.learns
    if not kinds:
        if asked is not None and asked not in cohort.all_targets:
            raise ExperimentError(_unknown_target(name, asked, experiment, cohort))
        return asked
    fitting = [one for one, target in cohort.all_targets.items() if target.kind in kinds]
    default = spec.usual
    if asked is None or asked == default:
        if default in fitting:
            return default
        if len(fitting) == 1:
            return fitting[0]
        asked = asked or default
        if len(fitting) > 1:
            raise ExperimentError(
                f"{experiment.name}: tasks.{name} names no target, and cohort '{cohort.name}' has several of "
                f"kind {' or '.join(kinds)}: {', '.join(fitting)}. Say which one (tasks.{name}.target)."
            )
    if asked in fitting:
        return asked
    raise ExperimentError(_missing_target(name, asked, kinds, experiment, cohort))


def _missing_target(
    name: str, asked: str | None, kinds: Sequence[str], experiment: Experiment, cohort: CohortSpec
) -> str:
    what, where = f"{experiment.name}", f"cohort '{cohort.name}'"
    if asked is not None and asked in cohort.all_targets:
        return (
            f"{what}: tasks.{name} learns a target of kind {' or '.join(kinds)}, but '{asked}' of {where} is "
            f"of kind {cohort.all_targets[asked].kind}. Name another target, or another kind of task."
        )
    if asked == "label":
        return (
            f"{what} has a classification task, but {where} names {len(cohort.classes)} classes. Name two or "
            "more in cohort.yaml (classes), or leave the task out."
        )
    if asked == "mask":
        return (
            f"{what} segments the mask, but {where} has none. Describe it in cohort.yaml (mask), or leave "
            "the task out."
        )
    if asked == "structures":
        return (
            f"{what} segments structures, but {where} names none. Name them in cohort.yaml (structures), or "
            "set tasks.segmentation.target to mask."
        )
    return _unknown_target(name, asked or f"of kind {' or '.join(kinds)}", experiment, cohort)


def _unknown_target(name: str, asked: str, experiment: Experiment, cohort: CohortSpec) -> str:
    known = ", ".join(f"{one} ({target.kind})" for one, target in cohort.all_targets.items()) or "none"
    return (
        f"{experiment.name}: tasks.{name} learns the target {asked}, but cohort '{cohort.name}' has no such "
        f"target; it has {known}. Declare it in cohort.yaml (targets), or name another (tasks.{name}.target)."
    )


def targets_of(experiment: Experiment, cohort: CohortSpec) -> dict[str, str]:
    """Return the target of each task that has one.

    Raises:
        ExperimentError: as `target_of`.
    """
    named = ((name, target_of(name, spec, experiment, cohort)) for name, spec in experiment.tasks.items())
    return {name: target for name, target in named if target is not None}


def region_head(name: str, experiment: Experiment, cohort: CohortSpec) -> str:
    """Return the segmentation task whose structures a region task unites.

    Raises:
        ExperimentError: there is none with structures, or more than one.
    """
    spec = experiment.tasks[name]
    assert isinstance(spec, RegionSpec)
    fitting = [
        one
        for one, segmentation in experiment.tasks_of(SegmentationSpec).items()
        if isinstance(_known(one, segmentation, experiment, cohort), LabelsTarget)
    ]
    if spec.of is not None and spec.of in fitting:
        return spec.of
    if spec.of is None and len(fitting) == 1:
        return fitting[0]
    asked = "" if spec.of is None else f" '{spec.of}'"
    raise ExperimentError(
        f"{experiment.name}: tasks.{name} adds up the structures of a segmentation task{asked}; with "
        f"structures there are {', '.join(fitting) or 'none'}. Name one (tasks.{name}.of)."
    )


def _known(name: str, spec: AnyTaskSpec, experiment: Experiment, cohort: CohortSpec) -> TargetSpec | None:
    target = target_of(name, spec, experiment, cohort)
    return None if target is None else cohort.all_targets[target]


def only_diagnosis(experiment: Experiment, cohort: CohortSpec) -> ClassTarget | None:
    """Return the target of the experiment's only classification task; None: it has none, or several.

    Raises:
        ExperimentError: as `target_of`.
    """
    tasks = experiment.tasks_of(ClassificationSpec)
    if len(tasks) != 1:
        return None
    ((name, spec),) = tasks.items()
    known = _known(name, spec, experiment, cohort)
    assert isinstance(known, ClassTarget)
    return known
