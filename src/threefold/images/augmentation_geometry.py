"""Moving voxels of a batch: quarter turns, flips, affine maps, with given parameters, on its device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from threefold.errors import ExperimentError


def reorient(tensor: Tensor, turns: Tensor, flips: Tensor) -> Tensor:
    """Turn and flip cases, all of one kind at once; voxels are moved, none is changed.

    Args:
        tensor: (B, C, *S) of any type.
        turns: (B,) by 90 degrees from the first spatial axis towards the second.
        flips: (B, D) bool, axes that are reversed after.

    Raises:
        ExperimentError: quarter turns of a grid that is not square.
    """
    if turns.any() and len(set(tensor.shape[2:])) > 1:
        raise ExperimentError(
            f"data.augmentation.quarter_turns needs a square grid; the size is {tuple(tensor.shape[2:])}"
        )
    if not (turns.any() or flips.any()):
        return tensor
    out = tensor.clone()
    for turn, *flip in product(range(4), *((False, True),) * flips.shape[1]):
        chosen = (turns == turn) & (flips == torch.tensor(flip)).all(dim=1)
        axes = [axis + 2 for axis, on in enumerate(flip) if on]
        if not chosen.any() or (turn == 0 and not axes):
            continue
        where = chosen.nonzero()[:, 0].to(tensor.device)
        out[where] = torch.rot90(tensor[where], turn, (2, 3)).flip(axes)
    return out


def warp(image: Tensor, labels: Tensor, matrix: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
    """Map the cases whose map is not the identity; from outside comes 0.

    Args:
        image: (B, C, *S) float, interpolated linearly.
        labels: (B, L, *S) of any type, nearest.
        matrix: (B, D, D) from a voxel's offset from the grid's centre to that of the voxel it shows.
        translation: (B, D) voxels, added to the latter.
    """
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype)
    chosen = (matrix != identity).flatten(1).any(dim=1) | (translation != 0).any(dim=1)
    if not chosen.any():
        return image, labels
    shape = image.shape[2:]
    theta = _theta(matrix[chosen], translation[chosen], shape)
    image, labels = image.clone(), labels.clone()
    if len(shape) == 2:
        where = chosen.nonzero()[:, 0].to(image.device)
        grid = F.affine_grid(theta.to(image), [len(where), 1, *shape], align_corners=False)  # (b, *S, D)
        image[where] = _sample(image[where], grid, "bilinear")
        labels[where] = _sample(labels[where].to(image), grid, "nearest").to(labels.dtype)
        return image, labels
    # A volume at a time: it stays in the processor's cache.
    for i, map_of_case in zip(chosen.nonzero()[:, 0].tolist(), theta, strict=True):
        grid = _volume_grid(map_of_case, shape).to(image)[None]  # (1, *S, D)
        image[i] = _sample_volume(image[i], grid, "bilinear")
        labels[i] = _sample_volume(labels[i].to(image), grid, "nearest").to(labels.dtype)
    return image, labels


def _theta(matrix: Tensor, translation: Tensor, shape: Sequence[int]) -> Tensor:
    """Return (B, D, D + 1) for `affine_grid`: -1..1 across each axis, and the last spatial axis first."""
    half = torch.tensor(shape, dtype=matrix.dtype) / 2
    normalised = (matrix * half / half[:, None]).flip(1, 2)
    return torch.cat([normalised, (translation / half).flip(1)[..., None]], dim=2)


def _volume_grid(theta: Tensor, shape: Sequence[int]) -> Tensor:
    """Return `affine_grid`'s (*S, D) for one volume, as a sum of one line per axis: a third of its time."""
    lines = []
    for axis, size in enumerate(shape):
        centres = (2 * torch.arange(size, dtype=theta.dtype) + 1) / size - 1
        lines.append((centres[:, None] * theta[:, len(shape) - 1 - axis]).float())  # (n, D)
    first, second, third = lines
    return (first + theta[:, -1].float())[:, None, None] + (second[:, None] + third)


def _sample_volume(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Sample (C, I, J, K) at a (1, I, J, K, 3) grid: on a CPU in slabs, for a thread takes a whole one."""
    depth = grid.shape[1]
    slabs = 1
    if volume.device.type == "cpu":
        slabs = max(n for n in range(1, 2 * torch.get_num_threads() + 1) if depth % n == 0)
    parts = grid.view(slabs, depth // slabs, *grid.shape[2:])
    sampled = _sample(volume.expand(slabs, *volume.shape), parts, mode)  # (slabs, C, I / slabs, J, K)
    return sampled.transpose(0, 1).reshape(volume.shape)


def _sample(tensor: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(tensor, grid, mode, "zeros", align_corners=False)
