"""Labels and a feature that goes with them, their shares met as closely as whole patients can."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def labels_and_agreement(
    generator: np.random.Generator, patients: int, positives: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return labels, and numbers whose comparison with a probability says whether a feature agrees.

    A feature that agrees where the number is below p goes with the label in a share p of the patients of
    either label; a larger p keeps every agreement of a smaller one.

    Args:
        generator: is drawn from.
        patients: how many.
        positives: share of the positive label.

    Returns:
        (patients,) labels, and (patients,) numbers in 0..1.
    """
    labels = _even(generator, patients) < positives
    agreement = np.empty(patients)
    for label in (False, True):
        agreement[labels == label] = _even(generator, int((labels == label).sum()))
    return labels, agreement


def _even(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Return (count,) numbers in 0..1, each uniform, one in each of `count` equal intervals."""
    return (generator.permutation(count) + generator.random()) / max(count, 1)
