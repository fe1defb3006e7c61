"""Images larger than a network was trained on: in one pass where memory allows, else in windows.

What each voxel is comes from the whole image: from one pass over it, or from overlapping windows of the
size trained on, whose logits are averaged with weights that fall off from a window's middle (a Gaussian, as
nnU-Net and MONAI do).

What the image as a whole is (its diagnosis) comes from one window of the size trained on, about the middle of
the segmented foreground, as training had a part of that size about the middle of the labelled one. So neither
the size of an image nor the memory of a machine decides what a classifier reads; a cascade's reads its
segmenter's answer for that window. A network that segments nothing reads the middle of the image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import EllipsisType

import torch
from torch import Tensor, nn

from threefold.core.outputs import Head, Outputs
from threefold.errors import RunError
from threefold.images.preprocessing import centre_of, window_start
from threefold.inference.memory import WORKSPACE, TensorMemory, free_bytes

OVERLAP = 0.5
"""Share of a window's side that the next one covers again."""
SHARPNESS = 0.125
"""Standard deviation of the blending weights, by a window's side."""
MEMORY_SHARE = 0.6
"""Share of the free memory that a pass over a whole image may be estimated to take."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How a large image is predicted.

    Attributes:
        windows: where each window begins, per axis; empty: one pass over the whole.
        text: in words, with the memory that a whole pass is estimated to take.
        free: in words, the memory that decided.
    """

    windows: tuple[tuple[int, ...], ...]
    text: str
    free: str


def predict_large(
    network: nn.Module, image: Tensor, window: Sequence[int], *, device: torch.device | str, name: str
) -> tuple[Outputs, str]:
    """Return a network's outputs for an image that is larger than the network was trained on.

    Args:
        network: on `device`, in evaluation mode.
        image: (1, C, *S), nowhere smaller than the window.
        window: the size trained on.
        device: for a pass; what is put together of windows is kept on the image's.
        name: of the case, for messages.

    Returns:
        The outputs, on the image's device, and how they were made, in words.

    Raises:
        RunError: if the outputs alone do not fit into memory.
    """
    device = torch.device(device)
    shape = image.shape[2:]
    middle = tuple(window_start(n, w, n / 2) for n, w in zip(shape, window, strict=True))
    with TensorMemory() as memory:
        first = _on_window(network, image, middle, window, device)
    dense = [name for name, head in first.heads.items() if head.ndim == image.ndim]
    if not dense:
        return first, f"the middle {_by(window)} of {_by(shape)} voxels"
    fixed = getattr(network, "fixed_size", False)
    plan = plan_passes(shape, window, memory.peak, first, device=device, name=name, fixed=fixed)
    level = logging.WARNING if plan.windows else logging.INFO
    _log.log(level, "case %s: %s (%s)", name, plan.text, plan.free)
    if plan.windows:
        blended = in_windows(network, image, window, plan.windows, device=device)
        outputs = Outputs(blended.heads, first.features)
    else:
        outputs = _to(network(image.to(device)), image.device)
    if len(dense) == len(first.heads):
        return outputs, plan.text
    start = middle
    segmented = segmenting_heads(network, dense)
    if segmented:
        found = centre_of(outputs.heads[segmented[0]][0].argmax(dim=0).cpu().numpy())
        if found is not None:
            start = tuple(window_start(n, w, at + 0.5) for n, w, at in zip(shape, window, found, strict=True))
    at_focus = first if start == middle else _on_window(network, image, start, window, device)
    whole = {name: outputs.heads[name] for name in dense}
    return Outputs({**at_focus.heads, **whole}, at_focus.features), plan.text


def segmenting_heads(network: nn.Module, dense: Sequence[str]) -> list[str]:
    """Return those of a network's dense heads that give labels, and not the image restored."""
    kinds: Mapping[str, Head] = getattr(network, "kinds", {})
    return [name for name in dense if name not in kinds or kinds[name].kind == "dense"]


def plan_passes(
    shape: Sequence[int],
    window: Sequence[int],
    peak: int,
    first: Outputs,
    *,
    device: torch.device,
    name: str,
    fixed: bool = False,
) -> Plan:
    """Choose between one pass and windows.

    Args:
        shape, window: voxels of the image and of a window.
        peak: bytes of tensors at the worst moment of a pass over a window.
        first: the outputs for a window.
        device: of the network.
        name: of the case, for messages.
        fixed: the network takes windows alone.

    Raises:
        RunError: if what is put together of windows does not fit into memory.
    """
    growth = math.prod(shape) / math.prod(window)
    whole, free = int(WORKSPACE * growth * peak), free_bytes(device)
    state = f"{_gb(free)} free on {device.type}"
    if whole <= MEMORY_SHARE * free and not fixed:
        return Plan((), f"{_by(shape)} voxels in one pass, about {_gb(whole)}", state)
    heads = [head for head in first.heads.values() if head.ndim == len(shape) + 2]
    # Sums, probabilities in float32, and a copy of one while it is made of the other.
    kept = int(3 * growth * sum(4 * head.numel() for head in heads))
    host = free_bytes(torch.device("cpu"))
    if kept > host:
        raise RunError(
            f"case {name}: {_by(shape)} voxels of {sum(head.shape[1] for head in heads)} channels need "
            f"{_gb(kept)} to be put together, and {_gb(host)} are free. Cut the image to the region of "
            "interest, or train with a larger data.preprocessing.spacing."
        )
    starts = window_starts(shape, window)
    text = f"{_by(shape)} voxels in {len(starts)} windows of {_by(window)}; one pass needs about {_gb(whole)}"
    return Plan(starts, text, state)


def in_windows(
    network: nn.Module,
    image: Tensor,
    window: Sequence[int],
    starts: Sequence[tuple[int, ...]],
    *,
    device: torch.device | str,
) -> Outputs:
    """Return the heads that are an image (1, ..., *S), blended of windows; pooled ones are left out."""
    weights = blending_weights(window)
    total = torch.zeros(image.shape[2:])
    sums: dict[str, Tensor] = {}
    for start in starts:
        outputs = _on_window(network, image, start, window, torch.device(device))
        where = _voxels_of(start, window)
        total[where] += weights
        for head, values in outputs.heads.items():
            if values.ndim == image.ndim:
                if head not in sums:
                    sums[head] = torch.zeros(1, values.shape[1], *image.shape[2:])
                sums[head][where] += values.float() * weights
    return Outputs({head: values.div_(total).to(image.device) for head, values in sums.items()})


def window_starts(
    shape: Sequence[int], window: Sequence[int], overlap: float = OVERLAP
) -> tuple[tuple[int, ...], ...]:
    """Return where windows that cover an image begin; the last along an axis ends with it."""
    axes = []
    for length, side in zip(shape, window, strict=True):
        step = max(1, int(side * (1 - overlap)))
        axes.append(
            [min(k * step, length - side) for k in range(math.ceil(max(length - side, 0) / step) + 1)]
        )
    return tuple(product(*axes))


def blending_weights(window: Sequence[int], sharpness: float = SHARPNESS) -> Tensor:
    """Return (*window) weights: a Gaussian about the middle, nowhere below a thousandth."""
    weights = torch.ones(())
    for side in window:
        offset = torch.arange(side) - (side - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (offset / (sharpness * side)) ** 2)
    return weights.clamp(min=1e-3)


def _on_window(
    network: nn.Module, image: Tensor, start: Sequence[int], window: Sequence[int], device: torch.device
) -> Outputs:
    outputs: Outputs = network(image[_voxels_of(start, window)].to(device))
    return _to(outputs, image.device)


def _to(outputs: Outputs, device: torch.device) -> Outputs:
    """Return outputs on a device."""
    return outputs.map(lambda head: head.to(device))


def _voxels_of(start: Sequence[int], window: Sequence[int]) -> tuple[EllipsisType | slice, ...]:
    """Return the index of a window in an array whose last axes are spatial."""
    return (..., *(slice(first, first + side) for first, side in zip(start, window, strict=True)))


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _gb(count: int) -> str:
    return f"{count / 1e9:.2g} GB"
