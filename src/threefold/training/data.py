"""From cases to batches: the order depends only on (seed, epoch), and no case is counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from threefold.cohorts.cohort import Case
from threefold.cohorts.sample_cache import SampleCache
from threefold.core.batch import Sample, collate
from threefold.core.targets import TargetSpec
from threefold.interruption import leave_quietly


class Cases(Dataset[Sample]):
    """The cases of a part, preprocessed on demand."""

    def __init__(self, cases: Sequence[Case], cache: SampleCache) -> None:
        """Store the cases; nothing is read yet."""
        self.cases = tuple(cases)
        self._cache = cache

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)

    def __getitem__(self, index: int) -> Sample:
        """Return one preprocessed case."""
        return self._cache.get(self.cases[index])


def epoch_order(cases: int, seed: int, epoch: int) -> list[int]:
    """Return the order of an epoch: a permutation determined by (seed, epoch) alone."""
    return [int(index) for index in np.random.default_rng((seed, epoch)).permutation(cases)]


def balanced_order(labels: Sequence[int | None], seed: int, epoch: int) -> list[int]:
    """Return an epoch's draws with replacement, as many as cases, each class equally likely.

    A case of a class with n cases is drawn with a weight of 1 / n (the published sampler of arXiv
    2311.07234); a case without a label weighs as much as the labelled ones do on average.

    Args:
        labels: class index of each case, or None.
        seed, epoch: determine the draw.
    """
    counts = Counter(label for label in labels if label is not None)
    labelled = sum(counts.values())
    average = len(counts) / labelled if labelled else 1.0
    weights = np.array([average if label is None else 1 / counts[label] for label in labels])
    draws = np.random.default_rng((seed, epoch)).choice(len(labels), len(labels), p=weights / weights.sum())
    return [int(index) for index in draws]


def epoch_steps(
    order: Sequence[int], *, batch_size: int, accumulate: int, world: int
) -> list[list[list[list[int]]]]:
    """Divide an epoch's order into optimiser steps, each into every rank's batches.

    A step takes the next batch_size * accumulate * world cases, so the cases of a step do not depend on how
    the product is made up. The last step may be smaller: its cases are spread as evenly as they can be, and
    a rank with one case fewer than another may have an empty batch, in which it only keeps step.

    Returns:
        steps[step][rank][batch] is a list of case indices; every rank has equally many batches, and every
        case is in one.
    """
    whole = batch_size * accumulate * world
    steps = []
    for start in range(0, len(order), whole):
        ranks = np.array_split(np.asarray(order[start : start + whole]), world)
        batches = -(-max(map(len, ranks)) // batch_size)
        steps.append([[part.tolist() for part in np.array_split(own, batches)] for own in ranks])
    return steps


class TrainingOrder(Sampler[list[int]]):
    """This rank's batches of an epoch, in the order of the steps.

    In place of an empty batch stands the step's first case: the rank goes through the network with it, as the
    others wait for that, and it counts for nothing (`counted`).
    """

    def __init__(
        self,
        labels: Sequence[int | None],
        *,
        sampling: Literal["all", "balanced"] = "all",
        batch_size: int,
        accumulate: int,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        """Fix everything but the epoch (`epoch`, 0-based, is set before each).

        Args:
            labels: class index of each case, or None.
            sampling: each case once, or drawn so that classes are balanced.
            batch_size, accumulate: cases a batch, batches a step.
            seed: of the order.
            rank, world: this process among how many.
        """
        self.epoch = 0
        self._labels, self._sampling, self._seed = tuple(labels), sampling, seed
        self._batch_size, self._accumulate = batch_size, accumulate
        self._rank, self._world = rank, world

    def batches_per_step(self) -> list[int]:
        """Return how many batches each optimiser step of an epoch takes; the same for every epoch."""
        return [len(step[self._rank]) for step in self._steps()]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of case indices."""
        for step in self._steps():
            yield from (batch or step[0][0][:1] for batch in step[self._rank])

    def counted(self) -> Iterator[bool]:
        """Yield, for each list of this rank, whether its cases count, or another rank's case stands in."""
        for step in self._steps():
            yield from map(bool, step[self._rank])

    def __len__(self) -> int:
        """Return the number of batches."""
        return sum(self.batches_per_step())

    def repeats(self) -> Iterator[list[int]]:
        """Yield, for each list of this rank, how often any rank drew each case before in this epoch."""
        drawn: Counter[int] = Counter()

        def before(index: int) -> int:
            drawn[index] += 1
            return drawn[index] - 1

        for step in self._steps():
            counted = [[[before(index) for index in batch] for batch in batches] for batches in step]
            yield from (repeats or [0] for repeats in counted[self._rank])

    def _steps(self) -> list[list[list[list[int]]]]:
        if self._sampling == "balanced":
            order = balanced_order(self._labels, self._seed, self.epoch)
        else:
            order = epoch_order(len(self._labels), self._seed, self.epoch)
        return epoch_steps(
            order,
            batch_size=self._batch_size,
            accumulate=self._accumulate,
            world=self._world,
        )


def validation_batches(cases: int, *, batch_size: int, rank: int, world: int) -> list[list[int]]:
    """Return this rank's batches of a validation: every case once over all ranks, no padding."""
    own = list(range(rank, cases, world))
    return [own[start : start + batch_size] for start in range(0, len(own), batch_size)]


def make_loader(
    dataset: Cases,
    batches: Sampler[list[int]] | list[list[int]],
    targets: Mapping[str, TargetSpec],
    *,
    workers: int,
    pin_memory: bool,
) -> DataLoader[Sample]:
    """Return a loader whose items are `Batch`es on the CPU, with the cohort's targets."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=partial(collate, targets=targets),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=leave_quietly,
        pin_memory=pin_memory,
    )
