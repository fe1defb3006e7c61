"""Curves against scikit-learn and against resampling by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve as reference_roc

from threefold.evaluation.classification import Ranking
from threefold.evaluation.curves import reliability_curve, roc_curve
from threefold.evaluation.intervals import exact_interval, patient_weights
from threefold.experiment import EvaluationSpec

SPEC = EvaluationSpec(replicates=60, seed=3)


def cases(
    n: int = 120, digits: int | None = None, seed: int = 0
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Return truth, scores (rounded, so that they tie) and patients of two cases each."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    scores = np.clip(rng.random(n) * 0.7 + 0.3 * positive, 0, 1)
    return positive, scores if digits is None else scores.round(digits), np.arange(n) // 2


@pytest.mark.parametrize("digits", [None, 1])
def test_roc_is_scikit_learns(digits: int | None) -> None:
    positive, scores, patients = cases(digits=digits)
    curve = roc_curve(positive, scores, patients, SPEC)
    assert curve is not None
    fpr, tpr, _ = reference_roc(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate, fpr)
    np.testing.assert_allclose(curve.true_positive_rate, tpr)


def test_the_roc_band_is_that_of_resampled_patients() -> None:
    positive, scores, patients = cases(digits=1)
    curve = roc_curve(positive, scores, patients, SPEC)
    assert curve is not None
    inside = []
    for weights in patient_weights(patients, SPEC.replicates, SPEC.seed):
        for weight in weights:
            fpr, tpr, _ = reference_roc(positive, scores, sample_weight=weight, drop_intermediate=False)
            inside.append(np.interp(curve.grid, fpr, tpr))
    low, high = np.quantile(inside, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(curve.low, low, atol=1e-12)
    np.testing.assert_allclose(curve.high, high, atol=1e-12)


def test_one_class_has_no_roc_and_one_patient_no_band() -> None:
    positive, scores, patients = cases()
    assert roc_curve(np.zeros_like(positive), scores, patients, SPEC) is None
    assert roc_curve(np.ones_like(positive), scores, patients, SPEC) is None
    assert roc_curve(positive[:0], scores[:0], patients[:0], SPEC) is None
    alone = roc_curve(positive, scores, np.zeros_like(patients), SPEC)
    assert alone is not None
    assert np.isnan(alone.low).all()


def test_a_band_that_few_resamples_have_is_not_drawn() -> None:
    # The only positive patient of ten is in two of three resamples.
    positive = np.arange(10) == 0
    curve = roc_curve(positive, np.linspace(0, 1, 10), np.arange(10), SPEC)
    assert curve is not None
    assert np.isnan(curve.low).all()
    assert np.isnan(curve.high).all()


def test_reliability_is_scikit_learns() -> None:
    positive, scores, patients = cases(200)
    curve = reliability_curve(positive, scores, patients, SPEC)
    assert curve is not None
    observed, predicted = calibration_curve(positive, scores, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(curve.observed, observed)
    np.testing.assert_allclose(curve.probability, predicted)
    assert curve.cases.tolist() == [20] * 10


def test_reliability_intervals_hold_the_share_and_are_exact_where_it_is_none_or_all() -> None:
    positive, scores, patients = cases(400)
    positive = (positive & (scores > 0.2)) | (scores > 0.8)
    curve = reliability_curve(positive, scores, patients, SPEC)
    assert curve is not None
    assert curve.observed[0] == 0
    assert curve.observed[-1] == 1
    assert (curve.low <= curve.observed).all()
    assert (curve.observed <= curve.high).all()
    lowest = np.argsort(scores)[: curve.cases[0]]
    expected = exact_interval(0.0, len(np.unique(patients[lowest])), 0.95)
    assert expected.ends is not None
    assert curve.high[0] == pytest.approx(expected.ends[1])
    assert curve.low[0] == 0


def test_no_cases_have_no_reliability() -> None:
    positive, scores, patients = cases()
    assert reliability_curve(positive[:0], scores[:0], patients[:0], SPEC) is None


def test_sums_by_score_keep_every_weight() -> None:
    positive, scores, _ = cases(digits=1)
    weights = np.random.default_rng(1).integers(0, 3, (5, len(scores))).astype(float)
    up_to_each = Ranking(positive, scores).up_to_each(weights)
    positives, negatives = (np.diff(kind, axis=1, prepend=0) for kind in up_to_each)
    assert positives.shape == negatives.shape == (5, len(np.unique(scores)))
    np.testing.assert_allclose(positives.sum(axis=1), weights[:, positive].sum(axis=1))
    np.testing.assert_allclose(negatives.sum(axis=1), weights[:, ~positive].sum(axis=1))
