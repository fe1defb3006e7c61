"""Changes of one image's intensity with given parameters, on its device.

The definitions are those of the transforms that the published aortic-arch system trains with (MONAI's
GaussianSmooth, GaussianSharpen, RandHistogramShift, AdjustContrast and RandBiasField), to rounding; only a
bias field in 2D has other terms, those of a total degree up to 3 as in 3D. Filters and fields are products of
one small matrix per axis. An image is worked on by itself rather than with its batch: a volume then stays in
the processor's cache from one step to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

BIAS_DEGREE = 3
"""Of the polynomial whose exponential is a bias field."""
_TRUNCATED = 4.0
"""A Gaussian kernel ends after this many standard deviations."""


def gaussian_smooth(image: Tensor, sigma: Sequence[float]) -> Tensor:
    """Convolve with a Gaussian, axis by axis; outside the image is 0.

    The kernel's weights are integrals of the Gaussian over a voxel, up to 4 standard deviations.

    Args:
        image: (C, *S) float.
        sigma: standard deviation along each axis, voxels, above 0.
    """
    for axis, (size, deviation) in enumerate(zip(image.shape[1:], sigma, strict=True)):
        image = _along(image, _gaussian_matrix(size, deviation).to(image), axis)
    return image


def gaussian_sharpen(
    image: Tensor, fine: Sequence[float], coarse: Sequence[float], strength: float
) -> Tensor:
    """Add to a smoothed image `strength` times what further smoothing takes away.

    Args:
        image: (C, *S) float.
        fine, coarse: standard deviations along each axis, voxels, of the first and the further filter.
        strength: 0 smooths only.
    """
    smoothed = gaussian_smooth(image, fine)
    return torch.lerp(gaussian_smooth(smoothed, coarse), smoothed, 1 + strength)


def shift_histogram(image: Tensor, points: Sequence[float]) -> Tensor:
    """Map intensities by a piecewise linear function between the image's smallest and largest.

    Args:
        image: (C, *S) float.
        points: P rising numbers in 0..1, P >= 3: where P evenly spaced intensities go.
    """
    low, high = image.aminmax()
    span = torch.where(high > low, high - low, 1)
    goal = torch.tensor(points, dtype=torch.float64)
    slope, pieces = goal.diff(), len(points) - 1
    start = goal[:-1] - slope * torch.arange(pieces)
    place = ((image - low) * (pieces / span)).flatten()  # 0..P-1
    piece = place.int().clamp_(max=pieces - 1)
    mapped = slope.to(image).index_select(0, piece).mul_(place).add_(start.to(image).index_select(0, piece))
    return mapped.mul_(span).add_(low).view_as(image)


def adjust_gamma(image: Tensor, exponent: float) -> Tensor:
    """Raise intensities to a power, on the scale from the image's smallest (0) to its largest (1).

    Args:
        image: (C, *S) float.
        exponent: above 0.
    """
    low, high = image.aminmax()
    span = high - low
    # exp(exponent * log(x)) is x ** exponent in a third of the time; log(0) = -inf gives 0
    return ((image - low) / (span + 1e-7)).log_().mul_(exponent).exp_().mul_(span).add_(low)


def bias_field(shape: Sequence[int], coefficients: Tensor) -> Tensor:
    """Return a smooth positive field: the exponential of a sum of Legendre products.

    Args:
        shape: of the grid, 2 or 3 axes, each of which runs from -1 to 1.
        coefficients: (N,) of the products in the order of `bias_terms`.

    Returns:
        (*shape), of the coefficients' type and on their device.
    """
    terms = torch.tensor(bias_terms(len(shape)), device=coefficients.device)
    field = coefficients.new_zeros(1, *(BIAS_DEGREE + 1,) * len(shape))
    field[(0, *terms.T)] = coefficients
    for axis in reversed(range(len(shape))):  # the last first: the array grows where it is contiguous
        field = _along(field, _legendre(shape[axis]).to(coefficients), axis)
    return field[0].exp_()


@lru_cache
def bias_terms(dimensions: int) -> tuple[tuple[int, ...], ...]:
    """Return the degree along each axis of each term of a field: 10 terms in 2D, 20 in 3D."""
    every = product(range(BIAS_DEGREE + 1), repeat=dimensions)
    return tuple(degrees for degrees in every if sum(degrees) <= BIAS_DEGREE)


def _gaussian_matrix(size: int, sigma: float) -> Tensor:
    """Return the (size, size) banded matrix that convolves a line of voxels, float64."""
    distance = (torch.arange(size, dtype=torch.float64)[:, None] - torch.arange(size)).abs()  # (size, size)
    scale = 1 / (sigma * math.sqrt(2))
    weights = 0.5 * (torch.erf((distance + 0.5) * scale) - torch.erf((distance - 0.5) * scale))
    return weights * (distance <= int(max(sigma * _TRUNCATED, 0.5) + 0.5))


def _along(image: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply the lines along a spatial axis of (C, *S) by a matrix (new, old)."""
    channels, *spatial = image.shape
    before, old, after = spatial[:axis], spatial[axis], spatial[axis + 1 :]
    if after:
        lines = image.reshape(-1, old, math.prod(after))  # (C * before, old, after)
        out = torch.bmm(matrix.expand(len(lines), -1, -1), lines)
    else:
        out = image.reshape(-1, old) @ matrix.T  # (C * before, new)
    return out.reshape(channels, *before, len(matrix), *after)


@lru_cache(maxsize=64)
def _legendre(size: int) -> Tensor:
    """Return (size, degree + 1) values of the Legendre polynomials on -1..1, float64."""
    return torch.from_numpy(np.polynomial.legendre.legvander(np.linspace(-1, 1, size), BIAS_DEGREE))
