"""How far a case's site gives its label away."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from threefold.cohorts.cohort import Cohort
from threefold.cohorts.findings import Finding
from threefold.core.targets import ClassTarget
from threefold.evaluation.association import cramers_v

STRONG = 0.5
"""Bias-corrected Cramér's V from which label and site are said to go together."""
NEARLY_DETERMINED = 0.8
"""Bias-corrected Cramér's V from which the site is said to determine the label."""
ONE_SIDED_SHARE = 0.9
"""Share of one class from which a site is looked at by itself."""
ONE_SIDED_CHANCE = 0.001
"""Such a site is reported if chance alone would make it as one-sided less often than this."""


@dataclass(frozen=True)
class SiteLabel:
    """Association of site and label, counted over patients.

    A patient with several labels or sites counts in parts that add up to one.

    Attributes:
        patients: patients with a label.
        cramers_v: bias-corrected Cramér's V (Bergsma 2013), 0..1. The correction matters: with a site for
            each patient the plain V is always 1.
        balanced_accuracy: of the best rule that sees the site alone, on the same patients (optimistic where
            sites are small).
        auc: area under the ROC curve of the site's share of the second class; None unless two classes occur.
        table: patients by site and class.
    """

    patients: int
    cramers_v: float
    balanced_accuracy: float
    auc: float | None
    table: Mapping[str, Mapping[str, float]]

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def site_label(cohort: Cohort, target: str = "label") -> SiteLabel | None:
    """Measure the association of the site with a target of kind class.

    Returns:
        None with fewer than two sites or two classes among the labelled cases, or without such a target.
    """
    kind = cohort.spec.all_targets.get(target)
    if not isinstance(kind, ClassTarget):
        return None
    table = _patients_by_site_and_class(cohort, target, kind.classes)
    by_site = {site: sum(row.values()) for site, row in table.items()}
    by_class: dict[str, float] = defaultdict(float)
    for row in table.values():
        for name, count in row.items():
            by_class[name] += count
    if len(by_site) < 2 or len(by_class) < 2:
        return None
    patients = round(sum(by_site.values()))
    return SiteLabel(
        patients=patients,
        cramers_v=float(
            cramers_v(np.array([[row.get(name, 0) for name in by_class] for row in table.values()]))
        ),
        balanced_accuracy=sum(_best_share(row, by_class) for row in table.values()) / len(by_class),
        auc=_auc(table, *sorted(by_class, key=kind.classes.index)) if len(by_class) == 2 else None,
        table={site: dict(row) for site, row in table.items()},
    )


def check_confounding(measured: SiteLabel | None, what: str = "label") -> Iterator[Finding]:
    """Warn where the site (nearly) tells the label, for the cohort or at single sites."""
    if measured is None:
        return
    if measured.cramers_v >= STRONG:
        verb = "determines" if measured.cramers_v >= NEARLY_DETERMINED else "goes with"
        auc = "" if measured.auc is None else f" (AUC {measured.auc:.2f})"
        sites = "; ".join(f"{site}: {_shares(row)}" for site, row in measured.table.items())
        yield Finding(
            "warn",
            "site and label",
            f"The site {verb} the {what}: Cramér's V {measured.cramers_v:.2f} over {measured.patients} "
            f"patients (reported from {STRONG}; 'determines' from {NEARLY_DETERMINED}); the site alone gives "
            f"a balanced accuracy of {measured.balanced_accuracy:.2f}{auc}. Patients: {sites}. A network can "
            "learn the hospital instead of the lesion: trust only results within a site, and add cases "
            "of the missing classes.",
        )
        return  # the message shows every site
    for site, name, share, chance in _one_sided(measured):
        yield Finding(
            "warn",
            "site and label",
            f"At site {site}, {share:.0%} of the patients are '{name}'; with the other sites' share it would "
            f"be so by chance with probability {chance:.1g} (reported from {ONE_SIDED_SHARE:.0%} and below "
            f"{ONE_SIDED_CHANCE:g}). Whatever marks that site predicts the {what}.",
        )


def _patients_by_site_and_class(
    cohort: Cohort, target: str, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    labelled = [case for case in cohort.cases if target in case.targets]
    cases_of = Counter(case.patient_id for case in labelled)
    table: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for case in sorted(labelled, key=lambda case: (case.site, case.targets[target], case.case_id)):
        name = classes[case.targets[target]]
        table[case.site][name] += 1 / cases_of[case.patient_id]
    return {site: {name: round(weight, 6) for name, weight in row.items()} for site, row in table.items()}


def _best_share(row: Mapping[str, float], by_class: Mapping[str, float]) -> float:
    """Return what a site adds to the summed sensitivities when it is given its best class."""
    return max(row.get(name, 0) / n for name, n in by_class.items())


def _auc(table: Mapping[str, Mapping[str, float]], negative: str, positive: str) -> float:
    scored = [(row.get(positive, 0), row.get(negative, 0)) for row in table.values()]
    pairs = won = 0.0
    for p, n in scored:
        for other_p, other_n in scored:
            weight = p * other_n
            pairs += weight
            difference = p / (p + n) - other_p / (other_p + other_n)
            won += weight * (1.0 if difference > 1e-12 else 0.5 if difference > -1e-12 else 0.0)
    return won / pairs


def _one_sided(measured: SiteLabel) -> Iterator[tuple[str, str, float, float]]:
    """Yield site, its class, the class's share there and the chance of that under the other sites' share."""
    for site, row in measured.table.items():
        here = sum(row.values())
        name, count = max(row.items(), key=lambda item: item[1])
        if count / here < ONE_SIDED_SHARE:
            continue
        others = [other for s, other in measured.table.items() if s != site]
        elsewhere = sum(other.get(name, 0) for other in others)
        rate = (elsewhere + 1) / (sum(sum(other.values()) for other in others) + 2)  # rule of succession
        n, x = round(here), round(count)
        chance = sum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(x, n + 1))
        if chance < ONE_SIDED_CHANCE:
            yield site, name, count / here, chance


def _shares(row: Mapping[str, float]) -> str:
    return ", ".join(f"{count:g} {name}" for name, count in row.items())
