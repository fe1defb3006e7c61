"""The spread over seeds that effects learn from one another."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from threefold.evaluation.spread import Spread, moderated, own_spread


def test_alone_it_is_the_sample_variance() -> None:
    effects = np.array([0.1, 0.4, 0.2])
    assert own_spread(effects) == Spread(pytest.approx(np.var(effects, ddof=1)), 2)  # type: ignore[arg-type]
    assert own_spread(effects[:1]) is None
    assert own_spread(np.array([0.1, np.nan])) is None
    assert moderated([effects, effects * 2]) == [own_spread(effects), own_spread(effects * 2)]
    assert moderated([effects * 0] * 4) == [own_spread(effects * 0)] * 4


def test_the_prior_of_many_effects_is_found() -> None:
    """Variances drawn as the model has them: s0^2 = 0.04 with d0 = 6."""
    rng = np.random.default_rng(0)
    true = 0.04 * 6 / rng.chisquare(6, 30000)
    effects = rng.normal(0, np.sqrt(true)[:, None], (30000, 3))
    found = [each for each in moderated([*effects]) if each is not None]
    freedom = found[0].freedom
    assert freedom - 2 == pytest.approx(6, rel=0.1)
    own = effects.var(axis=1, ddof=1)
    weight = (freedom - 2) / freedom
    common = (found[0].variance - (1 - weight) * own[0]) / weight
    assert common == pytest.approx(0.04, rel=0.1)
    # And with it the effects over their errors are Student's t, which they are not with the own variance.
    errors = np.sqrt([each.variance / 3 for each in found])
    assert stats.kstest((effects.mean(axis=1) / errors)[:2000], stats.t(freedom).cdf).pvalue > 0.01


def test_equal_variances_are_shared_and_unequal_ones_are_not() -> None:
    rng = np.random.default_rng(1)
    alike = moderated([*rng.normal(0, 0.1, (12, 3))])
    assert {each.freedom for each in alike if each is not None} == {24}  # all there are, and no more
    variances = np.array([each.variance for each in alike if each is not None])
    assert variances.std() < 0.1 * variances.mean()
    assert variances.mean() == pytest.approx(0.01, rel=0.5)
    scales = 10.0 ** np.arange(-3, 3)
    apart = moderated([*(rng.normal(0, 1, (6, 3)) * scales[:, None])])
    assert all(each is not None and each.freedom < 3 for each in apart)


def test_an_effect_without_spread_keeps_its_place() -> None:
    rng = np.random.default_rng(2)
    effects = [*rng.normal(0, 0.1, (4, 3))]
    found = moderated([effects[0], np.array([0.3]), *effects[1:], np.array([0.1, np.nan, 0.2])])
    assert [each is None for each in found] == [False, True, False, False, False, True]
    assert [each for each in found if each is not None] == moderated(effects)
