"""Order, steps and loaders: determined by the seed, complete, without a case counted twice."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.training.data import (
    TrainingOrder,
    balanced_order,
    epoch_order,
    epoch_steps,
    validation_batches,
)


def test_an_epoch_visits_every_case_once_in_an_order_of_its_own() -> None:
    first, again, next_epoch, other_seed = (epoch_order(50, *key) for key in [(1, 0), (1, 0), (1, 1), (2, 0)])
    assert first == again
    assert sorted(first) == list(range(50))
    assert first not in (list(range(50)), next_epoch, other_seed)


def test_balanced_draws_make_the_classes_equally_likely_and_repeat_by_seed_and_epoch() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 6 + [None] * 4
    draws = [case for epoch in range(200) for case in balanced_order(labels, 5, epoch)]
    assert len(draws) == 200 * len(labels)
    share = Counter(labels[case] for case in draws)
    labelled = [share[label] / (len(draws) - share[None]) for label in (0, 1, 2)]
    assert labelled == pytest.approx([1 / 3] * 3, abs=0.02)
    # 96 labelled cases weigh 3 together, so an unlabelled one weighs 3 / 96.
    assert share[None] / len(draws) == pytest.approx(4 * 3 / 96 / (3 + 4 * 3 / 96), abs=0.005)
    assert balanced_order(labels, 5, 3) == balanced_order(labels, 5, 3) != balanced_order(labels, 5, 4)
    assert sorted(set(balanced_order([None, None, None], 0, 0))) <= [0, 1, 2]


def test_the_order_follows_the_sampling_and_is_the_same_on_every_rank() -> None:
    labels = [0] * 9 + [1]
    ranks = [
        TrainingOrder(labels, sampling="balanced", batch_size=2, accumulate=1, seed=1, rank=rank, world=2)
        for rank in (0, 1)
    ]
    drawn = [case for order in ranks for batch in order for case in batch]
    expected = balanced_order(labels, 1, 0)
    assert Counter(drawn) == Counter(expected[: len(drawn)])
    assert drawn.count(9) > 1


@settings(deadline=None)
@given(
    cases=st.integers(1, 60),
    batch_size=st.integers(1, 7),
    accumulate=st.integers(1, 4),
    world=st.integers(1, 4),
)
def test_steps_share_the_cases_evenly_and_leave_none_out(
    cases: int, batch_size: int, accumulate: int, world: int
) -> None:
    order = epoch_order(cases, 3, 5)
    steps = epoch_steps(order, batch_size=batch_size, accumulate=accumulate, world=world)
    seen = [case for step in steps for rank in step for batch in rank for case in batch]
    assert sorted(seen) == list(range(cases))
    # As many steps as one process takes at the same size.
    alone = epoch_steps(order, batch_size=batch_size * accumulate * world, accumulate=1, world=1)
    assert [sorted(c for rank in step for batch in rank for c in batch) for step in steps] == [
        sorted(step[0][0]) for step in alone
    ]
    for step in steps:
        assert len(step) == world
        # Each rank enters the collective operations equally often.
        assert len({len(rank) for rank in step}) == 1
        assert 0 < len(step[0]) <= accumulate
        assert all(len(batch) <= batch_size for rank in step for batch in rank)
        shares = [sum(map(len, rank)) for rank in step]
        assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(("cases", "accumulate", "world"), [(21, 1, 2), (17, 1, 2), (7, 4, 2), (1, 2, 4)])
def test_a_rank_without_a_case_keeps_step_with_one_that_does_not_count(
    cases: int, accumulate: int, world: int
) -> None:
    orders = [
        TrainingOrder([0] * cases, batch_size=2, accumulate=accumulate, seed=4, rank=rank, world=world)
        for rank in range(world)
    ]
    assert len({len(list(order)) for order in orders}) == 1
    counted = [
        case
        for order in orders
        for batch, counts, repeats in zip(order, order.counted(), order.repeats(), strict=True)
        for case, _ in zip(batch, repeats, strict=True)
        if counts
    ]
    assert sorted(counted) == list(range(cases))
    assert all(batch for order in orders for batch in order)


def test_a_case_that_is_drawn_again_is_counted_over_all_ranks() -> None:
    labels = [0] * 9 + [1] * 3
    orders = [
        TrainingOrder(labels, sampling="balanced", batch_size=2, accumulate=1, seed=1, rank=rank, world=2)
        for rank in (0, 1)
    ]
    found: dict[int, list[int]] = {}
    for order in orders:
        for cases, repeats in zip(order, order.repeats(), strict=True):
            for case, repeat in zip(cases, repeats, strict=True):
                found.setdefault(case, []).append(repeat)
    assert max(map(len, found.values())) > 1
    assert all(sorted(repeats) == [*range(len(repeats))] for repeats in found.values())


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world"), [(4, 2, 1), (2, 2, 2), (4, 1, 2), (2, 4, 1), (1, 4, 2)]
)
def test_the_cases_of_a_step_do_not_depend_on_how_its_size_is_made_up(
    batch_size: int, accumulate: int, world: int
) -> None:
    order = epoch_order(20, 0, 0)
    whole = epoch_steps(order, batch_size=8, accumulate=1, world=1)
    parts = epoch_steps(order, batch_size=batch_size, accumulate=accumulate, world=world)
    as_sets = [[{c for rank in step for batch in rank for c in batch} for step in s] for s in (whole, parts)]
    assert as_sets[0] == as_sets[1]


def test_every_epoch_of_a_rank_has_the_same_number_of_batches() -> None:
    order = TrainingOrder([0] * 23, batch_size=3, accumulate=2, seed=0, rank=1, world=2)
    first = list(order)
    order.epoch = 1
    assert len(first) == len(list(order)) == len(order) == sum(order.batches_per_step())
    assert first != list(order)


@given(cases=st.integers(1, 40), batch_size=st.integers(1, 6), world=st.integers(1, 5))
def test_validation_evaluates_each_case_once_without_padding(cases: int, batch_size: int, world: int) -> None:
    # 21 cases on 2 ranks are 21 evaluations, not 22.
    seen = [
        case
        for rank in range(world)
        for batch in validation_batches(cases, batch_size=batch_size, rank=rank, world=world)
        for case in batch
    ]
    assert sorted(seen) == list(range(cases))
