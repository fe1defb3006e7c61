"""How far the site tells the label, against independent references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2_contingency
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from threefold.audits.site_label import check_confounding, site_label
from threefold.cohorts.cohort import Case, Cohort, CohortSpec


def _cohort(table: list[list[int]], slices: int = 1) -> Cohort:
    """Make patients: table[site][class] of them."""
    spec = CohortSpec(
        name="x", modality="ct", dimensions=2, classes=tuple(f"c{k}" for k in range(len(table[0])))
    )
    cases = [
        Case(f"{s}-{k}-{n}-{i}", f"{s}-{k}-{n}", f"s{s}", Path("/x"), targets={"label": k})
        for s, row in enumerate(table)
        for k, count in enumerate(row)
        for n in range(count)
        for i in range(slices)
    ]
    return Cohort(Path("/x"), spec, tuple(cases))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_figures_against_scipy_and_scikit_learn(seed: int, classes: int) -> None:
    table = np.random.default_rng(seed).integers(1, 20, (4, classes))
    measured = site_label(_cohort(table.tolist(), slices=2))
    assert measured is not None
    n = table.sum()
    assert measured.patients == n
    # Bergsma 2013, equations of the corrected V.
    phi2 = chi2_contingency(table, correction=False).statistic / n
    r, k = table.shape
    corrected = max(0.0, phi2 - (k - 1) * (r - 1) / (n - 1))
    smaller = min(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)) - 1
    assert measured.cramers_v == pytest.approx(np.sqrt(corrected / smaller))
    sites = np.repeat(np.arange(r), table.sum(axis=1))
    labels = np.concatenate([np.repeat(np.arange(k), row) for row in table])
    rules = np.stack(np.meshgrid(*[np.arange(k)] * r)).reshape(r, -1).T  # (k^r, r)
    best = max(balanced_accuracy_score(labels, rule[sites]) for rule in rules)
    assert measured.balanced_accuracy == pytest.approx(best)
    if classes == 2:
        share = table[:, 1] / table.sum(axis=1)
        assert measured.auc == pytest.approx(roc_auc_score(labels, share[sites]))
    else:
        assert measured.auc is None


def test_a_site_that_determines_the_label_is_found() -> None:
    measured = site_label(_cohort([[5, 0], [0, 1]]))
    assert measured is not None
    assert measured.cramers_v == pytest.approx(1)
    (finding,) = check_confounding(measured)
    assert finding.severity == "warn"
    assert "The site determines the label: Cramér's V 1.00 over 6 patients" in finding.message
    assert "s0: 5 c0; s1: 1 c1" in finding.message


def test_a_site_per_patient_is_no_confounding() -> None:
    # The plain V is 1 here, whatever the labels.
    measured = site_label(_cohort([[1, 0], [0, 1]] * 15))
    assert measured is not None
    assert measured.cramers_v == pytest.approx(0)
    assert not list(check_confounding(measured))


def test_balanced_sites_are_silent() -> None:
    assert not list(check_confounding(site_label(_cohort([[10, 10], [9, 11], [12, 8]]))))


def test_a_strong_but_partial_association_is_graded() -> None:
    (finding,) = check_confounding(site_label(_cohort([[45, 5], [5, 45]])))
    assert "The site goes with the label" in finding.message


def test_one_one_sided_site_among_many_is_found() -> None:
    measured = site_label(_cohort([[30, 30], [30, 30], [30, 30], [0, 20]]))
    assert measured is not None
    assert measured.cramers_v < 0.5
    (finding,) = check_confounding(measured)
    assert "At site s3, 100% of the patients are 'c1'" in finding.message


def test_few_patients_of_one_class_are_no_evidence() -> None:
    assert not list(check_confounding(site_label(_cohort([[30, 30], [0, 3]]))))


def test_nothing_to_compare() -> None:
    assert site_label(_cohort([[5, 5]])) is None
    assert site_label(_cohort([[5, 0], [5, 0]])) is None
    assert not list(check_confounding(None))


def test_a_patient_counts_once_however_many_slices() -> None:
    mixed = _cohort([[4, 4], [4, 4]])
    cases = [
        *mixed.cases,
        *(Case(f"m{i}", "m", "s0", Path("/x"), targets={"label": int(i > 2)}) for i in range(4)),
    ]
    measured = site_label(Cohort(mixed.folder, mixed.spec, tuple(cases)))
    assert measured is not None
    assert measured.patients == 17
    assert measured.table["s0"] == {"c0": 4.75, "c1": 4.25}
