"""The predictions of a network in tables: a task, its target, and its columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from threefold.cohorts.cohort import CohortSpec
from threefold.core.targets import ClassTarget, LabelsTarget
from threefold.experiment import CascadeSpec, Experiment
from threefold.tasks.build import build_tasks
from threefold.tasks.classification import ClassificationTask
from threefold.tasks.task import Task

Kind = Literal["class", "other", "labels", "image"]


@dataclass(frozen=True)
class Question:
    """One head of a network and the columns of its predictions.

    Attributes:
        head: its name, that of the task.
        kind: class: one of several classes. other: further pooled answers. labels: a label map. image: the
            image restored.
        prefix: before its columns: empty where it is the only one of its kind (but for `other`), else the
            task's name and a dot.
        target: that it is held against; None: the image itself, or (of a cascade that was given a trained
            segmenter) whatever structures the cohort has.
        task: None: the network has the head for itself.
        names: of the labels; none: a binary mask, or no labels.
    """

    head: str
    kind: Kind
    prefix: str
    target: str | None
    task: Task | None
    names: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of a question of kind class."""
        known = None if self.task is None else self.task.context.known
        return known.classes if isinstance(known, ClassTarget) else ()

    @property
    def positive_class(self) -> int | None:
        """Index of the positive one of two classes; None otherwise."""
        known = None if self.task is None else self.task.context.known
        return known.positive_class if isinstance(known, ClassTarget) else None


def questions_of(
    experiment: Experiment, cohort: CohortSpec, tasks: Sequence[Task] | None = None
) -> tuple[Question, ...]:
    """Return the questions of the experiment's network, in the order of its tasks.

    Args:
        experiment: as run.
        cohort: that it was trained on.
        tasks: of the experiment; None: built.

    Raises:
        ExperimentError: as `build_tasks`.
    """
    found: list[Question] = []
    for task in build_tasks(experiment, cohort) if tasks is None else tasks:
        if task.head is None:
            continue
        names: tuple[str, ...] = ()
        if task.head.kind == "pooled":
            kind: Kind = "class" if isinstance(task, ClassificationTask) else "other"
        elif task.head.kind == "dense":
            kind, known = "labels", task.context.known
            names = known.names if isinstance(known, LabelsTarget) else ()
        else:
            kind = "image"
        found.append(Question(task.name, kind, f"{task.name}.", task.target, task, names))
    if isinstance(experiment.network, CascadeSpec) and not any(one.kind == "labels" for one in found):
        found.append(
            Question("segmentation", "labels", "segmentation.", "structures", None, cohort.structures)
        )
    counts = Counter(one.kind for one in found)
    return tuple(
        one
        if one.kind == "other" or counts[one.kind] > 1
        else Question(one.head, one.kind, "", one.target, one.task, one.names)
        for one in found
    )


def the_only(questions: Sequence[Question], kind: Kind) -> Question | None:
    """Return the question whose columns have no prefix; None if there is none of its kind, or several."""
    return next((one for one in questions if one.kind == kind and not one.prefix), None)
