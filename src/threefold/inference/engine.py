"""From prepared images through a network to probabilities, label maps and reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from threefold.cohorts.failures import is_out_of_memory
from threefold.core.outputs import Outputs
from threefold.errors import RunError
from threefold.images.geometry import Image
from threefold.images.preprocessing import Placement, restore
from threefold.inference.sliding import predict_large
from threefold.networks.cpu import cpu_kernels
from threefold.tasks.questions import Question


@dataclass(frozen=True)
class Seat:
    """A place in a pass whose size is given; places that nobody takes hold zeros.

    The last digits of an answer depend on how many images a pass has and on the place among them, but not on
    what the others are. An image that keeps its seat has the same answer, to the bit, beside any company.

    Attributes:
        number: of the pass.
        place: in it, from 0.
        size: how many places it has.
    """

    number: int
    place: int
    size: int


@dataclass(frozen=True)
class Prepared:
    """An image ready for the network.

    Attributes:
        case_id: its name.
        array: (C, *S) float32 in 0..1, on the network's grid.
        placement: how the image's own grid lies in that grid.
        image: the image as read.
        slice_index, volume: the volume that the image was cut from, and at which index along its third
            axis; both None where the image is a file by itself.
        window: the size that the network was trained on, where the image is larger.
        remarks: what speaks against the image and could be neither proven nor ruled out.
        unlike: those of the remarks that say that it is unlike the training images.
        shows_nothing: it is a slice of a volume, and nothing can be said of it, whatever the network answers.
        number: of the source that it comes from, in the list of all.
        seat: its place in a pass; None: it shares a pass with the next images of its source.
    """

    case_id: str
    array: NDArray[np.float32]
    placement: Placement
    image: Image
    slice_index: int | None = None
    volume: Image | None = None
    window: tuple[int, ...] | None = None
    remarks: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    shows_nothing: bool = False
    number: int = 0
    seat: Seat | None = None

    @property
    def goes_alone(self) -> bool:
        """Whether it has a pass, or several, to itself: a volume, or an image larger than the network's."""
        return self.window is not None or self.array.ndim > 3

    @property
    def company(self) -> tuple[str, int]:
        """What images that share a pass have in common."""
        return ("source", self.number) if self.seat is None else ("pass", self.seat.number)


OnFailure = Callable[[Prepared, RunError], None]
"""Called with an image that the network can't answer, and why; the others go on."""
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What a network says of one image, on the network's grid.

    Attributes:
        arrays: by head: (outputs,) probabilities or numbers, (L, *S) the probability of each label, or
            (C, *S) the image restored.
        note: how an image larger than the network's was predicted; empty for others.
        features: (F,) pooled features of the encoder; None: the network gives none, or they are not finite.
    """

    arrays: Mapping[str, NDArray[Any]]
    note: str = ""
    features: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Result:
    """What a network, or an ensemble, says of one image.

    Attributes:
        pooled: by head, (outputs,) float64: probabilities or numbers.
        labels: by head, uint8 on the image's own grid, 0 background.
        images: by head, (C, *S) on the network's grid, the image restored.
        features: (F,) pooled features of the encoder; None: the network gives none, or they are not finite.
        note: how an image larger than the network's was predicted; empty for others.
        members: by column, how far the members of an ensemble are apart; empty for one network.
        remarks: what that has to be said of, in words.
        disagreement: by head, float32 on the image's own grid, how far they are apart at each voxel, where it
            was asked for.
    """

    pooled: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    labels: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    images: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    features: NDArray[np.float32] | None = None
    note: str = ""
    members: Mapping[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    disagreement: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


_Made = Callable[[Answer, Prepared, Sequence[Question]], T]


class Committee(nn.Module):
    """Several networks that are asked as one; it has no weights itself, and loads those of each in turn.

    Attributes:
        maps: it says how far they are apart at each voxel.
    """

    maps = False

    def results(
        self,
        prepared: Iterable[Prepared],
        questions: Sequence[Question],
        *,
        device: torch.device | str,
        batch_size: int,
        on_failure: OnFailure | None,
    ) -> Iterator[tuple[Prepared, Result]]:
        """Yield each image with its result, in order; as `run_network`."""
        raise NotImplementedError


def run_network(
    network: nn.Module,
    prepared: Iterable[Prepared],
    questions: Sequence[Question],
    *,
    device: torch.device | str,
    batch_size: int,
    on_failure: OnFailure | None = None,
) -> Iterator[tuple[Prepared, Result]]:
    """Yield each image with its result, in order; images are taken from the iterable a batch at a time.

    The network is left on `device` and in evaluation mode. It runs in float32. Volumes go one at a time,
    for their memory; `predict_large` says how images larger than the network's are predicted. A batch that
    memory does not suffice for is tried again, as memory may be short for a moment only, and then done one
    image at a time.

    Args:
        network: from (B, C, *S) to `Outputs`.
        prepared: images.
        questions: what is asked of it, one for each head.
        device: for the network.
        batch_size: images a pass.
        on_failure: told of each image that has no result; None: the first one raises.

    Raises:
        RunError: naming the case for which an output is not finite, or that does not fit into memory
            (unless `on_failure` is given).
    """
    if isinstance(network, Committee):
        yield from network.results(
            prepared, questions, device=device, batch_size=batch_size, on_failure=on_failure
        )
        return
    yield from _asked(network, prepared, questions, result_of, device, batch_size, on_failure)


def ask_network(
    network: nn.Module,
    prepared: Iterable[Prepared],
    questions: Sequence[Question],
    *,
    device: torch.device | str,
    batch_size: int,
    on_failure: OnFailure | None = None,
) -> Iterator[tuple[Prepared, Answer]]:
    """Yield each image with the network's answer on its own grid; otherwise as `run_network`."""
    yield from _asked(network, prepared, questions, _as_it_is, device, batch_size, on_failure)


def result_of(answer: Answer, one: Prepared, questions: Sequence[Question]) -> Result:
    """Return an answer with its labels on the image's own grid."""
    kinds = {question.head: question.kind for question in questions}
    arrays = answer.arrays.items()
    return Result(
        pooled={name: array for name, array in arrays if kinds[name] in ("class", "other")},
        labels={
            name: restore_labels(array, one.placement) for name, array in arrays if kinds[name] == "labels"
        },
        images={name: array for name, array in arrays if kinds[name] == "image"},
        features=answer.features,
        note=answer.note,
    )


def _as_it_is(answer: Answer, one: Prepared, questions: Sequence[Question]) -> Answer:
    return answer


def _asked(
    network: nn.Module,
    prepared: Iterable[Prepared],
    questions: Sequence[Question],
    made: _Made[T],
    device: torch.device | str,
    batch_size: int,
    on_failure: OnFailure | None,
) -> Iterator[tuple[Prepared, T]]:
    """Yield each image with what is made of the network's answer."""
    network.to(device).eval()
    for batch in in_batches(prepared, batch_size):
        found = _pass(network, batch, questions, made, device) or _pass(
            network, batch, questions, made, device
        )
        if found is None:
            found = [_alone(network, one, questions, made, device) for one in batch]
        for one, answer in zip(batch, found, strict=True):
            if not isinstance(answer, RunError):
                yield one, answer
            elif on_failure is None:
                raise answer
            else:
                on_failure(one, answer)


def _alone(
    network: nn.Module,
    one: Prepared,
    questions: Sequence[Question],
    made: _Made[T],
    device: torch.device | str,
) -> T | RunError:
    found = _pass(network, [replace(one, seat=None)], questions, made, device)
    if found is not None:
        return found[0]
    return RunError(
        f"case {one.case_id}: not enough memory for {' x '.join(map(str, one.array.shape))} values. Close "
        "other programs, or cut the image to the region of interest."
    )


def _pass(
    network: nn.Module,
    batch: list[Prepared],
    questions: Sequence[Question],
    made: _Made[T],
    device: torch.device | str,
) -> list[T | RunError] | None:
    """Return what is made of the answer of each image; None where memory does not suffice."""
    window, note = batch[0].window, ""
    try:
        images, places = _stacked(batch)
        with cpu_kernels(network), torch.inference_mode():
            if window is None:
                outputs: Outputs = network(images.to(device))
            else:
                outputs, note = predict_large(network, images, window, device=device, name=batch[0].case_id)
        answers = _answers(outputs, batch, questions, places, note)
        return [
            answer if isinstance(answer, RunError) else made(answer, one, questions)
            for one, answer in zip(batch, answers, strict=True)
        ]
    except RunError as error:  # of an image larger than the network's, which is in a pass of its own
        return [error]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _stacked(batch: list[Prepared]) -> tuple[Tensor, list[int]]:
    """Return the images of a pass, (B, C, *S), and the place of each among them."""
    seats = [one.seat for one in batch if one.seat is not None and not one.goes_alone]
    if not seats:
        return torch.from_numpy(np.stack([one.array for one in batch])), [*range(len(batch))]
    images = np.zeros((seats[0].size, *batch[0].array.shape), np.float32)
    places = [seat.place for seat in seats]
    images[places] = [one.array for one in batch]
    return torch.from_numpy(images), places


def in_batches(prepared: Iterable[Prepared], batch_size: int) -> Iterator[list[Prepared]]:
    """Yield the images in order: those that go alone one by one, others with their company."""
    batch: list[Prepared] = []
    for one in prepared:
        if batch and (one.goes_alone or one.company != batch[0].company):
            yield batch
            batch = []
        batch.append(one)
        if one.goes_alone or len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _answers(
    outputs: Outputs, batch: list[Prepared], questions: Sequence[Question], places: list[int], note: str
) -> Iterator[Answer | RunError]:
    answers = {one.head: _answer(outputs, one) for one in questions}
    damaged = {name: (~answer.isfinite().flatten(1).all(dim=1)).tolist() for name, answer in answers.items()}
    arrays = {name: answer.cpu().numpy() for name, answer in answers.items()}
    features = None if outputs.features is None else outputs.features.float().cpu().numpy()
    for one, i in zip(batch, places, strict=True):
        bad = [name for name, rows in damaged.items() if rows[i]]
        if bad:
            yield _not_finite(one, bad[0])
        else:
            told = features[i] if features is not None and np.isfinite(features[i]).all() else None
            yield Answer({name: rows[i] for name, rows in arrays.items()}, note, told)


def _answer(outputs: Outputs, question: Question) -> Tensor:
    head = outputs.heads[question.head]
    return head.float().softmax(dim=1) if question.task is None else question.task.answer(head)


def _not_finite(one: Prepared, head: str) -> RunError:
    return RunError(
        f"case {one.case_id}: the network's {head} is not finite. Its weights, or the image's intensities, "
        "are damaged; `threefold check` says more of the images."
    )


def restore_labels(probabilities: NDArray[np.floating], placement: Placement) -> NDArray[np.uint8]:
    """Return the most probable label of each voxel of the image's own grid.

    Probabilities are interpolated linearly to that grid and decided there, so that a border is as smooth
    as the image's grid allows; where two labels are equally probable the lower one is taken.

    Args:
        probabilities: (L, *S) on the network's grid, label 0 the background.
        placement: of the image.
    """
    highest = restore(probabilities[0], placement, order="linear")
    labels = np.zeros(highest.shape, np.uint8)
    for label in range(1, len(probabilities)):
        probability = restore(probabilities[label], placement, order="linear")
        higher = probability > highest
        labels[higher] = label
        highest = np.maximum(highest, probability)
    return labels
