"""Settings of a study: cohorts x variants x splits x seeds, and the claims that it tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from threefold.cohorts.degradation import DegradationSpec
from threefold.errors import ExperimentError
from threefold.experiment.spec import NonNegative, Positive, PositiveInt, Seed, Spec
from threefold.paths import PathPart, is_path_part
from threefold.validation import did_you_mean, parse_spec, parse_yaml, read_yaml

_STUDIES = files("threefold") / "studies" / "studies"
LABELS = "labels"
"""As a claim's baseline: the cohort's own structures instead of a variant's predictions."""
Scalar = bool | int | float | str


class CohortSource(Spec):
    """A cohort of a study: a folder, or a phantom that the study generates."""

    folder: str | None = None
    """Folder of the cohort, relative to the study file."""
    phantom: str | None = None
    """head-ct, fetal-heart, object-background, or one of your own: MODULE:NAME."""
    preset: str = "study"
    seed: Seed = 0
    settings: Mapping[str, Any] = {}
    """Settings of the phantom that differ from the preset."""
    propagation: Mapping[str, Any] | None = None
    """Propagate the cohort's atlases to its cases, with these settings instead of the defaults. Masks of the
    test cases of any split are not used."""
    degradation: DegradationSpec | None = None
    """Use the cohort's references, displaced by this amount, as structures."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.folder is None) == (self.phantom is None):
            raise ValueError("expected either folder or phantom")
        if self.propagation is not None and self.degradation is not None:
            raise ValueError("expected propagation or degradation, or neither: both make structures")
        return self


class VariantSpec(Spec):
    """An experiment of a study."""

    recipe: str
    """A recipe's name, or a YAML file relative to the study file."""
    overrides: tuple[str, ...] = ()
    """`key.path=value`, applied after the study's own."""
    init_from: str | None = None
    """The variant whose weights initialise it, from the same cohort, split and seed."""
    key: str | None = None
    """A key to vary: each of `values` becomes a variant named VARIANT=VALUE."""
    values: tuple[Scalar, ...] = ()
    cohorts: tuple[str, ...] | None = None
    """The study's cohorts that it is trained on; null: all."""

    @model_validator(mode="after")
    def _key_has_values(self) -> Self:
        if (self.key is None) != (not self.values):
            raise ValueError("expected key and values together, or neither")
        return self


class ClaimSpec(Spec):
    """A claim: the expected difference between the metrics of a variant and a baseline."""

    claim: str
    """The claim in words."""
    variant: str
    baseline: str
    """A variant, or `labels`: the cohort's own structures, treated as predictions."""
    metric: str = "auc"
    """A metric of cases or structures (docs/reference/metrics.md) or of a run's evidence; for a task with its
    own columns prefixed by the task's name (density.auc, age.mae), for a finding by both
    (findings.subdural.auc)."""
    group: str = "all"
    """all test cases, a site group (internal, external), a site, a class, or COLUMN=VALUE for another column
    of the cohort's table."""
    baseline_group: str | None = None
    """The baseline's group; null: the same. Metrics on different cases are compared unpaired."""
    cohorts: tuple[str, ...] | None = None
    """The cohorts in which to test it, one line each; null: all that both are trained on."""
    baseline_cohort: str | None = None
    """The baseline's cohort; null: the variant's."""
    expected: Literal["higher", "lower", "different"] = "higher"
    """Expected direction of the variant's metric relative to the baseline's."""
    beyond: float = 0.0
    """Difference (variant minus baseline, in the metric's unit) that the claim is tested against instead of
    zero. With expected higher, -0.02 claims that the variant is less than 0.02 worse: non-inferiority."""

    @model_validator(mode="after")
    def _beyond_has_a_direction(self) -> Self:
        if self.beyond and self.expected == "different":
            raise ValueError("beyond needs a direction: expected higher or lower")
        return self


class StudySpec(Spec):
    """Experiments compared on the same cases."""

    name: PathPart
    description: str = ""
    cohorts: Annotated[dict[PathPart, CohortSource], Field(min_length=1)]
    variants: Annotated[dict[PathPart, VariantSpec], Field(min_length=1)]
    overrides: tuple[str, ...] = ()
    """`key.path=value` for every training."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Training seeds (training.seed)."""
    splits: Annotated[tuple[Mapping[str, Any], ...], Field(min_length=1)] = ({},)
    """Settings of data.split, one mapping per split."""
    threads: PositiveInt = 1
    """CPU threads per training. The same number gives the same weights, whatever the number of parallel
    runs."""
    memory: Positive = 4.0
    """Assumed memory of a training in GiB, until a run of the same variant has been measured."""
    evidence: bool = False
    """Analyse each run: attention, probes, counterfactuals (`threefold explain`)."""
    claims: tuple[ClaimSpec, ...] = ()
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    replicates: PositiveInt = 4000
    """Bootstrap replicates of patients and seeds."""
    margin: NonNegative = 0.0
    """Smallest relevant difference, in the metric's unit."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        expanded = [name for name, _, _ in expand(self)]
        for what, values in (("variants", expanded), ("seeds", self.seeds), ("splits", self.splits)):
            _refuse_twice(what, values)
        for name in expanded:
            if not is_path_part(name):
                raise ValueError(
                    f"variants.{name}: a value of its key can't be a part of a path. Write a variant of its "
                    "own, with the value in its overrides"
                )
        if LABELS in expanded:
            raise ValueError(f"variants.{LABELS}: the name means a cohort's own structures. Choose another.")
        for name, variant in self.variants.items():
            if variant.init_from is not None:
                _require(variant.init_from, expanded, f"variants.{name}.init_from")
            for cohort in variant.cohorts or ():
                _require(cohort, list(self.cohorts), f"variants.{name}.cohorts")
        _refuse_circles(self)
        for number, claim in enumerate(self.claims):
            where = f"claims.{number}"
            _require(claim.variant, expanded, f"{where}.variant")
            _require(claim.baseline, [*expanded, LABELS], f"{where}.baseline")
            for cohort in (*(claim.cohorts or ()), *filter(None, (claim.baseline_cohort,))):
                _require(cohort, list(self.cohorts), f"{where}.cohorts")
            tested = claim_cohorts(self, claim)
            untested = [name for name in claim.cohorts or () if name not in tested]
            if untested or not tested:
                raise ValueError(
                    f"{where}: {claim.variant} against {claim.baseline} can't be tested in "
                    f"{untested[0] if untested else 'any cohort'}. Expected two different trainings, or two "
                    "groups; the variants' cohorts say where each is trained"
                )
        return self


@dataclass(frozen=True)
class RunPlan:
    """One training of a study.

    Attributes:
        cohort: name of its cohort.
        variant: name, with VALUE where a key is varied.
        split, seed: number of the split, seed of the training.
        recipe: a recipe's name or a YAML file.
        overrides: all of them, in order.
        start: id of the run whose weights it starts from; None: it starts by itself.
    """

    cohort: str
    variant: str
    split: int
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    start: str | None = None

    @property
    def id(self) -> str:
        """COHORT/VARIANT/split-K-seed-S, which is also its path below `runs`."""
        return run_id(self.cohort, self.variant, self.split, self.seed)


def run_id(cohort: str, variant: str, split: int, seed: int) -> str:
    """Return a run's id."""
    return f"{cohort}/{variant}/split-{split}-seed-{seed}"


def expand(study: StudySpec) -> list[tuple[str, VariantSpec, tuple[str, ...]]]:
    """Return each variant's name, spec and overrides; one whose key is varied once for each value."""
    found = []
    for name, variant in study.variants.items():
        common = (*study.overrides, *variant.overrides)
        if variant.key is None:
            found.append((name, variant, common))
        for value in variant.values:
            found.append((f"{name}={value}", variant, (*common, f"{variant.key}={_yaml(value)}")))
    return found


def claim_cohorts(study: StudySpec, claim: ClaimSpec) -> tuple[str, ...]:
    """Return the cohorts in which a claim is tested: where both were trained and are not the same."""
    trained = {
        (cohort, name) for name, variant, _ in expand(study) for cohort in variant.cohorts or study.cohorts
    }
    there = trained | {(cohort, LABELS) for cohort in study.cohorts}
    found = []
    for cohort in study.cohorts if claim.cohorts is None else claim.cohorts:
        first, second = (claim.baseline_cohort or cohort, claim.baseline), (cohort, claim.variant)
        differ = first != second or (claim.baseline_group or claim.group) != claim.group
        if differ and first in there and second in trained:
            found.append(cohort)
    return tuple(dict.fromkeys(found))


def plan_runs(study: StudySpec, only: Sequence[str] = ()) -> list[RunPlan]:
    """Return the trainings of a study; one comes after the one that it starts from.

    Args:
        study: what to train.
        only: patterns (`*`, `?`) of run ids: those that match one, and what they start from; none: all.

    Raises:
        ExperimentError: a pattern matches no run.
    """
    plans: dict[str, RunPlan] = {}
    for variant, spec, overrides in expand(study):
        for cohort in spec.cohorts or study.cohorts:
            for split, keys in enumerate(study.splits):
                for seed in study.seeds:
                    split_keys = [f"data.split.{key}={_yaml(value)}" for key, value in keys.items()]
                    plan = RunPlan(
                        cohort=cohort,
                        variant=variant,
                        split=split,
                        seed=seed,
                        recipe=spec.recipe,
                        overrides=(*overrides, *split_keys, f"training.seed={seed}"),
                        start=None if spec.init_from is None else run_id(cohort, spec.init_from, split, seed),
                    )
                    plans[plan.id] = plan
    for plan in plans.values():
        if plan.start is not None and plan.start not in plans:
            raise ExperimentError(
                f"variants.{plan.variant}: starts from {plan.start}, which the study does not train. Train "
                "that variant on the same cohorts."
            )
    return _in_order(plans, _chosen(plans, only))


def study_names() -> tuple[str, ...]:
    """Return the names of the studies that the package ships."""
    return tuple(sorted(file.name.removesuffix(".yaml") for file in _STUDIES.iterdir()))


def load_study(study_or_file: str) -> StudySpec:
    """Return a shipped study, or one from a YAML file, whose relative paths become absolute.

    Raises:
        ExperimentError: naming the nearest study or key.
    """
    if not study_or_file.endswith((".yaml", ".yml")):
        names = study_names()
        if study_or_file not in names:
            raise ExperimentError(f"there is no study '{study_or_file}'.{did_you_mean(study_or_file, names)}")
        text = (_STUDIES / f"{study_or_file}.yaml").read_text(encoding="utf-8")
        return _parse(parse_yaml(text, study_or_file, ExperimentError), study_or_file)
    path = Path(study_or_file)
    study = _parse(read_yaml(path, ExperimentError), study_or_file)
    home = path.resolve().parent
    cohorts = {
        name: source.model_copy(update={"folder": source.folder and str(home / source.folder)})
        for name, source in study.cohorts.items()
    }
    variants = {
        name: variant.model_copy(update={"recipe": _recipe(variant.recipe, home)})
        for name, variant in study.variants.items()
    }
    return study.model_copy(update={"cohorts": cohorts, "variants": variants})


def _recipe(name: str, home: Path) -> str:
    return str(home / name) if name.endswith((".yaml", ".yml")) else name


def _parse(data: Mapping[str, Any], where: str) -> StudySpec:
    return parse_spec(StudySpec, data, where=where, error=ExperimentError)


def _chosen(plans: Mapping[str, RunPlan], only: Sequence[str]) -> set[str]:
    if not only:
        return set(plans)
    chosen: set[str] = set()
    for pattern in only:
        matching = {name for name in plans if fnmatchcase(name, pattern)}
        if not matching:
            raise ExperimentError(
                f"no run matches '{pattern}'. Runs are named COHORT/VARIANT/split-K-seed-S, for example "
                f"{next(iter(plans))}."
            )
        chosen |= matching
    return chosen


def _in_order(plans: Mapping[str, RunPlan], chosen: set[str]) -> list[RunPlan]:
    """Return the chosen runs and what they start from: seeds outermost, each after its start.

    With the seeds outermost a study that is stopped early has whole comparisons.
    """
    ordered: dict[str, RunPlan] = {}

    def add(plan: RunPlan) -> None:
        if plan.start is not None:
            add(plans[plan.start])
        ordered.setdefault(plan.id, plan)

    for plan in sorted(plans.values(), key=lambda plan: (plan.seed, plan.split)):
        if plan.id in chosen:
            add(plan)
    return list(ordered.values())


def _refuse_circles(study: StudySpec) -> None:
    starts = {name: variant.init_from for name, variant, _ in expand(study)}
    for name in starts:
        seen = [name]
        while (start := starts[seen[-1]]) is not None:
            if start in seen:
                raise ValueError(f"variants.{name}: starts from itself ({' -> '.join([*seen, start])})")
            seen.append(start)


def _refuse_twice(what: str, values: Sequence[object]) -> None:
    """Refuse what is there twice: it would be one run, counted as two."""
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{what}: {value} is there twice")


def _require(name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        raise ValueError(f"{where}: there is no '{name}'.{did_you_mean(name, known)}")


def _yaml(value: object) -> str:
    """Return a value as an override's text."""
    return json.dumps(value)
