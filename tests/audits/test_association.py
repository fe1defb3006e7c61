"""Effects, intervals and tests by patient, against other libraries, brute force and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from threefold.evaluation.association import (
    auc_of_patients,
    chi2_tail,
    cramers_v,
    p_of_categories,
    p_of_order,
    patient_tables,
    ranks,
    v_interval,
)
from threefold.evaluation.delong import compare_auc


def test_v_is_scipys_with_bergsmas_correction() -> None:
    generator = np.random.default_rng(0)
    for shape in ((2, 2), (5, 2), (3, 4)):
        table = generator.integers(1, 30, shape).astype(float)
        n, (r, k) = table.sum(), shape
        phi2 = stats.contingency.association(table.astype(int), "cramer") ** 2 * (min(shape) - 1)
        corrected = max(0.0, phi2 - (r - 1) * (k - 1) / (n - 1))
        smaller = min(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)) - 1
        assert cramers_v(table) == pytest.approx(np.sqrt(corrected / smaller))
    assert cramers_v(np.array([[[5.0, 0], [0, 5]], [[5, 5], [5, 5]], [[4, 6], [0, 0]]])) == pytest.approx(
        [1, 0, 0], abs=0.01
    )


def test_the_tail_of_chi2_is_scipys() -> None:
    for freedom in (1, 2, 3, 4, 7, 12, 49):
        for statistic in (0.0, 0.3, 4.0, 30.0, 90.0):
            assert chi2_tail(statistic, freedom) == pytest.approx(stats.chi2.sf(statistic, freedom), rel=1e-9)


def test_the_auc_and_its_interval_are_delongs() -> None:
    generator = np.random.default_rng(6)
    patients = generator.integers(0, 25, 120)
    patients = np.unique(patients, return_inverse=True)[1]
    positive, values = generator.random(120) < 0.4, generator.normal(size=120).round(1)
    values[positive] += 0.6
    area, ends = auc_of_patients(values, positive, patients)
    expected = compare_auc(positive, np.zeros(120), values, patients.astype(str))
    assert area == pytest.approx(expected.second.value)
    assert ends is not None
    assert expected.change.interval is not None
    assert ends == pytest.approx([0.5 + end for end in expected.change.interval])
    assert auc_of_patients(values, positive, np.zeros(120, np.int64)) == (
        pytest.approx(np.nan, nan_ok=True),
        None,
    )


def test_ranks_are_midranks() -> None:
    values = np.random.default_rng(1).integers(0, 5, 40).astype(float)
    assert ranks(values) == pytest.approx(stats.rankdata(values))


def test_one_case_a_patient_gives_the_p_of_the_rank_sum_test() -> None:
    generator = np.random.default_rng(2)
    values = generator.normal(size=300)
    positive = generator.random(300) < 0.4
    values[positive] += 0.25
    expected = stats.mannwhitneyu(values[positive], values[~positive]).pvalue
    assert p_of_order(values, positive, np.arange(300)) == pytest.approx(expected, rel=0.15)


def test_one_case_a_patient_gives_the_p_of_the_chi2_test() -> None:
    generator = np.random.default_rng(3)
    categories, positive = generator.integers(0, 4, 400), generator.random(400) < 0.5
    positive[:60] |= categories[:60] == 2
    table = np.array([[np.sum((categories == k) & (positive == p)) for p in (0, 1)] for k in range(4)])
    expected = stats.chi2_contingency(table, correction=False).pvalue
    assert p_of_categories(categories, positive, np.arange(400)) == pytest.approx(expected, rel=0.25)


def test_under_no_association_few_p_are_small_though_patients_have_many_cases() -> None:
    generator = np.random.default_rng(4)
    patients = np.repeat(np.arange(40), 5)
    found = []
    for _ in range(400):
        positive = generator.random(40)[patients] < 0.5  # a patient's cases share their class
        values = generator.normal(size=40)[patients] + 0.3 * generator.normal(size=200)
        categories = generator.integers(0, 3, 40)[patients]
        found.append(
            [p_of_order(values, positive, patients), p_of_categories(categories, positive, patients)]
        )
    shares = (np.array(found) < 0.05).mean(axis=0)
    assert (shares <= 0.08).all()  # of cases as if independent: 0.35 and more


def test_a_patient_counts_once_and_the_interval_holds_the_value() -> None:
    patients = np.repeat(np.arange(30), [1] * 29 + [200])
    categories = (patients % 2).astype(np.int64)
    positive = (patients % 3) > 0
    tables = patient_tables(categories, positive, patients)
    assert tables.shape == (30, 2, 2)
    assert tables.sum(axis=(1, 2)) == pytest.approx(1)
    low, high = v_interval(tables)
    assert low <= cramers_v(tables.sum(axis=0)) <= high
