"""Bounds with a stated coverage, against the order statistic of split conformal and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from threefold.evaluation.conformal import class_set, conformal_bound, volume_interval, volume_score


@pytest.mark.parametrize("n", [9, 19, 20, 57])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_with_a_case_a_patient_it_is_the_order_statistic_of_split_conformal(n: int, level: float) -> None:
    scores = np.random.default_rng(n).normal(size=n)
    place = math.ceil((n + 1) * level - 1e-9)
    assert conformal_bound(scores, [f"p{k}" for k in range(n)], level) == np.sort(scores)[place - 1]


def test_few_patients_have_no_bound_however_many_cases_they_have() -> None:
    scores = np.random.default_rng(1).normal(size=80)
    patients = [f"p{k % 8}" for k in range(80)]
    assert math.isinf(conformal_bound(scores, patients, 0.9))
    assert math.isfinite(conformal_bound([*scores, 0.0], [*patients, "p8"], 0.9))
    assert math.isinf(conformal_bound([], [], 0.5))


def test_cases_of_one_patient_share_a_weight() -> None:
    # One patient with a hundred bad cases among nineteen with a good one each.
    scores = [*np.linspace(0, 1, 19), *np.full(100, 9.0)]
    patients = [*(f"p{k}" for k in range(19)), *["bad"] * 100]
    assert conformal_bound(scores, patients, 0.9) == 1.0


def test_new_patients_are_covered_at_least_as_often_as_stated() -> None:
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(400):
        cases = rng.integers(1, 9, 31)
        own = np.repeat(rng.normal(size=31), cases)  # what the cases of a patient have in common
        scores = np.abs(own + 0.3 * rng.normal(size=cases.sum()))
        patients = np.repeat(np.arange(31), cases)
        new = patients == 30
        bound = conformal_bound(scores[~new], patients[~new].astype(str).tolist(), 0.8)
        covered.append((scores[new] <= bound).mean())
    assert 0.8 - 3 * 0.02 < np.mean(covered) < 0.8 + 1 / 31 + 3 * 0.02


def test_a_set_has_what_is_within_the_bound_and_always_the_most_probable() -> None:
    assert class_set([0.6, 0.3, 0.1], 0.75) == (0, 1)
    assert class_set([0.6, 0.3, 0.1], 0.1) == (0,)
    assert class_set([0.2, 0.8], math.inf) == (0, 1)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_interval_of_a_volume_is_where_the_score_is_within_the_bound(axes: int) -> None:
    bound = 0.7
    for predicted in (0.0, 0.2, 40.0):
        low, high = volume_interval(predicted, bound, axes)
        assert volume_score([predicted], [high], axes)[0] == pytest.approx(bound)
        assert volume_score([predicted], [low], axes)[0] <= bound + 1e-12
        assert low <= predicted <= high
    assert volume_interval(3.0, math.inf, axes) == (0.0, math.inf)
