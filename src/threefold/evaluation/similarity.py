"""How alike two representations of the same cases are: linear CKA, without the bias of few cases.

Centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414) of features X (n, p) and Y (n, q) is

    CKA = HSIC(XX', YY') / sqrt(HSIC(XX', XX') HSIC(YY', YY'))

It does not change under rotations and scalings of the features. The plain estimate of HSIC is biased upwards
where cases are few beside features; the unbiased one, HSIC_1 (Song et al. 2012, JMLR 13, equation 4), is a
mean over cases that all differ (K and L without their diagonals, sums over i, j, q, r distinct):

    HSIC_1 = mean K_ij L_ij + mean K_ij L_qr - 2 mean K_ij L_iq

Over minibatches each of the three HSIC is the mean of its batches' (Nguyen, Raghu, Kornblith 2021, arXiv
2010.15327, equation 3), so that no Gram matrix is larger than a batch.

For the bootstrap each case carries a weight, how often its patient was drawn: each mean becomes a weighted
    one over the same distinct cases. So a case drawn twice is never held against itself, which would pass
    for likeness; with all weights one the formulas are the papers'.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from threefold.evaluation.estimate import Estimate
from threefold.evaluation.intervals import bootstrap
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BATCH = 1024
"""Cases of a minibatch; fewer cases are one batch."""
_FEWEST = 4  # cases that HSIC_1 needs


def similarity(
    first: ArrayLike, second: ArrayLike, patients: Sequence[str], spec: EvaluationSpec
) -> Estimate:
    """Return the unbiased linear CKA of two representations of n cases.

    Args:
        first: (n, p) features.
        second: (n, q) features of the same cases in the same order.
        patients: (n,) patient of each case.
        spec: replicates, confidence and seed; the seed draws the minibatches as well.

    Returns:
        1 for the same up to rotation and scale, about 0 (a little more or less) for unrelated ones.
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    names, numbers = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    batches = minibatches(numbers.astype(np.int64), BATCH, spec.seed)
    value = float(linear_cka(x, y, np.ones((1, len(x))), batches)[0]) if batches else np.nan
    if np.isnan(value):
        why = f"fewer than {_FEWEST} cases" if not batches else "features that do not vary"
        return Estimate(metric="cka", value=np.nan, n=len(x), patients=len(names), why=why)
    interval = bootstrap(
        lambda weights: {"cka": linear_cka(x, y, weights, batches)},
        numbers.astype(np.int64),
        replicates=spec.replicates,
        confidence=spec.confidence,
        seed=spec.seed,
    )["cka"]
    return Estimate(
        metric="cka",
        value=value,
        interval=interval.ends,
        n=len(x),
        patients=len(names),
        why=interval.reason,
    )


def linear_cka(first: Floats, second: Floats, weights: Floats, batches: Sequence[Ints]) -> Floats:
    """Return unbiased linear CKA for R weightings of n cases, (R,); NaN where it does not exist.

    Args:
        first: (n, p).
        second: (n, q).
        weights: (R, n) how often each case counts.
        batches: the cases of each minibatch.
    """
    sums = np.zeros((3, len(weights)))
    for batch in batches:
        grams = [_gram(features[batch]) for features in (first, second)]
        of_batch = weights[:, batch]
        for at, (one, two) in enumerate(((0, 1), (0, 0), (1, 1))):
            sums[at] += hsic(grams[one], grams[two], of_batch)
    across, first_alone, second_alone = sums
    exists = (first_alone > 0) & (second_alone > 0)
    found = np.full(len(weights), np.nan)
    found[exists] = across[exists] / np.sqrt(first_alone[exists] * second_alone[exists])
    return found


def hsic(first: Floats, second: Floats, weights: Floats) -> Floats:
    """Return HSIC_1 of two Gram matrices for R weightings of n cases, (R,); NaN with fewer than four cases.

    Args:
        first, second: (n, n) symmetric; their diagonals are left out.
        weights: (R, n) at least 0, and ones for the plain estimate.
    """
    k, l = (gram - np.diag(np.diag(gram)) for gram in (first, second))  # noqa: E741
    squares = weights**2
    # Sums over i != j, over three and over four cases that all differ, by inclusion and exclusion.
    k_rows, l_rows = weights @ k, weights @ l  # (R, n)
    product = k * l
    pairs = np.einsum("rn,rn->r", weights @ product, weights)
    stars = np.einsum("rn,rn->r", weights, k_rows * l_rows - squares @ product)
    overlaps = np.einsum("rn,rn->r", squares, k_rows * l_rows)
    doubles = np.einsum("rn,rn->r", squares @ product, squares)
    totals = [np.einsum("rn,rn->r", rows, weights) for rows in (k_rows, l_rows)]
    apart = totals[0] * totals[1] - 4 * overlaps + 2 * doubles
    s1, s2, s3, s4 = (np.sum(weights**power, axis=1) for power in (1, 2, 3, 4))
    two = s1**2 - s2
    three = s1**3 - 3 * s1 * s2 + 2 * s3
    four = s1**4 - 6 * s1**2 * s2 + 3 * s2**2 + 8 * s1 * s3 - 6 * s4
    enough = np.count_nonzero(weights, axis=1) >= _FEWEST
    found = np.full(len(weights), np.nan)
    found[enough] = (pairs / np.where(enough, two, 1) - 2 * stars / np.where(enough, three, 1))[enough]
    found[enough] += (apart / np.where(enough, four, 1))[enough]
    return found


def minibatches(patients: Ints, size: int, seed: int) -> list[Ints]:
    """Return the cases of each minibatch, drawn at random, a patient's together where the size allows.

    Args:
        patients: (n,) patient of each case, numbered without gaps.
        size: cases of a batch at most.
        seed: of the draw.

    Returns:
        Batches of nearly equal size; none of fewer than four cases.
    """
    if len(patients) < _FEWEST:
        return []
    order = np.random.default_rng(seed).permutation(int(patients.max()) + 1)
    cases = np.argsort(order[patients], kind="stable")
    return [np.sort(part) for part in np.array_split(cases, -(-len(cases) // size))]


def _gram(features: Floats) -> Floats:
    """Return XX' of features whose mean is taken off: HSIC_1 does not change, and rounding matters less."""
    centred = features - features.mean(axis=0)
    return centred @ centred.T  # type: ignore[no-any-return]
