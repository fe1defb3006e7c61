"""Random changes of a training batch: drawn first, applied after to the whole batch on its device.

A case's draw depends on the seed, the epoch and its own id alone: not on the order of the batch, nor on
how many processes share the epoch. The same parameters give the same batch again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from threefold.errors import ExperimentError
from threefold.experiment import AugmentationSpec
from threefold.images.batch import Batch


@dataclass(frozen=True)
class AugmentationParameters:
    """What is done to each of B cases of D spatial axes, in this order.

    Attributes:
        case_ids: B names.
        quarter_turns: (B,) int64, turns by 90 degrees from the first spatial axis towards the second.
        flips: (B, D) bool, axes that are reversed after the turns.
        matrix: (B, D, D) float64, from the offset of a voxel from the grid's centre, in voxels, to the
            offset in the flipped image that it shows: rotation times 1 / scale; the identity where
            neither was drawn.
        contrast: (B,) float32, relative change of the difference to the case's mean, per channel.
        shift: (B,) float32, added.
        noise: (B,) float32, standard deviation of Gaussian noise.
        noise_seed: (B,) int64, 0..2**32 - 1.
    """

    case_ids: tuple[str, ...]
    quarter_turns: Tensor
    flips: Tensor
    matrix: Tensor
    contrast: Tensor
    shift: Tensor
    noise: Tensor
    noise_seed: Tensor

    @property
    def dimensions(self) -> int:
        """Number of spatial axes, D."""
        return self.flips.shape[1]


def draw_parameters(
    spec: AugmentationSpec, case_ids: Sequence[str], *, seed: int, epoch: int, dimensions: int
) -> AugmentationParameters:
    """Draw the changes of each case for one epoch.

    Rotations are even in [-rotation, rotation], about the centre: in 3D one about each axis. Each number
    is drawn whether or not the spec uses it, so that switching one change on leaves the others as they were.

    Raises:
        ExperimentError: quarter turns in 3D.
    """
    if spec.quarter_turns and dimensions != 2:
        raise ExperimentError(
            "data.augmentation.quarter_turns is for 2D; this cohort has volumes. Use rotation."
        )
    draws = [_draw(spec, case_id, seed, epoch, dimensions) for case_id in case_ids]
    columns = {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}
    return AugmentationParameters(
        tuple(case_ids), **{name: torch.from_numpy(column) for name, column in columns.items()}
    )


def _draw(
    spec: AugmentationSpec, case_id: str, seed: int, epoch: int, dimensions: int
) -> dict[str, NDArray[np.generic] | np.generic]:
    digest = hashlib.sha256(case_id.encode()).digest()
    rng = np.random.default_rng([seed, epoch, *np.frombuffer(digest, np.uint32).tolist()])
    flips = rng.random(dimensions) < spec.flip
    turns = rng.integers(4) * spec.quarter_turns
    angles = rng.uniform(-1, 1, 1 if dimensions == 2 else 3) * np.radians(spec.rotation)
    angles = angles * (rng.random() < spec.rotation_probability)
    scale = 1 + rng.uniform(-1, 1) * spec.scale
    contrast, shift, noise = rng.uniform((-1, -1, 0), 1) * (
        spec.intensity_scale,
        spec.intensity_shift,
        spec.noise,
    )
    return {
        "quarter_turns": np.int64(turns),
        "flips": flips,
        "matrix": _rotation(angles) / max(scale, 0.01),
        "contrast": np.float32(contrast),
        "shift": np.float32(shift),
        "noise": np.float32(noise),
        "noise_seed": rng.integers(2**32),
    }


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation in the plane of a slice (one angle), or about the axes of a volume, one after the other."""
    if len(angles) == 1:
        cosine, sine = np.cos(angles[0]), np.sin(angles[0])
        return np.array([[cosine, -sine], [sine, cosine]])
    matrix = np.eye(3)
    for angle, (first, second) in zip(angles, ((1, 2), (0, 2), (0, 1)), strict=True):
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def augment(batch: Batch, parameters: AugmentationParameters) -> Batch:
    """Apply drawn changes to a batch, on the batch's device.

    Quarter turns and flips move voxels and change none; rotation and scale are interpolated once, linearly
    for the image (0 comes in from outside) and nearest for label maps. Changes of intensity come last, and
    keep the image within 0..1. Absent targets stay zero.

    Raises:
        ValueError: if the parameters were drawn for other cases.
        ExperimentError: quarter turns of a grid that is not square.
    """
    if parameters.case_ids != batch.case_ids:
        raise ValueError(f"parameters are for {parameters.case_ids}, the batch holds {batch.case_ids}")
    image, labels = batch.image, torch.stack([batch.mask, batch.structures], dim=1)  # (B, 2, *S)
    image, labels = _reorient(image, parameters), _reorient(labels, parameters)
    image, labels = _warp(image, labels, parameters)
    return replace(batch, image=_jitter(image, parameters), mask=labels[:, 0], structures=labels[:, 1])


def _reorient(tensor: Tensor, parameters: AugmentationParameters) -> Tensor:
    """Apply quarter turns and flips to (B, C, *S), all cases of one kind at once."""
    turns, flips = parameters.quarter_turns, parameters.flips
    if turns.any() and len(set(tensor.shape[2:])) > 1:
        raise ExperimentError(
            f"data.augmentation.quarter_turns needs a square grid; the size is {tuple(tensor.shape[2:])}"
        )
    out = tensor.clone()
    for turn, *flip in product(range(4), *((False, True),) * parameters.dimensions):
        chosen = (turns == turn) & (flips == torch.tensor(flip)).all(dim=1)
        axes = [axis + 2 for axis, on in enumerate(flip) if on]
        if not chosen.any() or (turn == 0 and not axes):
            continue
        where = chosen.nonzero()[:, 0].to(tensor.device)
        out[where] = torch.rot90(tensor[where], turn, (2, 3)).flip(axes)
    return out


def _warp(image: Tensor, labels: Tensor, parameters: AugmentationParameters) -> tuple[Tensor, Tensor]:
    """Rotate and scale the cases whose matrix is not the identity."""
    identity = torch.eye(parameters.dimensions, dtype=parameters.matrix.dtype)
    chosen = (parameters.matrix != identity).flatten(1).any(dim=1)
    if not chosen.any():
        return image, labels
    where = chosen.nonzero()[:, 0].to(image.device)
    shape = image.shape[2:]
    grid = F.affine_grid(
        _theta(parameters.matrix[chosen], shape).to(image), [len(where), 1, *shape], align_corners=False
    )  # (b, *S, D)
    image, labels = image.clone(), labels.clone()
    image[where] = F.grid_sample(image[where], grid, "bilinear", "zeros", align_corners=False)
    warped = F.grid_sample(labels[where].to(image), grid, "nearest", "zeros", align_corners=False)
    labels[where] = warped.to(labels.dtype)
    return image, labels


def _theta(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Return (B, D, D + 1) for `affine_grid`: -1..1 across each axis, and the last spatial axis first."""
    half = torch.tensor(shape, dtype=matrix.dtype) / 2
    normalised = (matrix * half / half[:, None]).flip(1, 2)
    return F.pad(normalised, (0, 1))


def _jitter(image: Tensor, parameters: AugmentationParameters) -> Tensor:
    """Change contrast and brightness of (B, C, *S), add noise, clamp to 0..1; untouched cases stay so."""
    contrast, shift, noise = (
        value.to(image.device).view(-1, *(1,) * (image.ndim - 1))
        for value in (parameters.contrast, parameters.shift, parameters.noise)
    )  # (B, 1, ...)
    touched = (contrast != 0) | (shift != 0) | (noise != 0)
    if not touched.any():
        return image
    mean = image.flatten(2).mean(dim=2).view(*image.shape[:2], *(1,) * parameters.dimensions)
    changed = image + (image - mean) * contrast + shift
    if parameters.noise.any():
        changed = changed + noise * _noise(parameters, image)
    return torch.where(touched, changed.clamp(0, 1), image)


def _noise(parameters: AugmentationParameters, image: Tensor) -> Tensor:
    """Return (B, C, *S) standard normal numbers, each case's from its own seed, drawn on the device."""
    generator = torch.Generator(image.device)
    drawn = torch.empty_like(image)
    for case, seed in zip(drawn, parameters.noise_seed.tolist(), strict=True):
        case.normal_(generator=generator.manual_seed(seed))
    return drawn
