"""Metrics of the diagnosis against scikit-learn with sample_weight, and against brute force."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn import metrics as sk

from threefold.evaluation import classification
from threefold.evaluation.classification import (
    auc,
    average_precision,
    calibration_bins,
    calibration_error,
    choose_threshold,
    confusion,
    weighted_auc,
    weighted_average_precision,
    weighted_mean,
)
from threefold.evaluation.diagnosis import diagnosis

NINE = {
    "f1",
    "auc",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "average_precision",
    "accuracy",
    "brier",
    "calibration_error",
}
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def draws(seed: int, n: int, replicates: int) -> Floats:
    """Bootstrap weights: how often each case is drawn."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(replicates)]).astype(
        float
    )


def binary(seed: int, n: int = 60, digits: int | None = None) -> tuple[Ints, Floats]:
    """Labels and probabilities; with few digits, many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    scores = np.clip(0.3 * labels + 0.7 * rng.random(n), 0, 1)
    return labels, scores if digits is None else scores.round(digits)


def expected_binary(labels: Ints, p: Floats, w: Floats, threshold: float) -> dict[str, float]:
    decided = p >= threshold
    known = {"sample_weight": w}
    return {
        "f1": sk.f1_score(labels, decided, zero_division=0, **known),
        "auc": sk.roc_auc_score(labels, p, **known),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, decided, **known),
        "sensitivity": sk.recall_score(labels, decided, **known),
        "specificity": sk.recall_score(labels, decided, pos_label=0, **known),
        "average_precision": sk.average_precision_score(labels, p, **known),
        "accuracy": sk.accuracy_score(labels, decided, **known),
        "brier": sk.brier_score_loss(labels, p, **known),
    }


@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize("seed", range(4))
def test_two_classes_agree_with_scikit_learn(seed: int, digits: int | None) -> None:
    labels, p = binary(seed, digits=digits)
    weights = np.concatenate([np.ones((1, len(p))), draws(seed, len(p), 12)])
    found = diagnosis(labels, np.stack([1 - p, p], axis=1), positive=1, threshold=0.5)(weights)
    for row, w in enumerate(weights):
        for name, value in expected_binary(labels, p, w, 0.5).items():
            assert found[name, None][row] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("seed", range(3))
def test_the_positive_class_may_be_the_first(seed: int) -> None:
    labels, p = binary(seed)
    weights = draws(seed, len(p), 5)
    first = diagnosis(1 - labels, np.stack([p, 1 - p], 1), positive=0, threshold=0.4)(weights)
    second = diagnosis(labels, np.stack([1 - p, p], 1), positive=1, threshold=0.4)(weights)
    assert first.keys() == second.keys()
    for key, values in second.items():
        np.testing.assert_allclose(first[key], values, atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_more_classes_are_each_against_the_rest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1, 2], rng.integers(0, 3, 57)])
    p = rng.dirichlet(np.ones(3), 60)
    p[np.arange(60), labels] += 0.4
    p /= p.sum(axis=1, keepdims=True)
    weights = np.concatenate([np.ones((1, 60)), draws(seed, 60, 6)])
    found = diagnosis(labels, p, positive=None, threshold=0.5)(weights)
    decision = p.argmax(axis=1)
    for row, w in enumerate(weights):
        known = {"sample_weight": w}
        per_class = {
            "f1": sk.f1_score(labels, decision, average=None, **known),
            "sensitivity": sk.recall_score(labels, decision, average=None, **known),
            "specificity": [sk.recall_score(labels != k, decision != k, **known) for k in range(3)],
            "auc": [sk.roc_auc_score(labels == k, p[:, k], **known) for k in range(3)],
            "average_precision": [
                sk.average_precision_score(labels == k, p[:, k], **known) for k in range(3)
            ],
        }
        for name, values in per_class.items():
            assert found[name, None][row] == pytest.approx(np.mean(values), abs=1e-12), name
            assert [found[name, k][row] for k in range(3)] == pytest.approx(list(values), abs=1e-12), name
        whole = {
            "balanced_accuracy": sk.balanced_accuracy_score(labels, decision, **known),
            "accuracy": sk.accuracy_score(labels, decision, **known),
            "brier": np.average(((p - np.eye(3)[labels]) ** 2).sum(axis=1), weights=w),
        }
        for name, value in whole.items():
            assert found[name, None][row] == pytest.approx(value, abs=1e-12), name


def test_a_missing_class_leaves_its_means_and_its_own_numbers_not_estimable() -> None:
    labels = np.array([0, 0, 1, 1])
    p = np.full((4, 3), 1 / 3)
    found = diagnosis(labels, p, positive=None, threshold=0.5)(np.ones((1, 4)))
    for name in ("f1", "auc", "sensitivity", "balanced_accuracy", "average_precision"):
        assert np.isnan(found[name, None][0]), name
    assert np.isnan(found["auc", 2][0])
    assert found["auc", 0][0] == 0.5
    assert found["accuracy", None][0] == 0.5


@pytest.mark.parametrize(
    ("labels", "absent"),
    [
        ([0, 0, 0], {"f1", "auc", "balanced_accuracy", "sensitivity", "average_precision"}),
        ([1, 1, 1], {"auc", "balanced_accuracy", "specificity"}),
        ([], NINE),
    ],
)
def test_what_does_not_exist_is_nan_and_stays_in_the_answer(labels: list[int], absent: set[str]) -> None:
    truth = np.array(labels, np.int64)
    p = np.linspace(0.2, 0.8, len(labels))
    found = diagnosis(truth, np.stack([1 - p, p], axis=1), positive=1, threshold=0.5)(
        np.ones((2, len(labels)))
    )
    assert {name for name, _ in found} == NINE
    assert {name for (name, _), values in found.items() if np.isnan(values).all()} == absent
    assert all(len(values) == 2 for values in found.values())


def test_more_classes_without_cases_are_not_estimable() -> None:
    found = diagnosis(np.zeros(0, np.int64), np.zeros((0, 3)), positive=None, threshold=0.5)(np.ones((2, 0)))
    assert all(np.isnan(values).all() and len(values) == 2 for values in found.values())


def test_a_replicate_without_a_class_is_nan_and_the_others_are_not() -> None:
    positive, scores = np.array([False, False, True]), np.array([0.1, 0.2, 0.3])
    weights = np.array([[1.0, 1, 1], [2, 1, 0], [0, 0, 3]])
    np.testing.assert_array_equal(weighted_auc(positive, scores, weights), [1, np.nan, np.nan])
    np.testing.assert_array_equal(weighted_average_precision(positive, scores, weights), [1, np.nan, 1])


def brute_calibration(positive: NDArray[np.bool_], p: Floats, w: Floats, bins: Ints) -> float:
    total = 0.0
    for b in set(bins.tolist()):
        inside = bins == b
        mass = w[inside].sum()
        if mass:
            gap = np.average(positive[inside], weights=w[inside]) - np.average(p[inside], weights=w[inside])
            total += mass * abs(gap)
    return total / w.sum()


@pytest.mark.parametrize("digits", [None, 1])
def test_calibration_error_is_the_mean_gap_over_the_bins(digits: int | None) -> None:
    labels, p = binary(7, 95, digits)
    weights = np.concatenate([np.ones((1, 95)), draws(7, 95, 8)])
    found = calibration_error(labels == 1, p, weights)
    bins = calibration_bins(p)
    assert found == pytest.approx([brute_calibration(labels == 1, p, w, bins) for w in weights], abs=1e-12)


def test_calibration_bins_hold_equally_many_cases() -> None:
    p = np.random.default_rng(0).random(200)
    bins = calibration_bins(p)
    np.testing.assert_array_equal(np.bincount(bins), np.full(10, 20))
    assert (np.diff(bins[np.argsort(p)]) >= 0).all()


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])))
def test_equal_probabilities_share_a_bin_and_bins_have_no_gaps(p: Floats) -> None:
    bins = calibration_bins(p)
    for value in set(p.tolist()):
        assert len(set(bins[p == value].tolist())) == 1
    assert {*bins.tolist()} == {*range(int(bins.max()) + 1)}
    assert bins.max() < 10


def youden(labels: Ints, decided: NDArray[np.bool_]) -> float:
    return float(decided[labels == 1].mean() - decided[labels == 0].mean())


def f1_of(labels: Ints, decided: NDArray[np.bool_]) -> float:
    return float(sk.f1_score(labels, decided, zero_division=0))


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(0, 1), min_size=2, max_size=14),
    seed=st.integers(0, 1000),
    levels=st.sampled_from([3, 10, 10**6]),
    rule=st.sampled_from(["youden", "f1"]),
)
def test_no_cut_is_better_than_the_chosen_threshold(
    labels: list[int], seed: int, levels: int, rule: Literal["youden", "f1"]
) -> None:
    truth = np.array(labels)
    p = np.random.default_rng(seed).integers(0, levels + 1, len(labels)) / levels
    chosen = choose_threshold(truth, p, rule)
    if len(set(labels)) == 1:
        assert chosen == 0.5
        return
    gain = youden if rule == "youden" else f1_of
    # Every way to cut: at each probability, and above them all.
    cuts = [*np.unique(p), 1.1]
    best = max(gain(truth, p >= cut) for cut in cuts)
    assert 0 <= chosen <= 1
    assert gain(truth, p >= chosen) == pytest.approx(best, abs=1e-12)
    # Of equally good decisions, none could be taken nearer to 0.5 by a midway cut.
    midway = (np.concatenate([[0], np.unique(p)[:-1]]) + np.unique(p)) / 2
    equal = [m for m in midway if gain(truth, p >= m) > best - 1e-12 and m not in p]
    assert all(abs(chosen - 0.5) <= abs(m - 0.5) + 1e-12 for m in equal)


def test_the_fixed_rule_and_one_class_give_a_half() -> None:
    labels, p = binary(0)
    assert choose_threshold(labels, p, "0.5") == 0.5
    assert choose_threshold(np.ones(5), np.linspace(0, 1, 5), "youden") == 0.5
    assert choose_threshold([], [], "f1") == 0.5


def test_a_threshold_lies_between_the_classes_it_parts() -> None:
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], "youden") == pytest.approx(0.4)
    close = [0.5, np.nextafter(0.5, 1)]
    assert choose_threshold([0, 1], close, "youden") == close[1]


@pytest.mark.parametrize("metric", [auc, average_precision])
def test_plain_forms_refuse_what_is_no_set_of_cases(metric: object) -> None:
    assert callable(metric)
    for labels, scores, words in (
        ([0, 1], [0.5], "alike"),
        ([0, 2], [0.5, 0.5], "0 or 1"),
        ([0, 1], [0.5, np.nan], "finite"),
    ):
        with pytest.raises(ValueError, match=words):
            metric(labels, scores)


def test_plain_forms_agree_with_scikit_learn() -> None:
    labels, p = binary(3, digits=1)
    assert auc(labels, p) == pytest.approx(sk.roc_auc_score(labels, p))
    assert average_precision(labels == 1, p) == pytest.approx(sk.average_precision_score(labels, p))
    assert np.isnan(auc([1, 1], [0.1, 0.2]))
    assert np.isnan(average_precision([], []))


def test_confusion_counts_with_weights() -> None:
    labels, p = binary(5)
    w = draws(5, len(p), 1)
    counts = confusion(labels == 1, p >= 0.6, w)
    cells = sk.confusion_matrix(labels, p >= 0.6, sample_weight=w[0]).ravel()
    found = (counts.true_negative, counts.false_positive, counts.false_negative, counts.true_positive)
    np.testing.assert_array_equal(np.concatenate(found), cells)


def test_a_mean_with_an_infinite_case_is_not_estimable_where_the_case_counts() -> None:
    values, weights = np.array([30.0, np.inf, 20.0]), np.array([[1.0, 1, 1], [1, 0, 3]])
    np.testing.assert_array_equal(weighted_mean(values, weights), [np.nan, 22.5])


def test_the_auc_by_pairs_is_that_by_sums_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    positive, scores = rng.random(120) < 0.4, rng.random(120).round(2)
    weights = rng.multinomial(120, np.full(120, 1 / 120), 30).astype(np.float64)
    by_pairs = weighted_auc(positive, scores, weights)
    monkeypatch.setattr(classification, "_MOST_COMPARED", 0)
    assert weighted_auc(positive, scores, weights).tobytes() == by_pairs.tobytes()


def test_what_no_weight_changes_is_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sorts: list[int] = []
    argsort = np.argsort
    monkeypatch.setattr(
        classification.np, "argsort", lambda *given, **how: (sorts.append(1), argsort(*given, **how))[1]
    )
    rng = np.random.default_rng(5)
    chance = rng.random((50, 2))
    metrics = diagnosis(rng.integers(0, 2, 50), chance, positive=1, threshold=0.5)
    for _ in range(3):
        metrics(np.ones((4, 50)))
    assert len(sorts) == 1
