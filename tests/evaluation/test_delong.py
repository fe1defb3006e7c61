"""DeLong's test against its definition in plain loops and against a bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from threefold.evaluation.delong import compare_auc
from threefold.evaluation.estimate import Difference

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def make(n: int = 40, seed: int = 0) -> tuple[Bools, Floats, Floats]:
    """Return truth and two scores with ties, both better than chance."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    positive[:3], positive[3:6] = True, False
    scores = [(positive * gain + rng.normal(0, 1, n)).round(1) for gain in (0.6, 1.2)]
    return positive, scores[0], scores[1]


def alone(n: int) -> NDArray[np.str_]:
    return np.array([f"p{k}" for k in range(n)])


def by_hand(positive: Bools, first: Floats, second: Floats) -> tuple[float, float]:
    """Return the difference and its standard error by DeLong's paper, a pair of cases at a time."""

    def kernel(up: float, down: float) -> float:
        return 1.0 if up > down else 0.5 if up == down else 0.0

    v10, v01 = [], []
    for scores in (first, second):
        ups, downs = scores[positive], scores[~positive]
        psi = np.array([[kernel(up, down) for down in downs] for up in ups])
        v10.append(psi.mean(axis=1))
        v01.append(psi.mean(axis=0))
    s10, s01 = np.cov(v10), np.cov(v01)
    contrast = np.array([-1.0, 1.0])
    variance = contrast @ (s10 / positive.sum() + s01 / (~positive).sum()) @ contrast
    return float(v10[1].mean() - v10[0].mean()), math.sqrt(variance)


@pytest.mark.parametrize("seed", range(5))
def test_with_a_case_a_patient_it_is_delongs_own(seed: int) -> None:
    positive, first, second = make(seed=seed)
    difference, error = by_hand(positive, first, second)
    found = compare_auc(positive, first, second, alone(len(positive)), confidence=0.9)
    assert found.first.value == pytest.approx(roc_auc_score(positive, first))
    assert found.second.value == pytest.approx(roc_auc_score(positive, second))
    assert found.change.value == pytest.approx(difference)
    assert found.error == pytest.approx(error)
    assert found.p == pytest.approx(2 * norm.sf(abs(difference) / error))
    reach = 1.6448536269514722 * error
    assert (found.change.low, found.change.high) == pytest.approx((difference - reach, difference + reach))


def test_the_order_of_cases_and_the_scale_of_scores_do_not_matter_and_exchange_turns_the_sign() -> None:
    positive, first, second = make()
    found = compare_auc(positive, first, second, alone(40))
    order = np.random.default_rng(3).permutation(40)
    shuffled = compare_auc(positive[order], np.exp(first[order]), 5 * second[order] - 2, alone(40))
    assert shuffled.error == pytest.approx(found.error)
    assert shuffled.p == pytest.approx(found.p)
    turned = compare_auc(positive, second, first, alone(40))
    assert (turned.change.value, turned.p) == pytest.approx((-found.change.value, found.p))
    assert (turned.change.low, turned.change.high) == pytest.approx((-found.change.high, -found.change.low))


def test_cases_that_are_there_twice_for_their_patient_narrow_nothing() -> None:
    positive, first, second = make()
    once = compare_auc(positive, first, second, alone(40))
    twice = compare_auc(*(np.repeat(each, 2) for each in (positive, first, second, alone(40))))
    assert twice.error == pytest.approx(once.error)
    assert twice.p == pytest.approx(once.p)
    # As patients of their own they would: this is what the clustering is for.
    naive = compare_auc(*(np.repeat(each, 2) for each in (positive, first, second)), alone(80))
    assert naive.error < 0.75 * once.error


def obuchowski(positive: Bools, first: Floats, second: Floats, patients: NDArray[np.str_]) -> float:
    """Return the standard error by Obuchowski's paper: sums by patient, a patient at a time."""
    names = sorted({*patients.tolist()})
    m, n = int(positive.sum()), int((~positive).sum())
    covariance = np.zeros((2, 2))
    sums10, sums01, counts10, counts01 = [], [], [], []
    for scores in (first, second):
        ups, downs = scores[positive], scores[~positive]
        area = roc_auc_score(positive, scores)
        rows10, rows01 = [], []
        for name in names:
            mine = patients == name
            v10 = [np.mean((up > downs) + (up == downs) / 2) for up in scores[mine & positive]]
            v01 = [np.mean((ups > down) + (ups == down) / 2) for down in scores[mine & ~positive]]
            rows10.append(sum(v10) - len(v10) * area)
            rows01.append(sum(v01) - len(v01) * area)
        sums10.append(rows10)
        sums01.append(rows01)
    counts10 = [bool((positive & (patients == name)).any()) for name in names]
    counts01 = [bool((~positive & (patients == name)).any()) for name in names]
    i10, i01, i = sum(counts10), sum(counts01), len(names)
    for a in range(2):
        for b in range(2):
            s10 = i10 / ((i10 - 1) * m) * np.dot(sums10[a], sums10[b])
            s01 = i01 / ((i01 - 1) * n) * np.dot(sums01[a], sums01[b])
            s11 = i / (i - 1) * np.dot(sums10[a], sums01[b])
            s11_turned = i / (i - 1) * np.dot(sums10[b], sums01[a])
            covariance[a, b] = s10 / m + s01 / n + s11 / (m * n) + s11_turned / (m * n)
    contrast = np.array([-1.0, 1.0])
    return math.sqrt(contrast @ covariance @ contrast)


def test_patients_with_cases_of_both_classes_are_obuchowskis_clusters() -> None:
    positive, first, second = make(60, seed=8)
    patients = np.array([f"p{k // 3}" for k in range(60)])
    found = compare_auc(positive, first, second, patients)
    assert found.error == pytest.approx(obuchowski(positive, first, second, patients))


def test_under_no_difference_p_is_uniform_enough_with_clusters() -> None:
    rng = np.random.default_rng(5)
    values = []
    for _ in range(400):
        patients = np.repeat(np.arange(40), 3)
        positive = np.repeat(rng.random(40) < 0.5, 3)
        shared = np.repeat(rng.normal(0, 1, 40), 3) + positive
        first, second = (shared + np.repeat(rng.normal(0, 1, 40), 3) for _ in range(2))
        values.append(compare_auc(positive, first, second, patients.astype(str)).p)
    # 400 draws: the share below 0.05 lies within 0.05 +- 3 * 0.011 of an exact test.
    assert 0.015 < np.mean(np.array(values) < 0.05) < 0.09


def test_one_class_or_one_patient_of_a_class_says_nothing() -> None:
    positive, first, second = make()
    for truth, patients in (
        (np.ones(40, bool), alone(40)),
        (positive, np.where(positive, "same", alone(40))),
    ):
        found = compare_auc(truth, first, second, patients)
        assert all(math.isnan(each.value) for each in (found.first, found.second, found.change))
        assert math.isnan(found.p)
        assert found.change.why == "fewer than two patients of either class"


def test_scores_that_order_alike_do_not_differ_and_have_no_interval() -> None:
    positive, first, _ = make()
    found = compare_auc(positive, first, 3 * first + 1, alone(40))
    assert (found.change.value, found.error, found.p) == (0.0, 0.0, 1.0)
    assert math.isnan(found.change.low)
    assert math.isnan(found.change.high)


def test_without_any_spread_of_the_components_there_is_no_p_of_zero() -> None:
    # Perfect against constant: no case differs from another, so that the variance is estimated as 0.
    positive = np.array([True] * 3 + [False] * 3)
    found = compare_auc(positive, np.zeros(6), positive.astype(float), alone(6))
    assert (found.first.value, found.second.value, found.change.value) == (0.5, 1.0, 0.5)
    assert math.isnan(found.p)
    assert math.isnan(found.change.low)


def test_it_agrees_with_a_bootstrap_of_patients() -> None:
    positive, first, second = make(240, seed=2)
    patients = np.arange(240) // 2
    found: Difference = compare_auc(positive, first, second, patients.astype(str))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(300):
        chosen = rng.integers(0, 120, 120)
        rows = np.concatenate([2 * chosen, 2 * chosen + 1])
        truth = positive[rows]
        drawn.append(roc_auc_score(truth, second[rows]) - roc_auc_score(truth, first[rows]))
    assert np.std(drawn) == pytest.approx(found.error, rel=0.15)
