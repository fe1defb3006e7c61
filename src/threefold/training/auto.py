"""The experiment that `threefold train auto` makes of a cohort: a rule for each choice, and its reason.

The rules are these functions. They look at the cohort's table, at what a few of its images are, and at how
long a step takes on this machine. A key that is given is taken as it is; what depends on it is chosen after.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.splits import make_split
from threefold.cohorts.trained_on import TrainedOn, describe_training
from threefold.core.targets import ClassTarget, LabelsTarget, MultilabelTarget, NumberTarget, TargetSpec
from threefold.errors import CohortError, ExperimentError, UsageError
from threefold.experiment import KINDS, Experiment, SplitSpec
from threefold.experiments import apply_override, experiment_of, read_experiment, set_key
from threefold.models.store import run_path
from threefold.run import RunFolder
from threefold.training.plan import measure_cost, unchecked_plan
from threefold.validation import parse_spec

_LOOKED_AT = 12
"""Training images whose size and spacing are read."""
_SIDES = {2: (96, 112, 128, 160, 192, 224, 256), 3: (48, 64, 80, 96, 112, 128)}
"""Voxels along the longest side of a grid, by the number of axes."""
_MULTIPLE = {2: 16, 3: 8}
"""That the sides are rounded to: the grid of the network's deepest level."""
_SEEN = {2: 3000, 3: 600}
"""Cases that a training should see, repeats counted, before its grid is made finer."""
_ROUNDS = 15
"""The same in epochs, for cohorts that are large."""
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 500
_ENOUGH_FOR_SWIN = 3000
"""Training cases from which on a transformer without pretrained weights is worth its time."""
_FEW_PATIENTS, _FEW_CASES = 30, 10
"""Of the validation part, and of a class in it: fewer tell one epoch from another by chance."""
_UNEVEN = 3.0
"""Ratio of a target's most frequent class to its rarest."""
_SAME_VIEW = 1.25
"""Ratio of the largest field of view to the smallest, up to which images are scaled to fit."""
_ON_TOP, _FORWARD = 1.15, 0.4
"""A case's time in training with augmentation, and its time in prediction, by that of its step."""


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        key: of the experiment, by its path.
        value: plain data.
        reason: a clause for a reader.
    """

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        """Return the choice as a line."""
        said = self.value
        if isinstance(said, Mapping):
            said = ", ".join(f"{key} {value}" for key, value in said.items())
        return f"{self.key}: {said} ({self.reason})"


@dataclass(frozen=True)
class _Facts:
    """What the rules look at.

    Attributes:
        cohort: the cases.
        train, validation: two parts of them.
        tested: cases of the third.
        images: what a few of the training images are.
        reading: seconds to read a case.
        start: weights to start from; None: none are given.
    """

    cohort: Cohort
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    tested: int
    images: TrainedOn
    reading: float
    start: Path | None

    @property
    def axes(self) -> int:
        """Axes of an image."""
        return self.cohort.spec.dimensions

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        """What may be known of a case."""
        return self.cohort.spec.all_targets

    def known(self, target: str, cases: Sequence[Case]) -> list[Any]:
        """Return what is known of a target."""
        return [case.targets[target] for case in cases if target in case.targets]


def choose(
    cohort: Cohort,
    overrides: Sequence[str] = (),
    *,
    budget: float = 1800.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Experiment, tuple[Choice, ...]]:
    """Return an experiment for a cohort, and what was chosen for it, with reasons.

    Args:
        cohort: what is to be trained on.
        overrides: `key.path=value`, taken as they are.
        budget: seconds that the training may take on this machine, about.
        clock: what the time of a step is read from.

    Raises:
        CohortError: the cohort can't be divided, or holds nothing to learn.
        ExperimentError: an override is wrong, or does not fit the choices.
        ImageError: naming the case that can't be read.
        UsageError: the budget is too short.
    """
    given = _given(overrides)
    choices = _left_open(_split(cohort), given)
    split = make_split(cohort, _split_spec(choices, overrides))
    train = split.cases(cohort, "train")
    looked_at = train[:: math.ceil(len(train) / _LOOKED_AT)]
    started = clock()
    images = describe_training(looked_at, cohort.spec)
    facts = _Facts(
        cohort=cohort,
        train=train,
        validation=split.cases(cohort, "validation"),
        tested=len(split.cases(cohort, "test")),
        images=images,
        reading=(clock() - started) / len(looked_at),
        start=run_path(str(given["initial_weights.path"])) if "initial_weights.path" in given else None,
    )
    for rule in (_tasks, _network, _augmentation, _optimisation, _selection):
        choices += _left_open(rule(facts), given)

    def seconds_a_case(*further: Choice) -> float:
        experiment = _experiment((*choices, *further), overrides, cohort)
        made = unchecked_plan(experiment, cohort, split)
        return measure_cost(made, made.stages[-1], clock=clock).seconds_per_epoch / len(train)

    sized = {*given, *(choice.key for choice in choices)} & {"data.preprocessing", "data.preprocessing.size"}
    if not sized:
        choices += _left_open(_grid(facts, budget, seconds_a_case), given)
    if "training.epochs" not in given:
        choices.append(_epochs(facts, budget, seconds_a_case()))
    experiment = _experiment(choices, overrides, cohort)
    return experiment, tuple(choices)


def _given(overrides: Sequence[str]) -> dict[str, str]:
    return {key: value for key, _, value in (override.partition("=") for override in overrides)}


def _left_open(choices: Iterator[Choice], given: Mapping[str, str]) -> list[Choice]:
    """Return the choices of keys that are not given, nor part of one that is."""
    return [
        choice
        for choice in choices
        if not any(
            f"{choice.key}.".startswith(f"{'network' if key == 'network.kind' else key}.") for key in given
        )
    ]


def _experiment(choices: Sequence[Choice], overrides: Sequence[str], cohort: Cohort) -> Experiment:
    said = "\n".join(map(str, choices))
    data: dict[str, Any] = {
        "name": "auto",
        "description": f"Chosen for the cohort {cohort.spec.name}.\n{said}",
    }
    for choice in choices:
        set_key(data, choice.key, choice.value)
    return experiment_of(data, overrides, f"auto for {cohort.folder}")


def _split_spec(choices: Sequence[Choice], overrides: Sequence[str]) -> SplitSpec:
    data: dict[str, Any] = {"data": {"split": {}}}
    for choice in choices:
        set_key(data, choice.key, choice.value)
    for override in overrides:
        if override.startswith("data.split"):
            apply_override(data, override)
    return parse_spec(SplitSpec, data["data"]["split"], where="data.split", error=ExperimentError)


def _split(cohort: Cohort) -> Iterator[Choice]:
    if all(case.split is not None for case in cohort.cases):
        yield Choice("data.split.kind", "column", "every case has its part in the table's split column")
    else:
        patients = len({case.patient_id for case in cohort.cases})
        yield Choice("data.split.kind", "patient", f"{patients} patients, none in two parts")


def _tasks(facts: _Facts) -> Iterator[Choice]:
    """Learn each target that the training part can teach."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    lacking: list[str] = []
    for name, target in facts.targets.items():
        known = facts.known(name, facts.train)
        reason = f"{len(known)} of {len(facts.train)} training cases have it"
        if not known:
            lacking.append(f"no training case has a {name}")
        elif isinstance(target, ClassTarget | NumberTarget) and len({*known}) == 1:
            lacking.append(f"all training cases have the same {name}")
        elif isinstance(target, ClassTarget):
            task: dict[str, Any] = {"kind": "classification", "target": name}
            counts = Counter(known).values()
            if max(counts) > _UNEVEN * min(counts):
                task["class_weights"] = "balanced"
                reason += f", {max(counts)} of one class and {min(counts)} of another"
            found[name] = task, reason
        elif isinstance(target, MultilabelTarget):
            found[name] = {"kind": "multilabel", "target": name}, reason
        elif isinstance(target, NumberTarget):
            found[name] = {"kind": "regression", "target": name}, reason
        else:
            over = "batch" if facts.axes == 2 else "foreground"
            reason += "; Dice over what is there, so that an empty case costs nothing"
            found[name] = {"kind": "segmentation", "target": name, "dice_over": over}, reason
    if not found:
        said = "; ".join(lacking) or "cohort.yaml declares no target"
        raise CohortError(
            f"{facts.cohort.folder}: nothing to learn: {said}. Fill such a column of cases.csv, and say what "
            "it means in cohort.yaml (classes, mask, structures, targets); or give other cases to training."
        )
    kinds = Counter(task["kind"] for task, _ in found.values())
    for name, (task, reason) in found.items():
        kind = str(task["kind"])
        yield Choice(f"tasks.{kind if kinds[kind] == 1 or name in KINDS else name}", task, reason)


def _network(facts: _Facts) -> Iterator[Choice]:
    cases = len(facts.train)
    if facts.start is not None and facts.start.is_dir():
        run = read_experiment(RunFolder(facts.start).experiment).model_dump(mode="json")
        yield Choice("network", run["network"], "that of the run to start from")
        yield Choice("data.preprocessing", run["data"]["preprocessing"], "that of the run to start from")
    elif facts.axes == 2 and (facts.start is not None or cases >= _ENOUGH_FOR_SWIN):
        why = f"{cases} training cases" if facts.start is None else "pretrained weights"
        yield Choice("network.kind", "swin-unet", f"{why}: enough for a transformer")
        yield Choice("network.encoder.size", "public", "the size that weights are published of")
        yield Choice("data.preprocessing.size", [224, 224], "the grid that its windows divide")
    else:
        why = f"{cases} training cases: convolutions learn from few"
        yield Choice("network.kind", "attention-unet", why)
        channels = [16, 32, 64, 128, 256][: 5 if facts.axes == 2 else 4]
        yield Choice("network.channels", channels, "quick enough to see many cases")
        yield Choice("network.background_prior", 0.95, "most voxels are background: no step is spent on that")


def _augmentation(facts: _Facts) -> Iterator[Choice]:
    key, spec = "data.augmentation", facts.cohort.spec
    several = [name for name, one in facts.targets.items() if isinstance(one, LabelsTarget) and one.names[1:]]
    names = [
        name for one in facts.targets.values() for name in getattr(one, "classes", getattr(one, "names", ()))
    ]
    sided = [name for name in names if "left" in name.lower() or "right" in name.lower()]
    planes = {*(facts.images.planes or ())}
    if spec.modality == "photo":
        yield Choice(f"{key}.flip", 0.5, "a photo has no side")
    elif several or sided:
        yield Choice(f"{key}.flip", 0.0, f"{(sided or several)[0]}: left and right may differ")
    elif facts.axes == 3:
        yield Choice(f"{key}.flip", [0.5, 0.0, 0.0], "left and right look alike, up and down do not")
    elif planes <= {"axial", "coronal"}:
        yield Choice(f"{key}.flip", [0.0, 0.5], "left and right look alike, front and back do not")
    else:
        yield Choice(f"{key}.flip", 0.0, f"planes {', '.join(sorted(planes))}: left and right are not shown")
    yield Choice(f"{key}.rotation", 15, "no patient lies straight")
    yield Choice(f"{key}.scale", 0.15, "patients differ in size")
    if spec.intensity.unit == "HU":
        yield Choice(f"{key}.intensity_shift", 0.05, "CT numbers mean the same everywhere, nearly")
    else:
        yield Choice(f"{key}.intensity_shift", 0.1, "machines differ in brightness")
        yield Choice(f"{key}.intensity_scale", 0.2, "machines differ in contrast")
    yield Choice(f"{key}.noise", 0.03, "machines differ in noise")


def _optimisation(facts: _Facts) -> Iterator[Choice]:
    cases = len(facts.train)
    batch = 2 if facts.axes == 3 else 4 if cases < 300 else 8 if cases < _ENOUGH_FOR_SWIN else 24
    yield Choice("training.batch_size", batch, f"{cases} training cases of {facts.axes} axes")
    key = "training.optimiser"
    yield Choice(f"{key}.name", "adamw", "needs little tuning")
    large = facts.start is not None or cases >= _ENOUGH_FOR_SWIN
    why = "the network is large, or trained already" if large else "the network is small, and time short"
    yield Choice(f"{key}.learning_rate", 1e-3 if large else 3e-3, why)
    yield Choice(f"{key}.weight_decay", 0.01, "as is usual for it")
    yield Choice(f"{key}.schedule", "cosine", "the last epochs settle, so that the last one can be kept")
    yield Choice(f"{key}.warmup_epochs", 1, "the first steps are small")
    yield Choice(f"{key}.clip_norm", 1.0, "no case throws the weights far")


def _selection(facts: _Facts) -> Iterator[Choice]:
    """Choose no epoch by a few validation cases."""
    key, judged, rarest = "training.selection", False, _FEW_CASES
    for name, target in facts.targets.items():
        known = facts.known(name, facts.validation)
        if isinstance(target, ClassTarget):
            if len({*facts.known(name, facts.train)}) < 2:  # not learned
                continue
            counts = [known.count(k) for k in range(len(target.classes))]
            judged, rarest = judged or min(counts) > 0, min(rarest, *counts)
        else:
            judged = judged or bool(known)
    if judged:
        yield Choice(f"{key}.metric", "tasks", "every task has a say")
    yield Choice(f"{key}.smoothing", 3, "one epoch's value is noisy")
    patients = len({case.patient_id for case in facts.validation})
    if patients < _FEW_PATIENTS or rarest < _FEW_CASES:
        few = f"validation patients: {patients}" + (
            f", cases of a class: {rarest}" if rarest < _FEW_CASES else ""
        )
        yield Choice(f"{key}.weights", "last", f"{few}: too few to tell epochs apart")
    if rarest < _FEW_CASES:
        yield Choice(
            "evaluation.threshold", "0.5", f"validation cases of a class: {rarest}, too few to choose by"
        )


def _grid(facts: _Facts, budget: float, seconds_a_case: Callable[..., float]) -> Iterator[Choice]:
    """Take the finest grid for which the budget lasts; the whole image, never enlarged."""
    images, axes = facts.images, facts.axes
    views = images.extent_mm or images.size
    widest = [high for _, high in views]
    multiple, finest = _MULTIPLE[axes], max(high for _, high in images.size)
    sides = [side for side in _SIDES[axes] if side <= 1.2 * finest] or [
        multiple * math.ceil(finest / multiple)
    ]

    def size(side: int) -> list[int]:
        shares = (extent / max(widest) * side / multiple for extent in widest)
        return [multiple * max(2, round(share)) for share in shares]

    key = "data.preprocessing.size"
    first = seconds_a_case(Choice(key, size(sides[0]), "")) / math.prod(size(sides[0]))
    seen = max(_SEEN[axes], _ROUNDS * len(facts.train))
    seconds = {side: first * math.prod(size(side)) * seen * _ON_TOP for side in sides}
    side = max((side for side in sides if seconds[side] <= budget), default=sides[0])
    why = f"{seen} cases take about {_time(seconds[side])}"
    finer = [one for one in sides if one > side]
    why += f", at {finer[0]} a side {_time(seconds[finer[0]])}" if finer else "; images are not finer"
    yield Choice(key, size(side), why)
    if images.extent_mm and any(high > _SAME_VIEW * low for low, high in views):
        spacing = max(extent / n for extent, n in zip(widest, size(side), strict=True))
        why = "fields of view differ: a voxel is the same everywhere, and the largest image fits"
        yield Choice("data.preprocessing.spacing", round(spacing + 5e-4, 3), why)


def _epochs(facts: _Facts, budget: float, seconds: float) -> Choice:
    """Fill the budget."""
    train, validation, tested = len(facts.train), len(facts.validation), facts.tested
    epoch = seconds * (train * _ON_TOP + validation * _FORWARD)
    besides = seconds * _FORWARD * (validation + tested) + 2 * facts.reading * (train + validation + tested)
    count = int((budget - besides) / epoch)
    if count < _FEWEST_EPOCHS:
        raise UsageError(
            f"--budget: an epoch of {train} training cases takes about {_time(epoch)}, and reading and "
            f"prediction {_time(besides)}; {_time(budget)} hold less than {_FEWEST_EPOCHS} epochs. Give it "
            f"{_time(besides + 20 * epoch)}, or a smaller grid (data.preprocessing.size)."
        )
    return Choice(
        "training.epochs",
        min(count, _MOST_EPOCHS),
        f"about {_time(epoch)} each, {_time(budget)} in all" if count <= _MOST_EPOCHS else "more add little",
    )


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
