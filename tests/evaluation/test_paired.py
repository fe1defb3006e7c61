"""Paired differences against scipy's bootstrap and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from threefold.evaluation.paired import gain, registration_gains, variant_gains
from threefold.experiment import EvaluationSpec

from .test_structures_table import make_predictions

SPEC = EvaluationSpec(replicates=4000)


def test_a_case_a_patient_is_the_plain_paired_bootstrap() -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(0.7, 0.1, 40)
    after = before + generator.normal(0.05, 0.05, 40)
    found = gain("dice", ("a", before), ("b", after), [str(i) for i in range(40)], SPEC)
    expected = bootstrap(
        (after - before,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.change.value == pytest.approx(np.mean(after - before))
    assert (found.change.low, found.change.high) == pytest.approx((expected.low, expected.high), abs=1.5e-3)
    # Both are measured on the same cases: the interval is far narrower than that of either mean.
    alone = gain("dice", ("a", before * 0), ("b", after), [str(i) for i in range(40)], SPEC)
    assert found.change.high - found.change.low < 0.6 * (alone.change.high - alone.change.low)


def test_patients_are_resampled_and_not_their_cases() -> None:
    change = np.repeat(np.random.default_rng(0).normal(0.05, 0.05, 20), 5)
    whose = [str(i // 5) for i in range(100)]
    clustered = gain("dice", ("a", np.zeros(100)), ("b", change), whose, SPEC)
    single = gain("dice", ("a", np.zeros(20)), ("b", change[::5]), whose[::5], SPEC)
    assert (clustered.change.n, clustered.change.patients) == (100, 20)
    # Five equal cases of each of 20 patients say no more than 20 cases.
    assert (clustered.change.low, clustered.change.high) == pytest.approx(
        (single.change.low, single.change.high), abs=2e-3
    )


def test_cases_without_both_are_left_out_and_nothing_is_claimed_without_any() -> None:
    nan = np.nan
    found = gain(
        "d", ("a", np.array([0.1, nan, 0.3])), ("b", np.array([0.2, 0.9, 0.5])), ["p", "q", "r"], SPEC
    )
    assert (found.change.n, found.first.value, found.second.value) == (
        2,
        pytest.approx(0.2),
        pytest.approx(0.35),
    )
    nothing = gain("d", ("a", np.array([nan])), ("b", np.array([0.2])), ["p"], SPEC)
    assert nothing.change.n == 0
    assert np.isnan([nothing.change.value, nothing.change.low, nothing.change.high]).all()


def test_registration_is_held_against_affine_and_none_where_the_table_has_them() -> None:
    quality = pd.DataFrame(
        {
            "case_id": ["1", "2"],
            "dice_unregistered": [0.1, 0.3],
            "dice_affine": [0.4, 0.4],
            "dice": [0.8, 0.6],
            "mask_dice_affine": [np.nan, np.nan],
            "mask_dice": [np.nan, np.nan],
        }
    )
    gains = [*registration_gains(quality, {"1": "p", "2": "q"}, SPEC)]
    assert [(g.before, g.after, round(g.change.value, 6)) for g in gains] == [
        ("unregistered", "registered", 0.5),
        ("affine", "registered", 0.3),
    ]


def test_variants_are_paired_case_by_case_whatever_the_order_of_their_rows() -> None:
    base = make_predictions(seed=1)
    assert base.structures is not None
    other = make_predictions(seed=2)
    assert other.structures is not None
    shuffled = replace(
        other,
        table=other.table.sample(frac=1, random_state=0).reset_index(drop=True),
        structures=other.structures.sample(frac=1, random_state=1).reset_index(drop=True),
        leaks=True,
    )
    (found,) = variant_gains({"base": base, "other": shuffled}, "base", SPEC)

    def by_hand(structures: pd.DataFrame) -> pd.Series:
        single = structures[(structures["structure"] != "union") & (structures["truth_voxels"] > 0)]
        voxels = single["truth_voxels"] + single["predicted_voxels"]
        return (2 * single["overlap_voxels"] / voxels).groupby(single["case_id"]).mean()

    test = base.part("test").set_index("case_id")
    pairs = pd.DataFrame({"a": by_hand(base.structures), "b": by_hand(other.structures)}).dropna()
    pairs = pairs.loc[pairs.index.intersection(test.index)]
    assert found.change.n == len(pairs) > 10
    assert found.change.value == pytest.approx((pairs["b"] - pairs["a"]).mean())
    by_pairs = gain(
        "Dice",
        ("a", pairs["a"].to_numpy()),
        ("b", pairs["b"].to_numpy()),
        test.loc[pairs.index, "patient_id"].tolist(),
        SPEC,
    )
    assert found.change.interval == pytest.approx(by_pairs.change.interval, abs=2e-3)
    assert found.change.leaks


def test_a_variant_that_tells_no_structures_apart_is_not_paired() -> None:
    base = make_predictions(seed=1)
    assert base.structures is not None
    union = replace(base, structures=base.structures[base.structures["structure"] == "union"])
    bare = replace(base, structures=None)
    assert [*variant_gains({"base": base, "union": union, "bare": bare}, "base", SPEC)] == []


def test_a_gain_of_nothing_has_no_interval_and_says_why() -> None:
    same = np.full(5, 0.5)
    found = gain("d", ("a", same), ("b", same), list("abcde"), SPEC)
    assert (found.change.value, found.change.why) == (0, "every resample gives the same value")
