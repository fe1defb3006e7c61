"""Where a network looks: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391), for slices and volumes.

How the terms map to the paper:

| here                                 | paper                              |
| ------------------------------------ | ---------------------------------- |
| features of the declared layer       | feature maps A^k                   |
| mean of the gradient over the map    | weights alpha_k^c, equation (1)    |
| rectified weighted sum               | L^c_Grad-CAM, equation (2)         |

One thing differs: the score is the log-odds of the class against the others, not its logit alone. A number
that all logits share changes no probability, so that what raises it is no evidence; with two classes the
score is the difference of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from threefold.core.outputs import Outputs
from threefold.errors import RunError
from threefold.networks.cam import CamLayer, HasCamLayer

Decide = Callable[[NDArray[np.float64]], int]
"""From the (K,) probabilities of a case to the class decided for."""


@dataclass(frozen=True)
class Attention:
    """What a network says of an image, and where it saw it.

    Attributes:
        probabilities: (K,) of the classes.
        decided: the class that the map is of.
        map: (*S) float32 on the network's input grid, not negative, summing to 1; all zero where nothing in
            the image speaks for the class.
        grid: the size of the layer's own map, before it was brought to the input's grid.
    """

    probabilities: NDArray[np.float64]
    decided: int
    map: NDArray[np.float32]
    grid: tuple[int, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the map is all zero."""
        return not self.map.any()


def most_probable(probabilities: NDArray[np.float64]) -> int:
    """Return the most probable class, the first of equals."""
    return int(probabilities.argmax())


def grad_cam(
    network: nn.Module,
    images: Sequence[NDArray[np.float32]],
    head: str,
    *,
    decide: Decide = most_probable,
    device: torch.device | str = "cpu",
) -> list[Attention]:
    """Return the attention of a network to images, a batch in one pass.

    The network is left on `device` and in evaluation mode, its weights and their gradients as they were.

    Args:
        network: with a classification head, declaring its layer.
        images: (C, *S) float32, all of one shape.
        head: that tells the classes apart.
        decide: which class a case's map is of.
        device: for the pass.

    Raises:
        RunError: the network classifies nothing or declares no layer, the layer's map has not the image's
            aspect, or an output is not finite.
    """
    layer = cam_layer_of(network)
    network.to(device).eval()
    batch = torch.from_numpy(np.stack(images)).to(device)  # (B, C, *S)
    with _weights_fixed(network), torch.enable_grad(), _captured(network, layer) as outputs_of_layer:
        outputs: Outputs = network(batch)
        if head not in outputs.heads:
            raise RunError(
                f"Grad-CAM is of a class, but the network has no head '{head}' that tells classes."
            )
        logits = outputs.heads[head].double()
        probabilities: NDArray[np.float64] = logits.detach().softmax(dim=1).cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise RunError("the network's classification is not finite. Its weights or an image are damaged.")
        decided = [decide(row) for row in probabilities]
        output = outputs_of_layer[0]
        (gradient,) = torch.autograd.grad(_log_odds(logits, decided).sum(), output)
    size = tuple(batch.shape[2:])
    maps = class_activation(layer.features(output.detach()), layer.features(gradient))
    grid = tuple(maps.shape[1:])
    spread = normalised(_to_image(maps.float(), _step(grid, size, layer), size)).cpu().numpy()
    return [
        Attention(row, chosen, one, grid)
        for row, chosen, one in zip(probabilities, decided, spread, strict=True)
    ]


def class_activation(features: Tensor, gradient: Tensor) -> Tensor:
    """Return relu(sum_k alpha_k A^k), alpha_k the mean gradient: (B, C, *S) twice to (B, *S)."""
    space = tuple(range(2, features.ndim))
    weights = gradient.mean(dim=space, keepdim=True)
    return (weights * features).sum(dim=1).relu()


def normalised(maps: Tensor) -> Tensor:
    """Return (B, *S) maps divided by their sums; maps of zeros stay."""
    sums = maps.flatten(1).sum(dim=1).view(-1, *(1,) * (maps.ndim - 1))  # (B, 1, ...)
    return torch.where(sums > 0, maps / sums.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def class_probabilities(
    network: nn.Module,
    images: Sequence[NDArray[np.float32]],
    head: str,
    *,
    device: torch.device | str = "cpu",
) -> NDArray[np.float64]:
    """Return (B, K) probabilities of (C, *S) images in one pass.

    Raises:
        RunError: the network classifies nothing.
    """
    network.to(device).eval()
    with torch.inference_mode():
        outputs: Outputs = network(torch.from_numpy(np.stack(images)).to(device))
    if head not in outputs.heads:
        raise RunError(f"the network has no classification head '{head}', and so no probabilities.")
    found: NDArray[np.float64] = outputs.heads[head].double().softmax(dim=1).cpu().numpy()
    return found


def cam_layer_of(network: nn.Module) -> CamLayer:
    """Return the layer that a network declares.

    Raises:
        RunError: it declares none.
    """
    if not isinstance(network, HasCamLayer):
        raise RunError(f"{type(network).__name__}: declares no layer for Grad-CAM (a method `cam_layer`).")
    return network.cam_layer()


@contextmanager
def _weights_fixed(network: nn.Module) -> Iterator[None]:
    """Ask for no gradient of any weight, so that nothing before the declared layer is kept for one."""
    asked = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def _captured(network: nn.Module, layer: CamLayer) -> Iterator[list[Tensor]]:
    """Yield a list that the layer's output comes into, as the place that gradients are taken at."""
    found: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1]

    handle = network.get_submodule(layer.module).register_forward_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


def _log_odds(logits: Tensor, decided: Sequence[int]) -> Tensor:
    """Return (B,) log p / (1 - p) of the class decided for, from (B, K) logits."""
    chosen = torch.tensor(decided, device=logits.device)[:, None]
    others = logits.scatter(1, chosen, float("-inf")).logsumexp(dim=1)
    return logits.gather(1, chosen)[:, 0] - others


def _step(grid: Sequence[int], size: Sequence[int], layer: CamLayer) -> int:
    """Return how many of the image's pixels a voxel of the map spans, the same along every axis.

    Raises:
        RunError: there is no such number: the map is not one of the image (a layout read wrongly, say).
    """
    step = layer.stride
    while step >= 1 and len(grid) == len(size):
        # A network that pads or drops the far end of an axis has less than one voxel more, or less.
        if all(abs(voxels - side / step) < 1 for voxels, side in zip(grid, size, strict=True)):
            return step
        step //= 2
    raise RunError(
        f"the layer '{layer.module}' gives a map of {tuple(grid)} for an image of {tuple(size)}: not the "
        f"image's aspect at a stride of {layer.stride} or less. The network declares another layout "
        f"({layer.layout}) or layer than it has."
    )


def _to_image(maps: Tensor, step: int, size: Sequence[int]) -> Tensor:
    """Interpolate (B, *G) maps linearly to (B, *S), voxels as areas that begin at the near corner."""
    mode = "bilinear" if maps.ndim == 3 else "trilinear"
    scaled = F.interpolate(maps[:, None], [side * step for side in maps.shape[1:]], mode=mode)[:, 0]
    for axis, side in enumerate(size, start=1):
        # Where the network dropped the far end of an axis, its last voxel stands for it.
        index = torch.arange(side, device=maps.device).clamp_max(scaled.shape[axis] - 1)
        scaled = scaled.index_select(axis, index)
    return scaled
