"""Several networks asked as one: their mean, and how far they are apart; one network's weights at a time.

What is averaged are the members' probabilities (and numbers), each member's over the image and, where that is
asked for, its mirror images (test-time augmentation): "deep ensembles" (Lakshminarayanan et al. 2017). Labels
are averaged voxel by voxel on the image's own grid and decided there.

How far the members are apart is told by

- `member_disagreement`, of a class: the entropy of the mean minus the mean entropy, in nats; the mutual
  information of class and member (Houlsby et al. 2011), 0 where all say the same;
- `member_agreement`, of a class: the share of the members that decide, each by its own threshold, for the
  class that most of them decide for;
- `member_spread`, of findings and numbers: the standard deviation over the members, of the findings the
  largest;
- `member_dice`, of labels: the mean Dice of the foregrounds of two members, over all pairs (Roy et al. 2019).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from threefold.errors import RunError
from threefold.experiment import Experiment
from threefold.images.preprocessing import prepare_image, restore
from threefold.inference.engine import (
    Answer,
    Committee,
    OnFailure,
    Prepared,
    Result,
    ask_network,
    in_batches,
    result_of,
)
from threefold.inference.predictor import Predictor
from threefold.run import Epoch
from threefold.tasks.questions import Question

HELD = 256 * 2**20
"""Bytes of images and sums that are held, at least one batch, while the members are asked one by one."""
APART = 2 / 3
"""Share of the members below which a decision is remarked on."""

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Member:
    """One network of an ensemble, without its weights.

    Attributes:
        name: in messages.
        folder: of its run.
        about: what is known of it; its network is a placeholder.
        weights: of the best or the last epoch; None: as its experiment says.
        mirrored: axes of the network's grid that the image is mirrored along, for each pass.
    """

    name: str
    folder: str
    about: Predictor
    weights: Epoch | None = None
    mirrored: tuple[Axes, ...] = ((),)

    @classmethod
    def of(
        cls, name: str, predictor: Predictor, folder: str, weights: Epoch | None, *, flips: bool
    ) -> Member:
        """Return a member, whose weights are let go."""
        mirrored = mirrorings(predictor.experiment) if flips else ((),)
        return cls(name, folder, replace(predictor, network=nn.Identity()), weights, mirrored)

    def load(self) -> nn.Module:
        """Return its network.

        Raises:
            RunError, WeightsError: it changed since.
        """
        loaded = Predictor.from_run(self.folder, device=str(self.about.device), weights=self.weights)
        if loaded.version != self.about.version:
            raise RunError(
                f"{self.folder}: its weights changed while it was asked: expected {self.about.version}, "
                f"found {loaded.version}. Repeat the command."
            )
        return loaded.network


def mirrorings(experiment: Experiment) -> tuple[Axes, ...]:
    """Return the axes of the network's grid to mirror along, for each pass over an image.

    They are those that the recipe's augmentation mirrors along: none, each, and all of them together; of no
    other axis has the network learned that what it asks is the same there.
    """
    flip, dimensions = experiment.data.augmentation.flip, len(experiment.data.preprocessing.size)
    chances = flip if isinstance(flip, tuple) else (flip,) * dimensions
    axes = [axis for axis, chance in enumerate(chances) if chance > 0]
    return tuple(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))


class Ensemble(Committee):
    """Members that are asked one after the other, a bounded number of images at a time."""

    def __init__(self, members: Sequence[Member], *, maps: bool = False) -> None:
        """Take the members, which answer the same questions.

        Args:
            members: one or more; the first one's preprocessing is what images come in.
            maps: return how far the members are apart at each voxel.
        """
        super().__init__()
        self._members, self.maps = tuple(members), maps
        first = self._members[0].about
        self._same_grid = all(_grid(member.about) == _grid(first) for member in self._members)
        heads = [{question.head for question in member.about.questions} for member in self._members]
        self._heads = set.intersection(*heads)
        self._kept: list[nn.Module] = []  # of a single member, which nothing takes the place of

    def results(
        self,
        prepared: Iterable[Prepared],
        questions: Sequence[Question],
        *,
        device: torch.device | str,
        batch_size: int,
        on_failure: OnFailure | None,
    ) -> Iterator[tuple[Prepared, Result]]:
        """Yield each image with the members' mean, in order.

        An image that one of the members can't answer has no result. Images are restored only by members that
        all do so on the same grid.

        Raises:
            RunError: as `run_network`; or a member changed since it was read.
        """
        asked = [
            one for one in questions if one.kind != "image" or (self._same_grid and one.head in self._heads)
        ]
        for held in _held(prepared, batch_size, asked, len(self._members)):
            polls = [_Poll(asked, maps=self.maps) for _ in held]
            failed: dict[int, RunError] = {}
            for member in self._members:
                self._ask(member, held, polls, failed, device, batch_size)
            for number, (one, poll) in enumerate(zip(held, polls, strict=True)):
                if number not in failed:
                    yield one, poll.result(one)
                elif on_failure is None:
                    raise failed[number]
                else:
                    on_failure(one, failed[number])

    def _ask(
        self,
        member: Member,
        held: Sequence[Prepared],
        polls: Sequence[_Poll],
        failed: dict[int, RunError],
        device: torch.device | str,
        batch_size: int,
    ) -> None:
        """Ask one member, whose weights are gone when this returns."""
        network = self._kept[0] if self._kept else member.load()
        if len(self._members) == 1:
            self._kept = [network]
        share = 1 / len(member.mirrored)
        for axes in member.mirrored:
            views = {n: self._view(member, one, axes) for n, one in enumerate(held) if n not in failed}
            numbers = {id(view): number for number, view in views.items()}

            def failing(view: Prepared, error: RunError, numbers: dict[int, int] = numbers) -> None:
                failed[numbers[id(view)]] = RunError(f"{member.name}: {error}")

            asked = member.about.questions
            for view, answer in ask_network(
                network, views.values(), asked, device=device, batch_size=batch_size, on_failure=failing
            ):
                poll = polls[numbers[id(view)]]
                poll.add(member, self._back(answer, view, axes, asked), share, own_grid=not self._same_grid)

    def _view(self, member: Member, one: Prepared, axes: Axes) -> Prepared:
        """Return an image as a member takes it, mirrored."""
        if not self._same_grid and _grid(member.about) != _grid(self._members[0].about):
            about = member.about
            spec, intensity = about.experiment.data.preprocessing, about.cohort.intensity
            array, placement = prepare_image(
                one.image, spec, unit=intensity.unit, window=intensity.window, whole=True
            )
            window = None if placement.size == spec.size else spec.size
            one = replace(one, array=array, placement=placement, window=window)
        if not axes:
            return replace(one)
        mirrored = np.flip(one.array, tuple(1 + axis for axis in axes))
        return replace(one, array=np.ascontiguousarray(mirrored))

    def _back(self, answer: Answer, view: Prepared, axes: Axes, questions: Sequence[Question]) -> Answer:
        """Return the answer to a mirrored image as that to the image, its labels on the image's own grid
        where the members' grids differ."""
        arrays: dict[str, NDArray[Any]] = {}
        for question in questions:
            array = answer.arrays[question.head]
            if question.kind in ("labels", "image"):
                array = np.flip(array, tuple(1 + axis for axis in axes))
                if question.kind == "labels" and not self._same_grid:
                    array = np.stack([restore(label, view.placement, order="linear") for label in array])
            arrays[question.head] = array
        return replace(answer, arrays=arrays)


def _grid(about: Predictor) -> tuple[Any, ...]:
    return about.experiment.data.preprocessing, about.cohort.intensity


def _held(
    prepared: Iterable[Prepared], batch_size: int, questions: Sequence[Question], members: int
) -> Iterator[list[Prepared]]:
    """Yield whole batches of images together, as many as there is room for."""
    kept = sum(len(one.names) + 4 for one in questions if one.kind == "labels")  # values of a voxel
    images: list[Prepared] = []
    taken = 0
    for batch in in_batches(prepared, batch_size):
        images += batch
        for one in batch:
            voxels = one.array[0].size
            taken += one.image.array.nbytes + 3 * one.array.nbytes + voxels * (4 * kept + members)
        if taken >= HELD:
            yield images
            images, taken = [], 0
    if images:
        yield images


@dataclass
class _Poll:
    """What the members have said of an image so far.

    Attributes:
        questions: that they answer.
        maps: keep what the disagreement at each voxel is made of.
        sums: by head, of the arrays, each pass by its share of its member.
        entropies: by head, of the passes' entropies, likewise.
        voices: by head, of classes, findings and numbers, each pass's answer and its share.
        decided: by head, of classes, the members' shares by the class that they decide for.
        foregrounds: by head, of labels, each pass's foreground.
    """

    questions: Sequence[Question]
    maps: bool
    total: float = 0.0
    note: str = ""
    own_grid: bool = False
    sums: dict[str, NDArray[Any]] = field(default_factory=dict)
    entropies: dict[str, NDArray[Any]] = field(default_factory=dict)
    voices: dict[str, list[tuple[float, NDArray[np.float64]]]] = field(default_factory=dict)
    decided: dict[str, Counter[str]] = field(default_factory=dict)
    foregrounds: dict[str, list[NDArray[np.bool_]]] = field(default_factory=dict)

    def add(self, member: Member, answer: Answer, share: float, *, own_grid: bool) -> None:
        """Count a pass of a member."""
        self.note, self.own_grid = self.note or answer.note, own_grid
        self.total += share
        for question in self.questions:
            head = question.head
            array = answer.arrays[head]
            self.sums[head] = share * array if head not in self.sums else self.sums[head] + share * array
            if question.kind == "labels":
                self.foregrounds.setdefault(head, []).append(array.argmax(axis=0) > 0)
                if self.maps:
                    found = share * _entropy(array)
                    self.entropies[head] = self.entropies[head] + found if head in self.entropies else found
            elif question.kind in ("class", "other"):
                self.voices.setdefault(head, []).append((share, np.asarray(array, np.float64)))
            if question.kind == "class":
                probabilities = dict(zip(question.classes, array.tolist(), strict=True))
                decided = member.about.decide(probabilities, question)
                self.decided.setdefault(head, Counter())[decided] += share  # type: ignore[assignment]

    def result(self, one: Prepared) -> Result:
        """Return the mean, and how far the members are apart."""
        means = {head: total / self.total for head, total in self.sums.items()}
        there = {
            question.head: means[question.head].argmax(axis=0).astype(np.uint8)
            for question in self.questions
            if question.kind == "labels" and self.own_grid
        }
        others = {head: mean for head, mean in means.items() if head not in there}
        found = result_of(Answer(others, self.note), one, self.questions)
        columns, remarks = self._apart(means)
        return replace(
            found,
            labels={**found.labels, **there},
            members=columns,
            remarks=remarks,
            disagreement=self._by_voxel(means, one),
        )

    def _apart(self, means: dict[str, NDArray[Any]]) -> tuple[dict[str, float], tuple[str, ...]]:
        columns: dict[str, float] = {}
        remarks: list[str] = []
        for question in self.questions:
            head, prefix = question.head, question.prefix
            if question.kind == "class":
                entropies = sum(share * _entropy(array) for share, array in self.voices[head])
                apart = float(_entropy(means[head]) - entropies / self.total)
                columns[f"{prefix}member_disagreement"] = max(0.0, apart)
                ((most, share),) = self.decided[head].most_common(1)
                columns[f"{prefix}member_agreement"] = share / self.total
                if share / self.total < APART:
                    remarks.append(
                        f"the members of the ensemble disagree: {share / self.total:.0%} decide for {most}"
                    )
            elif question.kind == "other":
                shares = np.array([share for share, _ in self.voices[head]])
                arrays = np.stack([array for _, array in self.voices[head]])
                variance = np.average((arrays - means[head]) ** 2, axis=0, weights=shares)
                columns[f"{prefix}member_spread"] = float(np.sqrt(variance).max())
            elif question.kind == "labels":
                columns[f"{prefix}member_dice"] = _mean_dice(self.foregrounds[head])
        return columns, tuple(remarks)

    def _by_voxel(self, means: dict[str, NDArray[Any]], one: Prepared) -> dict[str, NDArray[np.float32]]:
        found = {}
        for head, entropies in self.entropies.items():
            apart = np.maximum(_entropy(means[head]) - entropies / self.total, 0).astype(np.float32)
            found[head] = apart if self.own_grid else restore(apart, one.placement, order="linear")
        return found


def _entropy(probabilities: NDArray[Any]) -> NDArray[Any]:
    """Return the entropy along the first axis, nats."""
    found: NDArray[Any] = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=0)
    return found


def _mean_dice(foregrounds: Sequence[NDArray[np.bool_]]) -> float:
    """Return the mean Dice over the pairs; two that are empty are alike."""
    sizes = [int(one.sum()) for one in foregrounds]
    found = []
    for a, b in combinations(range(len(foregrounds)), 2):
        both = sizes[a] + sizes[b]
        overlap = int((foregrounds[a] & foregrounds[b]).sum())
        found.append(2 * overlap / both if both else 1.0)
    return float(np.mean(found)) if found else 1.0
