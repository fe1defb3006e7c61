"""Probes: the fit is scikit-learn's, patients stay together, and chance is found to be chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from threefold.evaluation.predictions import Predictions, validate
from threefold.evaluation.probes import (
    auc_within_folds,
    cross_validated,
    fit_probe,
    patient_folds,
    probe_column,
)
from threefold.experiment import EvaluationSpec

SPEC = EvaluationSpec(replicates=200)


def table(n: int = 120, **columns: object) -> Predictions:
    """Cases of 60 patients at two internal sites and one external one."""
    chance = np.linspace(0.1, 0.9, n)
    frame = pd.DataFrame(
        {
            "case_id": [f"c{i}" for i in range(n)],
            "patient_id": [f"p{i // 2}" for i in range(n)],
            "site": [f"site {i // 2 % 3 + 1}" for i in range(n)],
            "site_group": ["external" if i // 2 % 3 == 2 else "internal" for i in range(n)],
            "label": [("no", "yes")[i % 2] for i in range(n)],
            "probability_no": 1 - chance,
            "probability_yes": chance,
            **columns,
        }
    )
    return validate(frame)


@pytest.mark.parametrize("count", [2, 4])
def test_the_fit_is_scikit_learns(count: int) -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, count, 80)
    features = rng.normal(size=(80, 5)) * [1, 10, 0.1, 3, 1] + classes[:, None] + 40
    probe = fit_probe(features, classes, count, penalty=2.0)
    standard = (features - features.mean(0)) / features.std(0)
    # Of two classes scikit-learn has one vector of weights, the difference of ours.
    strength = 1.0 if count == 2 else 0.5
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=5000).fit(standard, classes)
    found = np.exp(probe.log_probabilities(features))
    assert found == pytest.approx(reference.predict_proba(standard), abs=1e-4)


def test_features_that_do_not_vary_are_harmless() -> None:
    rng = np.random.default_rng(1)
    features = np.column_stack([rng.normal(size=40), np.full(40, 7.0)])
    probe = fit_probe(features, (features[:, 0] > 0).astype(np.int64), 2)
    assert np.isfinite(probe.log_probabilities(features)).all()


def test_folds_keep_patients_together_and_share_out_the_classes() -> None:
    patients = np.repeat(np.arange(50), 3)
    classes = np.repeat((np.arange(50) < 10).astype(np.int64), 3)
    folds = patient_folds(patients, classes, 5, seed=0)
    assert all(len(set(folds[patients == p])) == 1 for p in range(50))
    assert [len(set(patients[(folds == f) & (classes == 1)])) for f in range(5)] == [2] * 5
    assert not np.array_equal(folds, patient_folds(patients, classes, 5, seed=1))


def test_no_case_is_scored_by_a_probe_that_saw_its_patient() -> None:
    # Features that name the patient and labels that follow patients: what only a leak could tell.
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(40), 5)
    classes = rng.integers(0, 2, 40)[patients]
    features = np.eye(40)[patients]
    honest = patient_folds(patients, classes, 5, seed=0)
    leaking = np.arange(200) % 5
    ones = np.ones((1, 200))
    found = [
        auc_within_folds(classes == 1, cross_validated(features, classes, folds, 2)[:, 1], folds, ones)[0]
        for folds in (honest, leaking)
    ]
    assert found[0] < 0.6
    assert found[1] > 0.95


def test_the_auc_counts_pairs_within_a_fold() -> None:
    positive = np.array([True, False, True, False, False])
    scores, folds = np.array([0.2, 0.1, 0.9, 0.8, 0.95]), np.array([0, 0, 1, 1, 1])
    ones = np.ones((1, 5))
    # Fold 0: 1 of 1 pairs, fold 1: 1 of 2.
    assert auc_within_folds(positive, scores, folds, ones)[0] == pytest.approx(2 / 3)
    together = auc_within_folds(positive, scores, np.zeros(5, np.int64), ones)[0]
    assert together == pytest.approx(roc_auc_score(positive, scores))
    assert np.isnan(auc_within_folds(positive, scores, np.arange(5), ones)[0])


def test_what_is_in_the_features_is_found_and_what_is_not_is_chance() -> None:
    rng = np.random.default_rng(3)
    clip = np.array([str(i // 2 % 2) for i in range(120)])
    features = rng.normal(size=(120, 6))
    known = features.copy()
    known[:, 0] += 3 * (clip == "1")
    for values, at_least, at_most in ((known, 0.9, 1.0), (features, 0.3, 0.7)):
        found = {probe.auc[0].group: probe for probe in probe_column(table(clip=clip), values, "clip", SPEC)}
        assert list(found) == ["all", "internal", "external"]
        row = found["all"].auc[0]
        assert at_least <= row.value <= at_most
        assert row.low < row.value < row.high
        assert (row.n, row.patients, row.positives) == (120, 60, 60)
    assert found["all"].majority.value == pytest.approx(0.5)


def test_several_values_have_the_mean_of_each_against_the_rest() -> None:
    rng = np.random.default_rng(4)
    predictions = table()
    sites = predictions.table["site"].str[-1].astype(int).to_numpy()
    features = np.eye(3)[sites - 1] + rng.normal(size=(120, 3))
    everyone = next(probe_column(predictions, features, "site", SPEC))
    mean, *each = everyone.auc
    assert [row.class_name for row in each] == ["site 1", "site 2", "site 3"]
    assert mean.value == pytest.approx(np.mean([row.value for row in each]))
    assert everyone.majority.value == pytest.approx(1 / 3)
    assert everyone.accuracy.value > 0.45


def test_values_of_few_patients_are_left_out_and_one_value_is_said() -> None:
    rare = ["rare" if i < 6 else ("a", "b")[i % 2] for i in range(120)]
    found = next(probe_column(table(kind=rare), np.random.default_rng(5).normal(size=(120, 2)), "kind", SPEC))
    assert found.accuracy.n == 114
    assert "rare" in found.note
    assert "fewer than 5 patients" in found.note
    single = next(probe_column(table(kind="a"), np.zeros((120, 2)), "kind", SPEC))
    assert "one value" in single.auc[0].note
    assert not list(probe_column(table(kind=""), np.zeros((120, 2)), "kind", SPEC))
