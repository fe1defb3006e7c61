"""Which runs a claim of a study is held against which."""

from __future__ import annotations

from collections.abc import Iterator, Set

from threefold.studies.study_spec import LABELS, ClaimSpec, StudySpec, claim_cohorts, run_id


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
