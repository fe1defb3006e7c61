"""Topology-aware losses: soft centreline Dice and persistent homology.

Both look at one label of one case at a time, in the box around where it is true or has a probability of at
least 0.05: what lies outside it doesn't count. The box of a vessel is a hundredth of the volume. It is all of
the volume while the network still finds every label everywhere, so these losses are best switched on with
`--init-from RUN`, on a network that was trained without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from threefold.errors import UsageError
from threefold.topology import betti_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST = 0.05
"""Probability below which a voxel is no candidate for a label."""


def cl_dice_loss(probabilities: Tensor, labels: Tensor, *, iterations: int = 3) -> Tensor:
    """Return a case's soft centreline Dice loss, mean over the structures.

    Shit et al. 2021 (arXiv 2003.07311). With skeletons S of a structure's probability p and truth y, and sums
    over voxels:

        precision = (sum S(p) y + 1) / (sum S(p) + 1),   sensitivity = (sum S(y) p + 1) / (sum S(y) + 1)
        loss = 1 - 2 precision sensitivity / (precision + sensitivity)

    A structure that is neither true nor found scores 0. In its box it is MONAI's SoftclDiceLoss of that
    structure alone (which joins structures into one sum, so that thin ones hardly count).

    Args:
        probabilities: (L, *S) softmax of L labels.
        labels: (*S) true labels.
        iterations: erosions of the soft skeleton, about the half-width in voxels of the thickest structure.
    """

    def loss(probability: Tensor, truth: Tensor) -> Tensor:
        found, true = soft_skeleton(probability, iterations), soft_skeleton(truth, iterations)
        precision = ((found * truth).sum() + 1) / (found.sum() + 1)
        sensitivity = ((true * probability).sum() + 1) / (true.sum() + 1)
        return 1 - 2 * precision * sensitivity / (precision + sensitivity)

    return _mean_over_structures(probabilities, labels, loss)


def homology_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return a case's persistent-homology loss, mean over the structures.

    The bars of p's superlevel sets (components, tunnels, cavities; voxels that share a corner belong
    together) are matched to the truth's Betti numbers as in Hu et al. 2019 (arXiv 1906.05404): as many of the
    longest bars of a dimension as the truth has features ought to last from 1 to 0, all others ought to
    vanish. With birth b > death d of a bar, both the probability of a critical voxel:

        loss = sum_matched (1 - b)^2 + d^2 + sum_others (b - d)^2

    Cost: gudhi takes about 0.1 s for a box of 30^3 voxels, 0.4 s for 40^3 and 2 s for 60^3, on one core and
    once for each structure.

    Args:
        probabilities: (L, *S) softmax of L labels, S of 2 or 3 axes.
        labels: (*S) true labels.
    """

    def loss(probability: Tensor, truth: Tensor) -> Tensor:
        wanted = betti_numbers(truth.cpu().numpy().astype(np.uint8), 1)[0]
        bars = _bars(probability)
        return torch.stack([_bar_loss(bar, int(n)) for bar, n in zip(bars, wanted, strict=False)]).sum()

    return _mean_over_structures(probabilities, labels, loss, recompute=False)


def require_gudhi() -> None:
    """Refuse the persistent-homology loss if its library is not installed.

    Raises:
        UsageError: with the extra to install.
    """
    if find_spec("gudhi") is None:
        raise UsageError(
            "tasks.segmentation.homology is on, but gudhi is not installed: "
            "pip install 'threefold[topology]', or set it to 0."
        )


def soft_skeleton(values: Tensor, iterations: int) -> Tensor:
    """Return the soft skeleton of values (*S) in 0..1: what openings remove from ever stronger erosions."""
    skeleton = F.relu(values - _dilate(eroded := _erode(values)))
    for _ in range(iterations):
        values, eroded = eroded, _erode(eroded)
        removed = F.relu(values - _dilate(eroded))
        skeleton = skeleton + F.relu(removed - skeleton * removed)
    return skeleton


def _mean_over_structures(
    probabilities: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    recompute: bool = True,
) -> Tensor:
    """Return the mean of loss(probability, truth), in the box of each structure; 0 where it has none.

    Args:
        probabilities, labels: as of the losses.
        loss: of a structure's probability and truth, both float of one shape.
        recompute: keep nothing for the gradient but the probabilities, and compute the loss again.
    """
    losses = []
    for label in range(1, len(probabilities)):
        truth = labels == label
        box = _box(truth | (probabilities[label].detach() >= LEAST))
        if box is None:
            losses.append(probabilities.new_zeros(()))
            continue
        inside, true = probabilities[label][box], truth[box].to(probabilities)
        if recompute and inside.requires_grad:
            losses.append(checkpoint(loss, inside, true, use_reentrant=False, preserve_rng_state=False))
        else:
            losses.append(loss(inside, true))
    return torch.stack(losses).mean()


def _box(mask: Tensor) -> tuple[slice, ...] | None:
    """Return the box around the voxels of a mask, one voxel wider on each side; None if there are none."""
    box = []
    for axis, side in enumerate(mask.shape):
        others = [other for other in range(mask.ndim) if other != axis]
        there = mask.amax(dim=others).nonzero()
        if not len(there):
            return None
        box.append(slice(max(0, int(there[0]) - 1), min(side, int(there[-1]) + 2)))
    return tuple(box)


class _Extreme(torch.autograd.Function):
    """The smallest or largest of each voxel and its neighbours along some axes; (*S) to (*S).

    The gradient goes to the voxel that it is; of several that are equal, to the voxel itself, else to the
    neighbour that comes first.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, axes: tuple[int, ...], largest: bool) -> Tensor:
        choose = torch.maximum if largest else torch.minimum
        result = values.clone()
        for here, there in _neighbours(values, axes):
            choose(result[here], values[there], out=result[here])
        ctx.save_for_backward(values, result)
        ctx.axes = axes
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, result = ctx.saved_tensors
        collected = gradient.where(values == result, 0.0)
        left = gradient - collected
        for here, there in _neighbours(values, ctx.axes):
            given = left[here].where(values[there] == result[here], 0.0)
            collected[there] += given
            left[here] -= given
        return collected, None, None


Box = tuple[slice, ...]


def _neighbours(values: Tensor, axes: tuple[int, ...]) -> Iterator[tuple[Box, Box]]:
    """Yield, for each of the two neighbours along each axis, the voxels that have it, and it."""
    for axis in axes:
        before = (slice(None),) * axis
        yield (*before, slice(1, None)), (*before, slice(None, -1))
        yield (*before, slice(None, -1)), (*before, slice(1, None))


def _erode(values: Tensor) -> Tensor:
    """Smallest of a voxel and its neighbours through faces."""
    smallest: Tensor = _Extreme.apply(values, tuple(range(values.ndim)), False)  # type: ignore[no-untyped-call]
    return smallest


def _dilate(values: Tensor) -> Tensor:
    """Largest of a voxel and its neighbours through faces, edges and corners."""
    for axis in range(values.ndim):
        values = _Extreme.apply(values, (axis,), True)  # type: ignore[no-untyped-call]
    return values


def _bars(probability: Tensor) -> list[Tensor]:
    """Return by dimension the (n, 2) births and deaths of the superlevel sets; the last component dies at 0.

    Each is the probability of the voxel where it happens, and carries its gradient.
    """
    import gudhi

    values: NDArray[np.float64] = probability.detach().cpu().numpy().astype(np.float64)
    values[values < LEAST] = 0.0  # their many short bars are noise
    complex_ = gudhi.CubicalComplex(top_dimensional_cells=1 - values)
    complex_.compute_persistence()
    pairs, essential = complex_.cofaces_of_persistence_pairs()
    # gudhi counts voxels with the first axis fastest.
    flat = probability.permute(*reversed(range(probability.ndim))).reshape(-1)
    bars = []
    for dimension in range(probability.ndim):
        found = np.asarray(pairs[dimension]) if dimension < len(pairs) else np.zeros((0, 2), np.int64)
        bars.append(flat[torch.from_numpy(found.reshape(-1, 2).astype(np.int64)).to(flat.device)])
    births = flat[torch.from_numpy(np.asarray(essential[0]).astype(np.int64)).to(flat.device)]
    lasting = torch.stack([births, torch.zeros_like(births)], dim=1)  # (n, 2)
    bars[0] = torch.cat([bars[0], lasting])
    return bars


def _bar_loss(bars: Tensor, wanted: int) -> Tensor:
    """Return the loss of a dimension's bars (n, 2) whose `wanted` longest ought to last from 1 to 0."""
    births, deaths = bars.unbind(dim=1)
    lengths = births - deaths
    order = lengths.detach().argsort(descending=True, stable=True)
    matched, others = order[:wanted], order[wanted:]
    missing = wanted - len(matched)  # a feature that p hasn't at any level is as far from lasting as can be
    kept = (1 - births[matched]).square().sum() + deaths[matched].square().sum()
    return kept + lengths[others].square().sum() + missing
