"""How much effects vary over seeds, learned from all claims of one metric.

Three pairs tell little of their variance: two degrees of freedom, with which hardly any effect is certain.
The claims of a study that are about one metric are of one kind, and what they show of each other's variance
can be used (Smyth 2004, doi 10.2202/1544-6115.1027, the moderated t): each variance s^2 with d degrees of
freedom is taken as drawn about a common s0^2, as if that came with d0 degrees of freedom more. Where the
claims' variances differ by no more than chance, d0 is infinite and all share one; where they differ widely,
d0 is about 0 and each stands for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST = 3
"""Effects that are needed to learn from one another; fewer stand for themselves."""
_SMALLEST = 1e-5  # a variance, relative to the median: its logarithm is taken


@dataclass(frozen=True)
class Spread:
    """The variance of an effect over pairs.

    Attributes:
        variance: of one pair's effect.
        freedom: degrees of freedom that it is known with.
    """

    variance: float
    freedom: float


def own_spread(effects: Floats) -> Spread | None:
    """Return the variance of S pairs' effects, (S,), with S - 1 degrees of freedom; None of one pair."""
    if len(effects) < 2 or np.isnan(effects).any():
        return None
    return Spread(float(effects.var(ddof=1)), len(effects) - 1)


def moderated(effects: Sequence[Floats]) -> list[Spread | None]:
    """Return the spread of each of G effects, learned from all of them (Smyth 2004, equations 1 to 6).

    Args:
        effects: of each claim, its pairs' effects (S,).

    Returns:
        None where an effect has fewer than two pairs, or does not exist in one.
    """
    alone = [own_spread(each) for each in effects]
    known = [each for each in alone if each is not None]
    variances = np.array([each.variance for each in known])
    freedom = np.array([each.freedom for each in known])
    if len(known) < FEWEST or np.median(variances) <= 0:
        return alone
    common, more = _prior(variances, freedom)
    # Claims share runs: together they can't say more than all of their degrees of freedom.
    total = np.minimum(more + freedom, freedom.sum())
    weight = 1.0 if np.isinf(more) else more / (more + freedom)
    shared = iter((weight * common + (1 - weight) * variances).tolist())
    ends = iter(total.tolist())
    return [None if each is None else Spread(next(shared), next(ends)) for each in alone]


def _prior(variances: Floats, freedom: Floats) -> tuple[float, float]:
    """Return s0^2 and d0, by the mean and the variance of the logarithms."""
    from scipy.special import polygamma, psi

    floored = np.maximum(variances, _SMALLEST * np.median(variances))
    logs = np.log(floored) - psi(freedom / 2) + np.log(freedom / 2)
    excess = logs.var(ddof=1) - polygamma(1, freedom / 2).mean()
    if excess <= 0:
        return float(np.exp(logs.mean())), np.inf
    more = 2 * _inverse_trigamma(float(excess))
    return float(np.exp(logs.mean() + psi(more / 2) - np.log(more / 2))), more


def _inverse_trigamma(value: float) -> float:
    """Return x > 0 with trigamma(x) = value, which falls from infinity to 0."""
    from scipy.optimize import brentq
    from scipy.special import polygamma

    return float(np.exp(brentq(lambda x: np.log(polygamma(1, np.exp(x))) - np.log(value), -30.0, 30.0)))
