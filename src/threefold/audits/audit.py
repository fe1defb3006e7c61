"""The audit of a cohort: everything that would stop a training or make its results misleading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from threefold.audits.confounders import Confounder, check_confounders, find_confounders
from threefold.audits.near_duplicates import check_near_duplicates, find_near_duplicates
from threefold.audits.site_label import SiteLabel, check_confounding, site_label
from threefold.audits.table_checks import (
    awaits_propagation,
    by_site,
    check_alike_names,
    check_atlases,
    check_case_ids,
    check_channels,
    check_duplicates,
    check_empty_masks,
    check_patient_ids,
    check_registrations,
    check_site_groups,
    check_size,
    check_split,
    check_split_column,
    check_targets,
    check_unknown,
    check_unused_split,
    note_atlases,
)
from threefold.audits.voxel_checks import Opened, Progress, check_files
from threefold.cohorts.cohort import Case, Cohort, fingerprint
from threefold.cohorts.findings import SEVERITIES, Finding, gather
from threefold.cohorts.splits import PARTS, Split, make_split
from threefold.core.targets import ClassTarget
from threefold.errors import CohortError
from threefold.experiment import SplitSpec

__all__ = ["Audit", "Finding", "SiteSummary", "audit"]


@dataclass(frozen=True)
class SiteSummary:
    """Summary of a site.

    Attributes:
        labels: number of cases by class name, of the target `label`.
        masks, structures: number of cases that have them.
        targets: number of cases for which each further target is known.
    """

    site: str
    group: str | None
    cases: int
    patients: int
    labels: Mapping[str, int]
    masks: int
    structures: int
    targets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """The findings, worst first, and the underlying numbers.

    Attributes:
        voxels_read: whether voxels were read, or only headers.
        association: of site and label; None if there is only one of either.
        split: number of cases and patients by part; None if no split was audited.
        confounders: what columns and acquisition reveal of the targets, strongest first.
    """

    cohort: str
    fingerprint: str
    cases: int
    patients: int
    voxels_read: bool
    findings: tuple[Finding, ...]
    sites: tuple[SiteSummary, ...]
    association: SiteLabel | None = None
    split: Mapping[str, Any] | None = None
    confounders: tuple[Confounder, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether training on the cohort would be refused."""
        return any(finding.severity == "refuse" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return plain data: what `threefold check --json` prints."""
        return {**asdict(self), "refused": self.refused}


def audit(
    cohort: Cohort,
    *,
    split: Split | SplitSpec | None = None,
    targets: Collection[str] | None = None,
    read_voxels: bool = True,
    progress: Progress | None = None,
) -> Audit:
    """Check a cohort, and a split of it, without changing anything.

    Args:
        cohort: the cohort.
        split: a split to check, or its settings; if it can't be made, this is a finding. None: check the
            table's split column if it is filled.
        targets: the targets that training needs; None: all targets in cohort.yaml, except structures that are
            still to be propagated from atlases.
        read_voxels: read voxels. If False, only headers are read, and intensities, label values and duplicate
            images are not checked.
        progress: called with the number of finished cases and the total.
    """
    asked = _declared_targets(cohort) if targets is None else tuple(targets)
    findings: list[Finding] = []
    if isinstance(split, SplitSpec):
        try:
            split = make_split(cohort, split)
        except CohortError as error:
            findings.append(Finding("refuse", "split", str(error)))
            split = None
    else:
        findings += check_size(cohort) if split is None else ()
    if not findings and (split is None or split.kind != "column"):
        findings += check_split_column(cohort, "refuse" if split is None else "warn")
    findings += check_site_groups(cohort)
    findings += check_patient_ids(cohort)
    findings += check_unknown(cohort)
    findings += check_case_ids(cohort)
    findings += check_alike_names(cohort)
    findings += check_channels(cohort)
    findings += check_targets(cohort, asked, needed=targets is not None)
    findings += check_empty_masks(cohort)
    findings += check_registrations(cohort) if "structures" in asked else note_atlases(cohort)
    if split is not None:
        findings += check_split(cohort, split, asked)
        findings += check_unused_split(cohort, split)
    association = site_label(cohort)
    findings += check_confounding(association)
    for name, target in cohort.spec.targets.items():
        if isinstance(target, ClassTarget):
            findings += check_confounding(site_label(cohort, name), name)
    opened: Opened = check_files(cohort, read_voxels=read_voxels, progress=progress)
    findings += gather(opened.problems)
    findings += check_duplicates(cohort, opened.digests, split)
    findings += check_atlases(cohort, opened.digests, opened.atlases)
    kept_apart = None if split is None or split.kind == "slice" else split  # which mixes slices on purpose
    near = find_near_duplicates(cohort, opened.signatures, kept_apart)
    findings += check_near_duplicates(near, opened.digests, kept_apart)
    confounders = find_confounders(cohort, opened.measured, asked)
    findings += check_confounders(confounders)
    return Audit(
        cohort=cohort.spec.name,
        fingerprint=fingerprint(cohort),
        cases=len(cohort.cases),
        patients=len({case.patient_id for case in cohort.cases}),
        voxels_read=read_voxels,
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        sites=tuple(_summary(cohort, site, cases) for site, cases in sorted(by_site(cohort).items())),
        association=association,
        split=None if split is None else _parts(cohort, split),
        confounders=confounders,
    )


def _declared_targets(cohort: Cohort) -> tuple[str, ...]:
    awaited = {"structures"} if awaits_propagation(cohort) else set()
    # Of a single class, too: the audit says that it can't be told from another.
    declared = [*(["label"] if cohort.spec.classes else []), *cohort.spec.all_targets]
    return tuple(dict.fromkeys(name for name in declared if name not in awaited))


def _summary(cohort: Cohort, site: str, cases: Sequence[Case]) -> SiteSummary:
    labels = Counter(case.label for case in cases if case.label is not None)
    return SiteSummary(
        site=site,
        group=cohort.spec.site_group(site),
        cases=len(cases),
        patients=len({case.patient_id for case in cases}),
        labels={name: labels[index] for index, name in enumerate(cohort.spec.classes)},
        masks=sum(case.mask is not None for case in cases),
        structures=sum(case.structures is not None for case in cases),
        targets={name: sum(name in case.targets for case in cases) for name in cohort.spec.targets},
    )


def _parts(cohort: Cohort, split: Split) -> dict[str, Any]:
    parts = {}
    for part in PARTS:
        cases = split.cases(cohort, part)
        parts[part] = {"cases": len(cases), "patients": len({case.patient_id for case in cases})}
    return {"kind": split.kind, "leaking_patients": list(split.leaking_patients), "parts": parts}
