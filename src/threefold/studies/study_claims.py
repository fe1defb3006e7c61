"""Whether a study's claims can be tested, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from threefold.cohorts.cohort import Cohort
from threefold.errors import UsageError
from threefold.evaluation.measures import OF_ALL
from threefold.evaluation.metrics import is_named, metric_of, metrics, own_name
from threefold.experiment import KINDS, AnyTaskSpec, SegmentationSpec
from threefold.studies.study_spec import LABELS, ClaimSpec, StudySpec, claim_cohorts, run_id
from threefold.validation import did_you_mean

Tasks = Mapping[str, AnyTaskSpec]
_OF_LABELS: Tasks = {"segmentation": SegmentationSpec(target="structures")}
"""What a cohort's own structures say, as a training's tasks."""


def require_metrics(study: StudySpec) -> None:
    """Refuse claims on metrics that can't be compared, or that need evidence which the study lacks.

    Raises:
        UsageError: naming the claim and the nearest metric.
    """
    known = sorted(name for name, metric in metrics().items() if metric.is_compared)
    for claim in study.claims:
        name, structure = own_name(claim.metric)
        if name not in known and not (is_named(name) and metric_of(name).is_compared):
            raise UsageError(
                f"claim '{claim.claim}': there is no metric '{name}' to compare.{did_you_mean(name, known)}"
            )
        if structure and metric_of(name).of != "structure":
            raise UsageError(
                f"claim '{claim.claim}': {name} is not of one structure. Expected {name} without "
                f"':{structure}'."
            )
        if metric_of(name).of == "evidence" and not study.evidence:
            raise UsageError(
                f"claim '{claim.claim}': {name} is measured only where the study says `evidence: true`. Add "
                "that line."
            )


def require_tasks(study: StudySpec, trained: Mapping[str, Tasks]) -> None:
    """Refuse claims on what a variant does not do.

    Args:
        study: with the claims.
        trained: the tasks by variant; claims on others are not looked at.

    Raises:
        UsageError: naming the claim, the variant and the task that it lacks.
    """
    for claim in study.claims:
        for variant in (claim.variant, claim.baseline):
            tasks = _OF_LABELS if variant == LABELS else trained.get(variant)
            lacking = "" if tasks is None else _lacks(claim.metric, tasks)
            if lacking and variant == LABELS:
                raise UsageError(
                    f"claim '{claim.claim}': a cohort's own structures have no {claim.metric}. Take a "
                    "metric of structures, or a variant as the baseline."
                )
            if lacking:
                raise UsageError(
                    f"claim '{claim.claim}': {claim.metric} needs a task {lacking}, which variant {variant} "
                    "does not have. Take another metric or variant."
                )


def _lacks(metric: str, tasks: Tasks) -> str:
    """Return the task that a metric needs and an experiment does not have; empty where it has it."""
    name, structure = own_name(metric)
    if metric not in (name, f"{name}:{structure}"):
        task = metric.partition(".")[0]
        return "" if task in tasks else task
    needed = metric_of(name).task
    return "" if any(isinstance(task, KINDS[needed]) for task in tasks.values()) else needed


def require_groups(study: StudySpec, name: str, cohort: Cohort) -> None:
    """Refuse claims on groups or structures that a cohort does not have.

    Args:
        study: with the claims.
        name: of the cohort in the study.
        cohort: as it was made or read.

    Raises:
        UsageError: naming the claim and the nearest group or structure.
    """
    for claim in study.claims:
        tested = claim_cohorts(study, claim)
        if name in tested or name == claim.baseline_cohort:
            _require_structure(own_name(claim.metric)[1], claim.claim, cohort)
        if name in tested:
            _require_group(claim.group, claim.claim, cohort)
        if name == claim.baseline_cohort or (claim.baseline_cohort is None and name in tested):
            _require_group(claim.baseline_group or claim.group, claim.claim, cohort)


def has_cases_of(cohort: Cohort, group: str) -> bool:
    """Whether a cohort has cases of a claim's group: all, a site group, a site, a class, COLUMN=VALUE."""
    return group in _names(cohort) or group in _values(cohort, group.partition("=")[0])


def _require_group(group: str, claim: str, cohort: Cohort) -> None:
    if has_cases_of(cohort, group):
        return
    nearest = did_you_mean(group, _values(cohort, group.partition("=")[0]) or _names(cohort))
    raise UsageError(
        f"claim '{claim}': cohort {cohort.spec.name} has no cases of group '{group}'.{nearest} Expected "
        f"{OF_ALL}, a site group, a site, a class, or COLUMN=VALUE of a further column of its table."
    )


def _require_structure(structure: str, claim: str, cohort: Cohort) -> None:
    known = list(cohort.spec.structures)
    if structure and structure not in known:
        nearest = did_you_mean(structure, known)
        raise UsageError(
            f"claim '{claim}': cohort {cohort.spec.name} has no structure '{structure}'.{nearest}"
        )


def _names(cohort: Cohort) -> list[str]:
    return sorted({OF_ALL, *cohort.sites, *cohort.spec.site_groups, *cohort.spec.classes})


def _values(cohort: Cohort, column: str) -> list[str]:
    """Return COLUMN=VALUE for each value that a further column has."""
    return sorted({f"{column}={case.extra[column]}" for case in cohort.cases if column in case.extra})


def labels_id(cohort: str) -> str:
    """Return what stands in place of a run's id for a cohort's own structures."""
    return f"{cohort}/{LABELS}"


def is_labels_id(name: str) -> bool:
    """Whether a name is that of a cohort's own structures, not of a run."""
    return name.rpartition("/")[2] == LABELS


def claims_by_cohort(study: StudySpec) -> Iterator[tuple[ClaimSpec, str]]:
    """Yield each claim with each cohort in which it is tested: a line of the comparison."""
    for claim in study.claims:
        for cohort in claim_cohorts(study, claim):
            yield claim, cohort


def asked_pairs(
    study: StudySpec, claim: ClaimSpec, cohort: str
) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Yield a claim's pairs: ids of baseline and variant, (split, seed)."""
    other = claim.baseline_cohort or cohort
    for split in range(len(study.splits)):
        for seed in study.seeds:
            labels = claim.baseline == LABELS
            first = labels_id(other) if labels else run_id(other, claim.baseline, split, seed)
            yield first, run_id(cohort, claim.variant, split, seed), (split, seed)


def finished_pairs(
    study: StudySpec, claim: ClaimSpec, cohort: str, finished: Set[str]
) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Yield those of a claim's pairs that have finished.

    Args:
        study: of the claim.
        claim: the claim.
        cohort: of the variant.
        finished: ids of runs, and `labels_id` of cohorts whose own structures were judged.
    """
    for first, second, place in asked_pairs(study, claim, cohort):
        if {first, second} <= finished:
            yield first, second, place
