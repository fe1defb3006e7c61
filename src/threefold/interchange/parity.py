"""Whether a network answers in an engine as in PyTorch, by its probabilities, labels and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from threefold.errors import RunError
from threefold.inference.cases import probabilities_of
from threefold.inference.engine import Prepared, Result, run_network
from threefold.inference.predictor import Predictor

LARGEST_DIFFERENCE = 1e-4
"""Of a probability or of a restored image (0 to 1), and of a number by its size, in float32."""
SMALLEST_DICE = {False: 0.999, True: 0.98}
"""Of a label map, in float32 and (True) in bfloat16."""


@dataclass(frozen=True)
class Agreement:
    """How far the answers to one image are apart.

    Attributes:
        image: its case, or `random N`.
        difference: the largest of a probability, of a number by its size, or of a restored image.
        dice: the smallest of a label map's foreground; 1 where there is none in both.
        same_decisions: every diagnosis is decided alike.
    """

    image: str
    difference: float
    dice: float
    same_decisions: bool

    def holds(self, *, bf16: bool) -> bool:
        """Whether that is one network up to rounding."""
        return (
            self.same_decisions
            and self.dice >= SMALLEST_DICE[bf16]
            and (bf16 or self.difference <= LARGEST_DIFFERENCE)
        )

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def require_parity(
    predictor: Predictor, engine: nn.Module, images: Sequence[Prepared], *, bf16: bool, name: str
) -> tuple[Agreement, ...]:
    """Ask a network in PyTorch and in an engine about the same images; refuse one that answers otherwise.

    Args:
        predictor: with the network in PyTorch.
        engine: the same network.
        images: on the network's grid.
        bf16: the engine computes in bfloat16, so that probabilities may differ.
        name: of the engine.

    Raises:
        RunError: naming the image whose answers are furthest apart.
    """
    found = tuple(
        _agreement(predictor, one.case_id, plain, other)
        for one, plain, other in zip(
            images,
            _answers(predictor, predictor.network, images),
            _answers(predictor, engine, images),
            strict=True,
        )
    )
    failing = [one for one in found if not one.holds(bf16=bf16)]
    if failing:
        worst = min(failing, key=lambda one: (one.same_decisions, one.dice, -one.difference))
        raise RunError(
            f"{name} does not answer as PyTorch does: of {len(found)} images {len(failing)} differ, "
            f"{worst.image} by {worst.difference:.2g} (expected at most {LARGEST_DIFFERENCE:g}), Dice "
            f"{worst.dice:.4f} (expected at least {SMALLEST_DICE[bf16]}), decisions "
            f"{'equal' if worst.same_decisions else 'not equal'}. "
            "Nothing was written. Use PyTorch (leave --engine out), or another version of the engine."
        )
    return found


def _answers(predictor: Predictor, network: nn.Module, images: Sequence[Prepared]) -> list[Result]:
    return [
        result
        for _, result in run_network(
            network, images, predictor.questions, device="cpu", batch_size=len(images)
        )
    ]


def _agreement(predictor: Predictor, image: str, plain: Result, other: Result) -> Agreement:
    differences = [
        float(np.max(np.abs(a - b) / np.maximum(1, np.abs(a)), initial=0.0))
        for first, second in ((plain.pooled, other.pooled), (plain.images, other.images))
        for a, b in ((first[name], second[name]) for name in first)
    ]
    decisions = [
        [
            predictor.decide(probabilities_of(one, result), one)
            for one in predictor.questions
            if one.kind == "class"
        ]
        for result in (plain, other)
    ]
    return Agreement(
        image,
        max(differences, default=0.0),
        min((_dice(plain.labels[name], other.labels[name]) for name in plain.labels), default=1.0),
        decisions[0] == decisions[1],
    )


def _dice(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the smallest Dice over the labels that either map has."""
    labels = [label for label in np.union1d(first, second) if label]
    return min(
        (
            2
            * float(((first == label) & (second == label)).sum())
            / float((first == label).sum() + (second == label).sum())
            for label in labels
        ),
        default=1.0,
    )
