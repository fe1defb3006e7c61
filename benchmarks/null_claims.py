"""How often studies of claims without any effect say that there is one: docs/results/null-claims.md.

python benchmarks/null_claims.py [--studies 300]

A study has twelve claims on one metric, each a mean over 40 patients of what a variant's three seeds gained.
Nothing gains: a patient's gain has a part that all seeds share (standard deviation 0.5) and one of each seed
(1), and each seed a shift of its own, `spread` standard errors of a run's mean; from claim to claim that
differs by a factor of exp(`unlike` z), z standard normal. Beside it the plain way: patients and seeds drawn
with replacement.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.comparison import Measured, difference_of, effects_of, holm
from threefold.evaluation.spread import moderated

PATIENTS, SEEDS, CLAIMS, REPLICATES = 40, 3, 12, 999
PAGE = Path(__file__).parents[1] / "docs" / "results" / "null-claims.md"
Floats = NDArray[np.float64]
Pair = tuple[Measured, Measured]


def mean_of(values: Floats) -> Measured:
    """Return the mean over patients as a metric."""
    names = np.arange(len(values)).astype(str)
    return Measured(names, names, lambda weights: (weights @ values) / weights.sum(axis=1))


def claims_of(rng: np.random.Generator, spread: float, unlike: float) -> list[Floats]:
    """Draw what each seed gained of each patient, (SEEDS, PATIENTS), for each claim."""
    found = []
    for _ in range(CLAIMS):
        scale = spread / np.sqrt(PATIENTS) * np.exp(unlike * rng.standard_normal())
        shifts = rng.normal(0, scale, (SEEDS, 1))
        found.append(shifts + rng.normal(0, 0.5, PATIENTS) + rng.standard_normal((SEEDS, PATIENTS)))
    return found


def ours(claims: list[Floats], seed: int) -> list[float]:
    """Return the p of each claim, before Holm's correction."""
    pairs: list[list[Pair]] = [[(mean_of(row * 0), mean_of(row)) for row in gains] for gains in claims]
    spreads = moderated([effects_of(each) for each in pairs])
    return [
        difference_of(each, replicates=REPLICATES, confidence=0.95, spread=spread, seed=seed).p
        for each, spread in zip(pairs, spreads, strict=True)
    ]


def plain(claims: list[Floats], seed: int) -> list[float]:
    """Return the same by drawing patients and seeds with replacement."""
    rng, found = np.random.default_rng(seed), []
    for gains in claims:
        patients = rng.integers(0, PATIENTS, (REPLICATES, 1, PATIENTS))
        seeds = rng.integers(0, SEEDS, (REPLICATES, SEEDS, 1))
        drawn = gains[seeds, patients].mean(axis=(1, 2))
        sides = (np.count_nonzero(drawn <= 0) + 1, np.count_nonzero(drawn >= 0) + 1)
        found.append(min(1.0, 2 * min(sides) / (REPLICATES + 1)))
    return found


def shares(way: Callable[[list[Floats], int], list[float]], studies: list[list[Floats]]) -> list[float]:
    """Return the shares of claims with p < 0.05 and p < 0.005, and of studies with any after Holm."""
    found = [way(claims, seed) for seed, claims in enumerate(studies)]
    p = np.concatenate(found)
    any_left = np.array([min(holm(each)) < 0.05 for each in found])
    return [float(share.mean()) for share in (p < 0.05, p < 0.005, any_left)]


def main(studies: int) -> None:
    """Write the page."""
    lines = [
        "# Claims without an effect",
        "",
        "How often a study says that there is an effect where there is none: twelve claims of three",
        f"seeds each, {PATIENTS} patients, {studies} studies a row. Wanted are at most 0.05 of the claims",
        "with p below 0.05, 0.005 with p below 0.005, and 0.05 of the studies with any claim left after",
        "Holm's correction. Made by",
        "",
        "```",
        "python benchmarks/null_claims.py",
        "```",
        "",
        "| spread | unlike | p < 0.05 | p < 0.005 | any left | plain: p < 0.05 | p < 0.005 | any left |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for spread in (0.0, 1.0, 2.0, 5.0):
        for unlike in (0.0, 1.0) if spread else (0.0,):
            rng = np.random.default_rng(int(10 * spread + unlike))
            drawn = [claims_of(rng, spread, unlike) for _ in range(studies)]
            cells = [f"{share:.3f}" for way in (ours, plain) for share in shares(way, drawn)]
            lines.append(f"| {spread:g} | {unlike:g} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    lines += [
        "",
        "Spread: standard deviation of the seeds' shifts, in standard errors of one run's mean over",
        "patients. Unlike: how much that differs between claims (standard deviation of its logarithm).",
        "Any left: after the correction. Plain: patients and seeds drawn with replacement.",
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--studies", type=int, default=300)
    main(parser.parse_args().studies)
