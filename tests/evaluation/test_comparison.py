"""Effects over seeds and patients against plain loops; p-values, Holm's correction and verdicts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from threefold.evaluation.association import holm
from threefold.evaluation.classification import weighted_auc, weighted_mean
from threefold.evaluation.comparison import (
    Effect,
    Expected,
    Measured,
    Verdict,
    difference_of,
    effects_of,
    mean_of,
    verdict,
)
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.intervals import SAME_VALUE

Floats = NDArray[np.float64]


def mean_measure(values: Floats, patients: list[int] | NDArray[np.int64], first: int = 0) -> Measured:
    """Return the mean of values as a metric; `first` numbers the cases."""
    names = np.array([f"c{first + k}" for k in range(len(values))])
    return Measured(
        names, np.array([f"p{p}" for p in patients]), lambda weights: weighted_mean(values, weights)
    )


def pairs_of(
    differences: list[Floats], patients: list[int] | NDArray[np.int64]
) -> list[tuple[Measured, Measured]]:
    base = np.random.default_rng(7).random(len(patients))
    return [(mean_measure(base, patients), mean_measure(base + each, patients)) for each in differences]


def test_it_is_the_resampling_of_patients_by_hand() -> None:
    rng = np.random.default_rng(1)
    patients = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4, 5])
    names = np.array([f"p{p}" for p in patients])
    cases = np.array([f"c{k}" for k in range(10)])
    positive = np.array([1, 0, 1, 0, 0, 1, 0, 1, 0, 1]) == 1
    scores = rng.random((3, 2, 10)).round(1)  # pairs, baseline and variant, cases

    def measured(values: Floats) -> Measured:
        return Measured(cases, names, lambda weights: weighted_auc(positive, values, weights))

    found = difference_of(
        [(measured(a), measured(b)) for a, b in scores], replicates=400, confidence=0.9, seed=9
    )

    def auc(values: Floats, chosen: NDArray[np.int64]) -> float:
        ups, downs = (values[[c for c in chosen if positive[c] == sign]] for sign in (True, False))
        if not len(ups) or not len(downs):
            return math.nan
        return float(np.mean([(u > d) + (u == d) / 2 for u in ups for d in downs]))

    everyone = np.arange(10)
    effects = [auc(b, everyone) - auc(a, everyone) for a, b in scores]
    effect = np.mean(effects)
    generator = np.random.default_rng(9)
    drawn = []
    for patient_draw in np.concatenate([generator.integers(0, 6, (rows, 6)) for rows in (250, 150)]):
        chosen = np.concatenate([np.flatnonzero(patients == p) for p in patient_draw])
        drawn.append(np.mean([auc(b, chosen) - auc(a, chosen) for a, b in scores]))
    wider = np.sqrt(6 / generator.chisquare(5, 400))
    seeds = np.std(effects, ddof=1) / np.sqrt(3) * generator.standard_t(2, 400)
    replicates = effect + (np.array(drawn) - effect) * wider + seeds
    there = replicates[~np.isnan(replicates)]
    assert found.estimate.value == pytest.approx(effect)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((*np.quantile(there, [0.05, 0.95]),))
    sides = [(np.sum(there <= 0) + 1) / (len(there) + 1), (np.sum(there >= 0) + 1) / (len(there) + 1)]
    assert found.p == pytest.approx(max(min(1, 2 * min(sides)), 2**-5))
    assert (found.runs, found.estimate.n, found.estimate.patients, found.estimate.why) == (3, 10, 6, "")


def test_runs_tested_on_other_patients_are_resampled_together() -> None:
    # Two splits with disjoint test parts: the union is resampled, a patient in neither changes nothing.
    first, second = (
        mean_measure(np.array([1.0, 2.0, 3.0]), [0, 1, 1]),
        mean_measure(np.array([4.0, 6.0]), [2, 3], first=3),
    )
    found = mean_of([first, second], replicates=500, confidence=0.95)
    assert found.estimate.value == pytest.approx((2 + 5) / 2)
    assert found.each == pytest.approx((2, 5))
    assert (found.estimate.n, found.estimate.patients, found.runs) == (5, 4, 2)
    assert (found.fewest_cases, found.fewest_patients) == (2, 2)
    assert math.isnan(found.p)


def test_the_interval_covers_the_truth_of_both_levels() -> None:
    """Many pairs and patients: the truth is missed about as often as the interval says."""
    rng = np.random.default_rng(3)
    missed = 0
    for trial in range(120):
        patients = np.repeat(np.arange(40), 2)
        of_patient = np.repeat(rng.normal(0.3, 1.0, 40), 2)
        of_pair = rng.normal(0, 0.3, 12)
        differences = [of_patient + rng.normal(0, 0.2, 80) + shift for shift in of_pair]
        found = difference_of(pairs_of(differences, patients), replicates=300, confidence=0.9, seed=trial)
        missed += not found.estimate.low <= 0.3 <= found.estimate.high
    assert stats.binom.cdf(missed, 120, 0.1) > 0.001
    assert stats.binom.sf(missed, 120, 0.1) > 0.001


def test_seeds_are_a_level_of_their_own() -> None:
    patients = np.arange(60)
    noise = np.random.default_rng(0).normal(0, 0.1, 60)
    alike = difference_of(pairs_of([noise + 0.2] * 3, patients), replicates=1000, confidence=0.95)
    spread = difference_of(
        pairs_of([noise + shift for shift in (-0.2, 0.2, 0.6)], patients), replicates=1000, confidence=0.95
    )
    assert spread.estimate.value == pytest.approx(alike.estimate.value)
    assert spread.estimate.high - spread.estimate.low > 3 * (alike.estimate.high - alike.estimate.low)
    assert alike.p < 0.01 < spread.p


def test_a_patients_cases_count_as_one_patient() -> None:
    rng = np.random.default_rng(2)
    of_patient = rng.normal(0.2, 1, 30)
    once = difference_of(pairs_of([of_patient], np.arange(30)), replicates=2000, confidence=0.95)
    four = np.repeat(np.arange(30), 4)
    often = difference_of(pairs_of([of_patient[four]], four), replicates=2000, confidence=0.95)
    assert often.estimate.high - often.estimate.low == pytest.approx(
        once.estimate.high - once.estimate.low, rel=0.01
    )
    assert (often.estimate.n, often.estimate.patients) == (120, 30)


def test_p_grows_with_the_margin_and_is_two_sided() -> None:
    rng = np.random.default_rng(4)
    pairs = pairs_of([rng.normal(0.3, 1, 80)], np.arange(80))
    p = [difference_of(pairs, replicates=2000, confidence=0.95, margin=m).p for m in (0.0, 0.1, 0.2, 0.5)]
    assert p == sorted(p)
    assert p[0] < 0.05
    assert p[-1] > 0.5
    turned = difference_of([(b, a) for a, b in pairs], replicates=2000, confidence=0.95)
    assert turned.p == pytest.approx(p[0])


def test_p_of_a_difference_that_a_claim_names_is_the_t_tests() -> None:
    differences = np.random.default_rng(8).normal(0.0, 0.08, 150)
    differences -= differences.mean()
    pairs = pairs_of([differences], np.arange(150))
    found = difference_of(pairs, replicates=8000, confidence=0.95, beyond=-0.02)
    assert found.p == pytest.approx(stats.ttest_1samp(differences, -0.02).pvalue, abs=0.02)
    plain = difference_of(pairs, replicates=8000, confidence=0.95)
    assert found.estimate == plain.estimate  # p alone is of it
    # Not shown to differ from none, and shown to be no worse by 0.02.
    assert verdict(plain, plain.p, "higher", 0.95) == "undecided"
    assert verdict(found, found.p, "higher", 0.95, beyond=-0.02) == "supported"
    worse = difference_of(
        pairs_of([differences - 0.06], np.arange(150)), replicates=8000, confidence=0.95, beyond=-0.02
    )
    assert verdict(worse, worse.p, "higher", 0.95, beyond=-0.02) == "contradicted"


def test_p_of_many_patients_is_near_the_t_tests() -> None:
    differences = np.random.default_rng(6).normal(0.15, 1, 150)
    found = difference_of(pairs_of([differences], np.arange(150)), replicates=8000, confidence=0.95)
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)


@pytest.mark.parametrize("patients", [2, 4, 6])
def test_few_patients_that_all_agree_prove_little(patients: int) -> None:
    differences = np.linspace(0.1, 0.2, patients)
    found = difference_of(pairs_of([differences], np.arange(patients)), replicates=4000, confidence=0.95)
    # Never less than a sign test says of them, and else about what the t-test says.
    expected = max(stats.binomtest(patients, patients).pvalue, stats.ttest_1samp(differences, 0).pvalue)
    assert found.p == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.5, 2 / 501)])
def test_where_every_resample_is_alike_there_is_no_interval_of_no_width(shift: float, p: float) -> None:
    found = difference_of(pairs_of([np.full(30, shift)], np.arange(30)), replicates=500, confidence=0.95)
    assert found.estimate.value == pytest.approx(shift)
    assert math.isnan(found.estimate.low)
    assert math.isnan(found.estimate.high)
    assert found.estimate.why == SAME_VALUE
    assert found.p == pytest.approx(p, abs=1e-6)


def test_what_cant_be_estimated_says_why() -> None:
    empty = Measured(np.array([], str), np.array([], str), lambda weights: np.full(len(weights), np.nan))
    for found, note in (
        (mean_of([], replicates=50, confidence=0.95), "no finished run was tested on it"),
        (mean_of([empty], replicates=50, confidence=0.95), "no test case has it"),
        (
            difference_of([(empty, empty)], replicates=50, confidence=0.95),
            "baseline and variant share no test case that has it",
        ),
    ):
        assert (found.estimate.n, found.estimate.patients, found.estimate.why) == (0, 0, note)
        assert math.isnan(found.estimate.value)

    one = mean_of([mean_measure(np.array([1.0, 2.0]), [0, 0])], replicates=50, confidence=0.95)
    assert one.estimate.value == 1.5
    assert math.isnan(one.estimate.low)
    assert one.estimate.why == "fewer than 5 patients"

    def absent(weights: Floats) -> Floats:
        return np.full(len(weights), np.nan)

    names = np.array(["a", "b"])
    half = mean_of(
        [mean_measure(np.array([1.0, 2.0]), [0, 1]), Measured(names, names, absent)],
        replicates=50,
        confidence=0.95,
    )
    assert math.isnan(half.estimate.value)
    assert half.estimate.why == "the metric does not exist in 1 of 2 runs"

    def rare(weights: Floats) -> Floats:
        return np.where(weights[:, 0] > 0, 1.0, np.nan)

    five = np.array(list("abcde"))
    patchy = mean_of([Measured(five, five, rare)], replicates=400, confidence=0.95)
    assert patchy.estimate.value == 1.0
    assert math.isnan(patchy.estimate.low)
    assert patchy.estimate.why.startswith(
        "absent in 3"
    )  # the first of five is not drawn in 0.8^5 of the resamples


def test_tests_on_other_cases_are_compared_unpaired() -> None:
    rng = np.random.default_rng(5)
    here, there = rng.normal(0, 1, 40), rng.normal(1, 1, 60)
    first = mean_measure(here, np.arange(40))
    second = mean_measure(there, np.arange(40, 100), first=40)
    found = difference_of([(first, second)], replicates=4000, confidence=0.95)
    assert (found.estimate.n, found.estimate.patients, found.fewest_cases) == (100, 100, 40)
    assert found.estimate.value == pytest.approx(there.mean() - here.mean())
    # Welch's interval: the patients of either group are drawn for themselves.
    welch = stats.ttest_ind(there, here, equal_var=False).confidence_interval(0.95)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((welch.low, welch.high), abs=0.06)


def test_a_share_of_none_has_the_exact_interval_over_patients() -> None:
    runs = [mean_measure(np.zeros(6), [0, 0, 1, 1, 2, 2]), mean_measure(np.zeros(6), [0, 0, 1, 1, 2, 2])]
    share = mean_of(runs, replicates=50, confidence=0.95, is_share=True)
    assert (share.estimate.value, share.estimate.low, share.estimate.why) == (0.0, 0.0, "")
    assert share.estimate.high == pytest.approx(stats.binomtest(0, 3).proportion_ci(0.95, "exact").high)
    assert math.isnan(mean_of(runs, replicates=50, confidence=0.95).estimate.low)


def test_a_difference_stays_within_what_the_metric_allows() -> None:
    pairs = pairs_of([np.array([0.9, 0.8]), np.array([-0.9, 0.1])], np.arange(2))
    wide, cut = (
        difference_of(pairs, replicates=500, confidence=0.95, largest=largest) for largest in (np.inf, 1.0)
    )
    assert wide.estimate.low < -1
    assert wide.estimate.high > 1
    assert (cut.estimate.low, cut.estimate.high, cut.estimate.value, cut.p) == (
        -1.0,
        1.0,
        wide.estimate.value,
        wide.p,
    )


@pytest.mark.parametrize(("patients", "spread"), [(60, 0.0), (60, 5.0), (8, 1.0)])
def test_without_an_effect_few_p_are_small(patients: int, spread: float) -> None:
    """Three seeds that differ by `spread` standard errors of a run, or few patients."""
    rng = np.random.default_rng(patients)
    small = 0
    for trial in range(300):
        common = rng.normal(0, 0.5, patients)
        shifts = rng.normal(0, spread / np.sqrt(patients), 3)
        differences = [common + rng.normal(0, 1, patients) + shift for shift in shifts]
        pairs = pairs_of(differences, np.arange(patients))
        small += difference_of(pairs, replicates=300, confidence=0.95, seed=trial).p < 0.05
    assert stats.binom.sf(small, 300, 0.05) > 0.001


@pytest.mark.parametrize("fewest", [3, 5, 8])
def test_a_few_patients_against_many_prove_little(fewest: int) -> None:
    rng = np.random.default_rng(fewest)
    small = 0
    for trial in range(200):
        few = mean_measure((rng.random(fewest) < 0.7) * 1.0, np.arange(fewest))
        many = mean_measure((rng.random(30) < 0.7) * 1.0, np.arange(100, 130), first=100)
        small += difference_of([(many, few)], replicates=300, confidence=0.95, seed=trial).p < 0.05
    assert stats.binom.sf(small, 200, 0.05) > 0.001


@pytest.mark.parametrize(("splits", "seeds"), [(3, 3), (2, 5)])
def test_pairs_of_one_split_are_not_independent(splits: int, seeds: int) -> None:
    """Without an effect, with training cases that matter as much as seeds do."""
    rng = np.random.default_rng(splits)
    patients, scale = 60, 5 / np.sqrt(60)
    number = np.repeat(np.arange(splits), seeds).tolist()
    small = as_if_independent = 0
    for trial in range(200):
        common = rng.normal(0, 0.5, patients)
        shifts = np.repeat(rng.normal(0, scale, splits), seeds) + rng.normal(0, scale, splits * seeds)
        pairs = pairs_of([common + rng.normal(0, 1, patients) + s for s in shifts], np.arange(patients))
        settings = {"replicates": 300, "confidence": 0.95, "seed": trial}
        small += difference_of(pairs, splits=number, **settings).p < 0.05
        as_if_independent += difference_of(pairs, **settings).p < 0.05
        means = effects_of(pairs).reshape(splits, seeds).mean(axis=1)
        assert effects_of(pairs, number) == pytest.approx(means)
    assert stats.binom.sf(small, 200, 0.05) > 0.001
    assert stats.binom.sf(as_if_independent, 200, 0.05) < 0.001
    assert effects_of(pairs, [0] * len(pairs)) == pytest.approx(effects_of(pairs))


def test_a_mean_of_several_shares_has_no_binomial_interval() -> None:
    names = np.arange(8).astype(str)
    classes = tuple(np.arange(8) % 3 == k for k in range(3))
    ones = Measured(names, names, lambda weights: np.ones(len(weights)), classes)
    assert math.isnan(mean_of([ones], replicates=50, confidence=0.95, is_share=True).estimate.low)
    of_one = Measured(names, names, ones.metric, classes[:1])
    assert mean_of([of_one], replicates=50, confidence=0.95, is_share=True).estimate.low == pytest.approx(
        stats.binomtest(3, 3).proportion_ci(0.95, "exact").low
    )


def test_the_same_seed_gives_the_same_numbers() -> None:
    pairs = pairs_of([np.random.default_rng(0).normal(0, 1, 30)] * 2, np.arange(30))
    found = [difference_of(pairs, replicates=300, confidence=0.95, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0].estimate.low != found[2].estimate.low


def test_holms_correction_by_the_paper() -> None:
    # Holm 1979: the k-th smallest of m times (m - k + 1), never below one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with_gaps = holm([math.nan, 0.01, math.nan, 0.04])
    assert with_gaps[1::2] == pytest.approx([0.02, 0.04])
    assert all(math.isnan(value) for value in with_gaps[::2])


@pytest.mark.parametrize("seed", range(5))
def test_holms_correction_rejects_what_the_step_down_procedure_rejects(seed: int) -> None:
    values = np.random.default_rng(seed).random(8) ** 3
    adjusted = holm(list(values))
    for level in np.arange(0.01, 0.5, 0.03):
        rejected = set()
        for rank, index in enumerate(np.argsort(values)):
            if values[index] > level / (len(values) - rank):
                break
            rejected.add(int(index))
        assert {k for k, p in enumerate(adjusted) if p <= level} == rejected


NUMBER = Estimate(metric="auc", value=0.1, interval=(0.05, 0.15), n=60, patients=20)
EFFECT = Effect(NUMBER, 0.001, 3, 60, 20, (0.08, 0.1, 0.12))


@pytest.mark.parametrize(
    ("value", "adjusted", "expected", "said"),
    [
        (0.1, 0.01, "higher", "supported"),
        (-0.1, 0.01, "higher", "contradicted"),
        (-0.1, 0.01, "lower", "supported"),
        (0.1, 0.01, "lower", "contradicted"),
        (0.1, 0.01, "different", "supported"),
        (-0.1, 0.01, "different", "supported"),
        (0.1, 0.2, "higher", "undecided"),
        (-0.1, 0.2, "different", "undecided"),
        (0.1, 0.06, "higher", "undecided"),
        (math.nan, math.nan, "higher", "not estimable"),
        (0.1, math.nan, "higher", "not estimable"),
    ],
)
def test_the_verdict_follows_its_rule(
    value: float, adjusted: float, expected: Expected, said: Verdict
) -> None:
    assert verdict(replace(EFFECT, estimate=replace(NUMBER, value=value)), adjusted, expected, 0.95) == said
    assert verdict(replace(EFFECT, estimate=replace(NUMBER, value=value)), adjusted, expected, 0.99) in (
        said,
        "undecided",
    )
