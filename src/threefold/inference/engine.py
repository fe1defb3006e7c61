"""From prepared images through a network to probabilities, label maps and reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from threefold.cohorts.failures import is_out_of_memory
from threefold.errors import RunError
from threefold.images.geometry import Image
from threefold.images.preprocessing import Placement, restore
from threefold.inference.sliding import predict_large
from threefold.networks.outputs import Outputs


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
        number: of the source that it comes from, in the list of all.
    """

    case_id: str
    array: NDArray[np.float32]
    placement: Placement
    image: Image
    slice_index: int | None = None
    volume: Image | None = None
    window: tuple[int, ...] | None = None
    remarks: tuple[str, ...] = ()
    number: int = 0


OnFailure = Callable[[Prepared, RunError], None]
"""Called with an image that the network can't answer, and why; the others go on."""


@dataclass(frozen=True)
class Result:
    """What a network says of one image.

    Attributes:
        probabilities: (K,) of the classes; None without a classification head.
        labels: uint8 on the image's own grid, 0 background; None without a segmentation head.
        reconstruction: (C, *S) on the network's grid; None without a reconstruction head.
        note: how an image larger than the network's was predicted; empty for others.
    """

    probabilities: NDArray[np.float64] | None
    labels: NDArray[np.uint8] | None
    reconstruction: NDArray[np.float32] | None
    note: str = ""


def run_network(
    network: nn.Module,
    prepared: Iterable[Prepared],
    *,
    device: torch.device | str,
    batch_size: int,
    on_failure: OnFailure | None = None,
) -> Iterator[tuple[Prepared, Result]]:
    """Yield each image with its result, in order; images are taken from the iterable a batch at a time.

    The network is left on `device` and in evaluation mode. It runs in float32. Volumes go one at a time,
    for their memory; `predict_large` says how images larger than the network's are predicted. A batch that
    memory does not suffice for is done one image at a time.

    Args:
        network: from (B, C, *S) to `Outputs`.
        prepared: images.
        device: for the network.
        batch_size: images a pass.
        on_failure: told of each image that has no result; None: the first one raises.

    Raises:
        RunError: naming the case for which an output is not finite, or that does not fit into memory
            (unless `on_failure` is given).
    """
    network.to(device).eval()
    for batch in in_batches(prepared, batch_size):
        yield from _answers(network, batch, device, on_failure)


def _answers(
    network: nn.Module, batch: list[Prepared], device: torch.device | str, on_failure: OnFailure | None
) -> Iterator[tuple[Prepared, Result]]:
    """Yield the images of a batch with their results; whatever fails is tried again one image at a time."""
    try:
        found = list(zip(batch, _pass(network, batch, device), strict=True))
    except (RunError, MemoryError, RuntimeError) as error:
        if not isinstance(error, RunError) and not is_out_of_memory(error):
            raise
        if len(batch) > 1 and (on_failure is not None or not isinstance(error, RunError)):
            for one in batch:
                yield from _answers(network, [one], device, on_failure)
            return
        failure = error if isinstance(error, RunError) else _no_memory(batch[0], error)
        if on_failure is None:
            raise failure from error
        on_failure(batch[0], failure)
        return
    yield from found


def _pass(network: nn.Module, batch: list[Prepared], device: torch.device | str) -> list[Result]:
    images = torch.from_numpy(np.stack([one.array for one in batch]))  # (B, C, *S)
    window, note = batch[0].window, ""
    with torch.inference_mode():
        if window is None:
            outputs: Outputs = network(images.to(device))
        else:
            outputs, note = predict_large(network, images, window, device=device, name=batch[0].case_id)
    return list(_results(outputs, batch, note))


def _no_memory(one: Prepared, error: BaseException) -> RunError:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return RunError(
        f"case {one.case_id}: not enough memory for {' x '.join(map(str, one.array.shape))} values ({said}). "
        "Close other programs, or cut the image to the region of interest."
    )


def in_batches(prepared: Iterable[Prepared], batch_size: int) -> Iterator[list[Prepared]]:
    """Yield the images in order: volumes and images larger than the network's one by one."""
    batch: list[Prepared] = []
    for one in prepared:
        if one.window is not None or one.array.ndim > 3:
            if batch:
                yield batch
            batch = []
            yield [one]
            continue
        batch.append(one)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _results(outputs: Outputs, batch: list[Prepared], note: str) -> Iterator[Result]:
    classes = None if outputs.classes is None else outputs.classes.double().softmax(dim=1)
    labels = None if outputs.segmentation is None else outputs.segmentation.float().softmax(dim=1)
    heads = {"classification": classes, "segmentation": labels, "reconstruction": outputs.reconstruction}
    arrays = {name: None if head is None else _finite(name, head, batch) for name, head in heads.items()}
    probabilities, maps, images = arrays.values()
    for i, one in enumerate(batch):
        yield Result(
            probabilities=None if probabilities is None else probabilities[i],
            labels=None if maps is None else restore_labels(maps[i], one.placement),
            reconstruction=None if images is None else images[i],
            note=note,
        )


def _finite(name: str, output: Tensor, batch: list[Prepared]) -> NDArray[np.floating]:
    """Return a head's output as an array, if every number is finite."""
    finite = output.isfinite().flatten(1).all(dim=1).tolist()
    bad = [one.case_id for one, good in zip(batch, finite, strict=True) if not good]
    if bad:
        raise RunError(
            f"case {', '.join(bad)}: the network's {name} is not finite. Its weights, or the image's "
            "intensities, are damaged; `threefold check` says more of the images."
        )
    array: NDArray[np.floating] = output.cpu().numpy()
    return array


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
