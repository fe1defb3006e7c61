"""Random changes of a training batch: drawn first, applied after to the whole batch on its device.

A case's draw depends on the seed, the epoch and its own id alone: not on the order of the batch, nor on
how many processes share the epoch. The same parameters give the same batch again.

The published changes of the aortic-arch system (arXiv 2311.07234) are `probability: 0.3, rotation: 28.65,
scale: 0.1, shear: 0.1, translation: 0.1, intensity_shift: 0.1, smooth: 1.5, noise: 0.1, sharpen: 30,
histogram_shift: 10, gamma: 4.5, bias_field: 0.1`. What differs from the published implementation: voxels
are moved before intensities are changed, so that noise is not interpolated; 0 comes in from outside instead
of the image's mirror; rotations are about fixed axes instead of the turning ones; sizes are drawn evenly
instead of their inverses; and the image is kept within 0..1 (sharpening leaves it by far).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threefold.core.batch import Batch
from threefold.errors import ExperimentError
from threefold.experiment import AugmentationSpec
from threefold.images.augmentation_geometry import reorient, warp
from threefold.images.augmentation_intensity import (
    adjust_gamma,
    bias_field,
    bias_terms,
    gaussian_sharpen,
    gaussian_smooth,
    shift_histogram,
)


@dataclass(frozen=True)
class AugmentationParameters:
    """What is done to each of B cases of D spatial axes, in this order.

    Attributes:
        case_ids: B names.
        quarter_turns: (B,) int64, turns by 90 degrees from the first spatial axis towards the second.
        flips: (B, D) bool, axes that are reversed after the turns.
        matrix: (B, D, D) float64, from the offset of a voxel from the grid's centre, in voxels, to the
            offset in the flipped image that it shows: rotation times shear times 1 / scale; the identity
            where none was drawn.
        translation: (B, D) float64, voxels, added to the latter.
        contrast: (B,) float32, relative change of the difference to the case's mean, per channel.
        shift: (B,) float32, added.
        smooth: (B, D) float64, standard deviations of a Gaussian filter, voxels; 0: none.
        noise: (B,) float32, standard deviation of Gaussian noise.
        noise_seed: (B,) int64, 0..2**32 - 1.
        sharpen: (B,) float64, strength of sharpening; 0: none.
        sharpen_sigmas: (B, 2, D) float64, its finer and its further filter, voxels.
        histogram: (B, P) float64, where P evenly spaced intensities go, 0..1; P = 0: nowhere.
        gamma: (B,) float64, exponent; 1: none.
        bias: (B, N) float64, coefficients of a bias field in the order of `bias_terms`; all 0: none.
    """

    case_ids: tuple[str, ...]
    quarter_turns: Tensor
    flips: Tensor
    matrix: Tensor
    translation: Tensor
    contrast: Tensor
    shift: Tensor
    smooth: Tensor
    noise: Tensor
    noise_seed: Tensor
    sharpen: Tensor
    sharpen_sigmas: Tensor
    histogram: Tensor
    gamma: Tensor
    bias: Tensor

    @property
    def dimensions(self) -> int:
        """Number of spatial axes, D."""
        return self.flips.shape[1]


def draw_parameters(
    spec: AugmentationSpec,
    case_ids: Sequence[str],
    *,
    seed: int,
    epoch: int,
    dimensions: int,
    repeats: Sequence[int] | None = None,
) -> AugmentationParameters:
    """Draw the changes of each case for one epoch.

    They depend on the seed, the epoch, the case and how often it came before, and on nothing else: not on
    the batch that a case is in, nor on the process.

    Args:
        spec: what may change.
        case_ids: of the batch.
        seed, epoch: of the training.
        dimensions: 2 or 3.
        repeats: how often each was drawn before in this epoch; None: each is drawn once.

    Rotations are even in [-rotation, rotation], about the centre: in 3D one about each axis. Each number
    is drawn whether or not the spec uses it, so that switching one change on leaves the others as they were.

    Raises:
        ExperimentError: quarter turns in 3D.
    """
    if spec.quarter_turns and dimensions != 2:
        raise ExperimentError(
            "data.augmentation.quarter_turns is for 2D; this cohort has volumes. Use rotation."
        )
    before = [0] * len(case_ids) if repeats is None else repeats
    draws = [
        _draw(spec, case_id, (seed, epoch), repeat, dimensions)
        for case_id, repeat in zip(case_ids, before, strict=True)
    ]
    columns = {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}
    return AugmentationParameters(
        tuple(case_ids), **{name: torch.from_numpy(column) for name, column in columns.items()}
    )


def _draw(
    spec: AugmentationSpec, case_id: str, place: tuple[int, int], repeat: int, dimensions: int
) -> dict[str, NDArray[np.generic] | np.generic]:
    digest = hashlib.sha256(case_id.encode()).digest()
    again = [repeat] if repeat else []
    rng = np.random.default_rng([*place, *np.frombuffer(digest, np.uint32).tolist(), *again])
    # Runs are repeated by these draws: a new one goes below the last that does not depend on the spec.
    flips = rng.random(dimensions) < np.asarray(spec.flip)
    turns = rng.integers(4) * spec.quarter_turns
    angles = rng.uniform(-1, 1, 1 if dimensions == 2 else 3) * np.radians(spec.rotation)
    angles = angles * (rng.random() < spec.rotation_probability)
    sizes = np.array([rng.uniform(-1, 1)])
    contrast, shift, noise = rng.uniform((-1, -1, 0), 1) * (
        spec.intensity_scale,
        spec.intensity_shift,
        spec.noise,
    )
    noise_seed = rng.integers(2**32)
    affine_on, contrast_on, shift_on, smooth_on, noise_on, sharpen_on, histogram_on, gamma_on, bias_on = (
        rng.random(9) < spec.probability
    )
    if dimensions == 3:
        sizes = np.append(sizes, rng.uniform(-1, 1, 2))
    scale = np.maximum(1 + sizes * spec.scale, 0.01)
    shears = rng.uniform(-1, 1, dimensions) * spec.shear
    translation = rng.uniform(-1, 1, dimensions) * spec.translation
    smooth = rng.uniform(1 / 6, 1, dimensions) * spec.smooth
    fine = rng.uniform(0.5, 1, dimensions)
    coarse = 0.5 + rng.random(dimensions) * (fine - 0.5)
    strength = rng.uniform(1 / 3, 1) * spec.sharpen
    exponent = 0.5 + rng.random() * (spec.gamma - 0.5)
    bias = rng.random(len(bias_terms(dimensions))) * spec.bias_field
    matrix = _rotation(angles) @ _shear(shears) / scale
    return {
        "quarter_turns": np.int64(turns),
        "flips": flips,
        "matrix": matrix if affine_on else np.eye(dimensions),
        "translation": translation * affine_on,
        "contrast": np.float32(contrast * contrast_on),
        "shift": np.float32(shift * shift_on),
        "smooth": smooth * smooth_on,
        "noise": np.float32(noise * noise_on),
        "noise_seed": noise_seed,
        "sharpen": np.float64(strength * sharpen_on),
        "sharpen_sigmas": np.stack([fine, coarse]),
        "histogram": _control_points(rng, spec.histogram_shift, moved=bool(histogram_on)),
        "gamma": np.float64(exponent if gamma_on and spec.gamma else 1),
        "bias": bias * bias_on,
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


def _shear(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shears of one axis along another, one after the other: the volume stays what it was.

    2D: the first along the second axis, then the second along the first; 3D: the first along the second and
    the third, then the second along the first.
    """
    dimensions = len(factors)
    pairs = ((0, 1), (1, 0)) if dimensions == 2 else ((0, 1), (0, 2), (1, 0))
    matrix = np.eye(dimensions)
    for factor, (row, column) in zip(factors, pairs, strict=True):
        step = np.eye(dimensions)
        step[row, column] = factor
        matrix = step @ matrix
    return matrix


def _control_points(rng: np.random.Generator, count: int, *, moved: bool) -> NDArray[np.float64]:
    """Return `count` evenly spaced points of 0..1, the inner ones moved to between their neighbours."""
    points = np.linspace(0, 1, count)
    draws = rng.random(max(count - 2, 0))
    if moved:
        for i, draw in enumerate(draws, start=1):
            points[i] = points[i - 1] + draw * (points[i + 1] - points[i - 1])
    return points


def augment(batch: Batch, parameters: AugmentationParameters) -> Batch:
    """Apply drawn changes to a batch, on the batch's device.

    Quarter turns and flips move voxels and change none; rotation, shear, scale and translation are
    interpolated once, linearly for the image (0 comes in from outside) and nearest for label maps. Changes
    of intensity come last, and keep the image within 0..1. Absent targets stay zero.

    Raises:
        ValueError: if the parameters were drawn for other cases.
        ExperimentError: quarter turns of a grid that is not square.
    """
    if parameters.case_ids != batch.case_ids:
        raise ValueError(f"parameters are for {parameters.case_ids}, the batch holds {batch.case_ids}")
    p = parameters
    maps = {name: one for name, one in batch.targets.items() if one.values.ndim == batch.image.ndim - 1}
    empty = batch.image.new_zeros((len(batch), 0, *batch.image.shape[2:]), dtype=torch.uint8)
    labels = torch.stack([one.values for one in maps.values()], dim=1) if maps else empty  # (B, M, *S)
    image, labels = (reorient(tensor, p.quarter_turns, p.flips) for tensor in (batch.image, labels))
    image, labels = warp(image, labels, p.matrix, p.translation)
    moved = {name: replace(one, values=labels[:, i]) for i, (name, one) in enumerate(maps.items())}
    return Batch(batch.case_ids, _change_intensity(image, p), {**batch.targets, **moved})


def _change_intensity(image: Tensor, parameters: AugmentationParameters) -> Tensor:
    """Change (B, C, *S) case by case; untouched cases stay as they are."""
    touched = _touched(parameters).nonzero()[:, 0].tolist()
    if not touched:
        return image
    means = image.flatten(2).mean(dim=2) if parameters.contrast.any() else image.new_zeros(image.shape[:2])
    means = means.view(*image.shape[:2], *(1,) * parameters.dimensions)
    image = image.clone()
    for i in touched:
        changed = _change_case(image[i], means[i], parameters, i)
        torch.clamp(changed, 0, 1, out=image[i])
    return image


def _touched(parameters: AugmentationParameters) -> Tensor:
    """Return (B,) bool: whose intensities are changed."""
    p = parameters
    return (
        (p.contrast != 0)
        | (p.shift != 0)
        | (p.smooth != 0).any(dim=1)
        | (p.noise != 0)
        | (p.sharpen != 0)
        | _bent(p.histogram)
        | (p.gamma != 1)
        | (p.bias != 0).any(dim=1)
    )


def _change_case(image: Tensor, mean: Tensor, parameters: AugmentationParameters, i: int) -> Tensor:
    """Return a (C, *S) image changed as the parameters of case i say, yet to be clamped to 0..1.

    The input is left as it was; `mean` (C, 1, ...) is that of the image.
    """
    p = parameters
    if p.contrast[i] != 0:
        image = image + (image - mean) * p.contrast[i].to(image)
    if p.shift[i] != 0:
        image = image + p.shift[i].to(image)
    if p.smooth[i].any():
        image = gaussian_smooth(image, p.smooth[i].tolist())
    if p.noise[i] != 0:
        image = _noise(image, int(p.noise_seed[i])).mul_(p.noise[i].to(image)).add_(image)
    if p.sharpen[i] != 0:
        fine, coarse = p.sharpen_sigmas[i].tolist()
        image = gaussian_sharpen(image.clamp(0, 1), fine, coarse, float(p.sharpen[i]))
    if _bent(p.histogram[i]):
        image = shift_histogram(image.clamp(0, 1), p.histogram[i].tolist())
    if p.gamma[i] != 1:
        image = adjust_gamma(image.clamp(0, 1), float(p.gamma[i]))
    if p.bias[i].any():
        image = bias_field(image.shape[1:], p.bias[i].to(image)) * image.clamp(0, 1)
    return image


def _bent(points: Tensor) -> Tensor:
    """Return whether control points, along the last axis, are anywhere but evenly spaced."""
    even = torch.from_numpy(np.linspace(0, 1, points.shape[-1]))
    return (points != even).any(dim=-1)


def _noise(image: Tensor, seed: int) -> Tensor:
    """Return standard normal numbers like `image`, drawn on its device."""
    return torch.empty_like(image).normal_(generator=torch.Generator(image.device).manual_seed(seed))
