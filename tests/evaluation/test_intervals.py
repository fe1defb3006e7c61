"""The patient-clustered bootstrap against resampling by hand, and its coverage."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from threefold.evaluation.classification import weighted_auc, weighted_mean
from threefold.evaluation.intervals import (
    MAX_MISSING,
    Interval,
    bootstrap,
    exact_interval,
    patient_weights,
    percentile_interval,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PATIENTS = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4, 5])


def interval_of(values: Floats, patients: Ints, *, replicates: int = 400, seed: int = 0) -> Interval:
    def mean(weights: Floats) -> Mapping[str, Floats]:
        return {"mean": weighted_mean(values, weights)}

    return bootstrap(mean, patients, replicates=replicates, confidence=0.95, seed=seed)["mean"]


def holds(found: Interval, truth: float) -> bool:
    return found.ends is not None and found.ends[0] <= truth <= found.ends[1]


def test_it_is_the_resampling_of_whole_patients_by_hand() -> None:
    rng = np.random.default_rng(1)
    positive, scores = np.array([1, 0, 1, 0, 0, 1, 0, 1, 0, 1]) == 1, rng.random(10).round(1)
    replicates, seed = 300, 9
    # The same draws: as many patients as there are, with replacement; a drawn patient brings all its cases.
    drawn = np.random.default_rng(seed).integers(0, 6, size=(replicates, 6))
    values = []
    for patients in drawn:
        cases = np.concatenate([np.flatnonzero(patient == PATIENTS) for patient in patients])
        one_class = len({*positive[cases].tolist()}) == 1
        values.append(np.nan if one_class else roc_auc_score(positive[cases], scores[cases]))
    low, high = np.nanquantile(values, [0.05, 0.95])
    missing = int(np.isnan(values).sum())

    found = bootstrap(
        lambda weights: {"auc": weighted_auc(positive, scores, weights)},
        PATIENTS,
        replicates=replicates,
        confidence=0.9,
        seed=seed,
    )["auc"]
    assert found.ends == pytest.approx((low, high), abs=1e-12)
    assert found.missing == missing
    assert found.reason == ""


def test_weights_draw_patients_and_never_part_their_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate([*patient_weights(PATIENTS, 50, 3)])
    assert whole.shape == (50, 10)
    first_case = np.unique(PATIENTS, return_index=True)[1]
    np.testing.assert_array_equal(whole, whole[:, first_case][:, PATIENTS])
    np.testing.assert_array_equal(whole[:, first_case].sum(axis=1), 6)
    # In blocks that a small memory forces, the draws are the same.
    monkeypatch.setattr("threefold.evaluation.intervals._ELEMENTS_AT_ONCE", 35)
    blocks = [*patient_weights(PATIENTS, 50, 3)]
    assert [len(block) for block in blocks] == [3] * 16 + [2]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).random(10)
    assert interval_of(values, PATIENTS, seed=4) == interval_of(values, PATIENTS, seed=4)
    assert interval_of(values, PATIENTS, seed=4) != interval_of(values, PATIENTS, seed=5)


def test_copies_of_a_patients_case_do_not_narrow_the_interval() -> None:
    of_patient = np.random.default_rng(2).random(30)
    values, patients = np.repeat(of_patient, 5), np.repeat(np.arange(30), 5)
    clustered = interval_of(values, patients)
    by_case = interval_of(values, np.arange(150))
    once = interval_of(of_patient, np.arange(30))
    assert clustered.ends is not None
    assert by_case.ends is not None
    assert clustered.ends == pytest.approx(once.ends, abs=1e-12)
    width, narrow = (high - low for low, high in (clustered.ends, by_case.ends))
    # Five equal cases a patient: the case bootstrap is too narrow by about the root of five.
    assert width / narrow == pytest.approx(np.sqrt(5), rel=0.2)


def test_coverage_is_near_nominal_with_alike_cases_and_a_case_bootstrap_is_not() -> None:
    rng = np.random.default_rng(11)
    trials, patients = 300, np.repeat(np.arange(40), 4)
    covered = np.zeros(2)
    for trial in range(trials):
        values = np.repeat(rng.normal(size=40), 4) + 0.5 * rng.normal(size=160)
        for which, clusters in enumerate((patients, np.arange(160))):
            found = interval_of(values, clusters, replicates=200, seed=trial)
            covered[which] += holds(found, 0)
    clustered, by_case = covered / trials
    assert 0.91 <= clustered <= 0.98
    assert by_case < 0.8


def test_auc_coverage_is_near_nominal() -> None:
    rng = np.random.default_rng(5)
    truth = stats.norm.cdf(1 / np.sqrt(2 * (1 + 0.5**2)))
    patients, positive = np.repeat(np.arange(60), 3), np.repeat(np.arange(60) % 2 == 0, 3)
    covered, trials = 0, 200
    for trial in range(trials):
        scores = positive + np.repeat(rng.normal(size=60), 3) + 0.5 * rng.normal(size=180)
        found = bootstrap(
            lambda weights, scores=scores: {"auc": weighted_auc(positive, scores, weights)},
            patients,
            replicates=200,
            confidence=0.95,
            seed=trial,
        )["auc"]
        covered += holds(found, truth)
    assert 0.89 <= covered / trials <= 0.99


def test_no_interval_is_given_with_its_reason() -> None:
    for patients, reason in ((1, "fewer than 5 patients"), (4, "fewer than 5 patients"), (5, "")):
        assert interval_of(np.arange(patients) / 10, np.arange(patients)).reason == reason
    same = interval_of(np.full(10, 0.3), PATIENTS)
    assert same.reason == "every resample gives the same value"
    assert same.ends is None


def test_no_cases_have_no_intervals() -> None:
    nothing = bootstrap(
        lambda weights: {"mean": weights.sum(axis=1)},
        np.zeros(0, np.int64),
        replicates=10,
        confidence=0.95,
        seed=0,
    )
    assert nothing == {}


def test_replicates_without_the_metric_are_counted_and_too_many_of_them_refused() -> None:
    values = np.linspace(0, 1, 100)
    values[: int(MAX_MISSING * 100)] = np.nan
    kept = percentile_interval(values, 0.9)
    assert kept.missing == 10
    assert kept.ends == pytest.approx(tuple(np.quantile(values[10:], [0.05, 0.95])))
    values[50] = np.nan
    refused = percentile_interval(values, 0.9)
    assert refused.ends is None
    assert refused.reason == "absent in 11% of resamples"
    assert percentile_interval(np.full(5, np.nan), 0.9).reason == "absent in 100% of resamples"


@pytest.mark.parametrize("patients", [1, 5, 37])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_shares_of_none_and_all_have_the_exact_binomial_interval(patients: int, confidence: float) -> None:
    for share, hits in ((0.0, 0), (1.0, patients)):
        expected = stats.binomtest(hits, patients).proportion_ci(confidence, method="exact")
        found = exact_interval(share, patients, confidence)
        assert found.ends == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("share", "patients"), [(0.5, 3), (0.0, 0)])
def test_the_exact_interval_is_for_none_and_all_only(share: float, patients: int) -> None:
    with pytest.raises(ValueError, match="share of 0 or 1"):
        exact_interval(share, patients, 0.95)
