"""Unbiased linear CKA against a brute-force sum over distinct cases, its invariances, and its bias."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from threefold.evaluation.similarity import hsic, linear_cka, minibatches, similarity
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]
SPEC = EvaluationSpec(replicates=200)


def whole(n: int) -> list[NDArray[np.int64]]:
    return [np.arange(n)]


def plain_cka(x: Floats, y: Floats) -> float:
    return float(linear_cka(x, y, np.ones((1, len(x))), whole(len(x)))[0])


def brute_hsic(k: Floats, l: Floats, weights: Floats) -> float:  # noqa: E741
    """The definition: weighted means over pairs, quadruples and triples of distinct cases."""
    n = len(k)
    means = []
    for count, value in (
        (2, lambda i, j: k[i, j] * l[i, j]),
        (4, lambda i, j, q, r: k[i, j] * l[q, r]),
        (3, lambda i, j, q: k[i, j] * l[i, q]),
    ):
        at = list(permutations(range(n), count))
        weight = np.array([np.prod(weights[list(each)]) for each in at])
        means.append(np.sum(weight * [value(*each) for each in at]) / weight.sum())
    return float(means[0] + means[1] - 2 * means[2])


def published_hsic(k: Floats, l: Floats) -> float:  # noqa: E741
    """Equation 4 of Song et al. 2012, in matrices."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    ones = np.ones(n)
    third = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return float((np.trace(k @ l) + third - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3)))


def test_hsic_is_the_published_formula_and_the_brute_force_sum() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    k, l = x @ x.T, y @ y.T  # noqa: E741
    weights = np.array([np.ones(6), [2, 0, 1, 1, 3, 1], [0, 0, 1, 2, 1, 1]], float)
    found = hsic(k, l, weights)
    assert found[0] == pytest.approx(published_hsic(k, l))
    assert found == pytest.approx([brute_hsic(k, l, each) for each in weights])


def test_an_exact_case() -> None:
    # Four cases at 0, 1, 2, 4 on a line, against the same with the last two swapped.
    x, y = np.array([[0.0], [1], [2], [4]]), np.array([[0.0], [1], [4], [2]])
    expected = published_hsic(x @ x.T, y @ y.T) / published_hsic(x @ x.T, x @ x.T)
    assert plain_cka(x, y) == pytest.approx(expected)
    assert plain_cka(x, x) == pytest.approx(1)


def test_rotation_scale_and_shift_change_nothing() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 6))
    y = x[:, :3] + rng.normal(size=(40, 3))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert plain_cka(7 * x @ rotation + 100, y) == pytest.approx(plain_cka(x, y))
    assert plain_cka(x, x @ rotation) == pytest.approx(1)
    assert plain_cka(x, y) == pytest.approx(plain_cka(y, x))
    # An invertible map that is no rotation does change it.
    assert plain_cka(x @ np.diag([1, 1, 1, 1, 1, 9]), y) < plain_cka(x, y) / 2


def test_independent_features_have_none_on_average_even_with_few_cases() -> None:
    rng = np.random.default_rng(2)
    n, found, biased = 12, [], []
    for _ in range(300):
        x, y = rng.normal(size=(n, 30)), rng.normal(size=(n, 30))
        found.append(plain_cka(x, y))
        x, y = x - x.mean(0), y - y.mean(0)
        norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
        biased.append(np.linalg.norm(x.T @ y) ** 2 / norms)
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.mean(biased) > 0.6  # what the plain estimate makes of the same


def test_minibatches_average_to_the_whole() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(600, 4))
    y = x[:, :2] + rng.normal(size=(600, 2))
    patients = np.arange(600) // 3
    batches = minibatches(patients, 64, seed=0)
    assert sorted(np.concatenate(batches)) == list(range(600))
    assert max(map(len, batches)) <= 64
    in_batches = float(linear_cka(x, y, np.ones((1, 600)), batches)[0])
    assert in_batches == pytest.approx(plain_cka(x, y), abs=0.05)


def test_the_interval_covers_and_a_drawn_case_is_not_held_against_itself() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(30, 50)), rng.normal(size=(30, 50))
    found = similarity(x, y, [f"p{i}" for i in range(30)], SPEC)
    assert found.low < 0 < found.high
    assert (found.n, found.patients) == (30, 30)


def test_what_can_not_be_said_is_said() -> None:
    x = np.random.default_rng(5).normal(size=(8, 2))
    assert "fewer than 4 cases" in similarity(x[:3], x[:3], list("abc"), SPEC).note
    constant = similarity(x, np.ones((8, 2)), list("abcdefgh"), SPEC)
    assert np.isnan(constant.value)
    assert "do not vary" in constant.note
    assert "fewer than 5 patients" in similarity(x, x[:, :1], ["a"] * 8, SPEC).note
