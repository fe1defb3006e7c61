"""Affine alignment of two volumes: from centres, then twelve parameters from coarse to fine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from threefold.atlases.volumes import Volume, from_unit
from threefold.images.geometry import Affine
from threefold.networks.registration_losses import LocalSums, local_correlation
from threefold.networks.warping import sample, shrink

_SIDES = (16, 32)
"""Largest sides of the grids that the alignment goes through, voxels."""
_WINDOW = 7
_STEP = 0.5
"""First step of the optimisation, voxels of the grid at hand."""


def align(fixed: Volume, moving: Volume, steps: int) -> Affine:
    """Return the affine map that brings a moving volume onto a fixed one.

    It starts from the best of: where the files say they lie, the centres of the grids on each other, the
    centres of mass on each other, the same with the sizes (roots of the second moments) matched. Then
    translation, rotation, scales and shears are optimised by Adam on coarse to fine grids: by the correlation
    of all voxels on the first, by the local correlation on the others.

    Args:
        fixed, moving: prepared volumes.
        steps: of the optimisation on each grid; 0: the best start as it is.

    Returns:
        (4, 4) from the fixed volume's RAS+ mm to the moving volume's.
    """
    levels = [(_Level.of(fixed, side), _Level.of(moving, side)) for side in _SIDES]
    start = max(_starts(*levels[0]), key=lambda matrix: _fit(*levels[0], matrix))
    frame = _Frame.of(levels[-1][0])
    parameters = torch.zeros(3, 4, dtype=torch.float64)
    for number, (small, large) in enumerate(levels):
        if steps and (number == 0 or small.size != levels[number - 1][0].size):
            parameters = _optimise(small, large, start, frame, parameters, steps, local=number > 0)
    matrix: Affine = start @ frame.matrix(parameters).numpy()
    return matrix


@dataclass(frozen=True)
class _Level:
    """A volume on a coarse grid: values (1, 1, *S), and (4, 4) from -1..1 places to mm."""

    values: Tensor
    to_mm: Affine
    spacing: float

    @classmethod
    def of(cls, volume: Volume, side: int) -> _Level:
        factor = max(1.0, max(volume.size) / side)
        size = tuple(max(2, round(n / factor)) for n in volume.size)
        values = shrink(volume.values, size)
        steps = [old / new for old, new in zip(volume.size, size, strict=True)]
        finer = np.diag([*steps, 1.0])
        finer[:3, 3] = [0.5 * step - 0.5 for step in steps]
        affine = volume.affine @ finer
        spacing = float(np.linalg.norm(affine[:3, :3], axis=0).max())
        return cls(values, affine @ from_unit(size), spacing)

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.values.shape[2:])

    @property
    def centre(self) -> NDArray[np.float64]:
        """(3,) the middle of the grid, mm."""
        return self.to_mm[:3, 3]

    def moments(self) -> tuple[NDArray[np.float64], float]:
        """Return the centre of mass (3,) and the root of the second moment about it, mm."""
        size = [1, 1, *self.size]
        places = F.affine_grid(torch.eye(3, 4, dtype=torch.float64)[None], size, align_corners=True)
        points = places.view(-1, 3).numpy() @ self.to_mm[:3, :3].T + self.to_mm[:3, 3]
        weights = self.values.view(-1).double().numpy() + 1e-9  # of an empty image: the middle of the grid
        weights /= weights.sum()
        centre = weights @ points
        return centre, float(np.sqrt(weights @ np.square(points - centre).sum(1)))


@dataclass(frozen=True)
class _Frame:
    """What the parameters mean: all are about mm that a voxel at the border of the fixed volume moves."""

    centre: Tensor
    radius: float

    @classmethod
    def of(cls, level: _Level) -> _Frame:
        return cls(torch.from_numpy(level.centre), float(np.linalg.norm(level.to_mm[:3, :3])) / 2)

    def matrix(self, parameters: Tensor) -> Tensor:
        """(3, 4) logarithm of the linear part and translation to (4, 4), about the centre."""
        linear = torch.linalg.matrix_exp(parameters[:, :3] / self.radius)
        offset = self.centre + parameters[:, 3] - linear @ self.centre
        last = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
        return torch.cat((torch.cat((linear, offset[:, None]), 1), last))


def _starts(fixed: _Level, moving: _Level) -> Iterator[Affine]:
    """Maps from the fixed volume's mm to the moving volume's."""
    yield np.eye(4)
    yield _about(fixed.centre, moving.centre, 1.0)
    (fixed_mass, fixed_size), (moving_mass, moving_size) = fixed.moments(), moving.moments()
    yield _about(fixed_mass, moving_mass, 1.0)
    yield _about(fixed_mass, moving_mass, moving_size / fixed_size)


def _about(fixed: NDArray[np.float64], moving: NDArray[np.float64], scale: float) -> Affine:
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = moving - scale * fixed
    return matrix


def _fit(fixed: _Level, moving: _Level, matrix: Affine) -> float:
    theta = np.linalg.inv(moving.to_mm) @ matrix @ fixed.to_mm
    return float(_correlation(_warped(fixed, moving, torch.from_numpy(theta)), fixed.values))


def _optimise(
    fixed: _Level,
    moving: _Level,
    start: Affine,
    frame: _Frame,
    parameters: Tensor,
    steps: int,
    *,
    local: bool,
) -> Tensor:
    parameters = parameters.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=_STEP * fixed.spacing)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.1, steps)
    target = LocalSums.of(fixed.values, _WINDOW)
    after = torch.from_numpy(np.linalg.inv(moving.to_mm) @ start)
    before = torch.from_numpy(fixed.to_mm)
    for _ in range(steps):
        optimiser.zero_grad()
        warped = _warped(fixed, moving, after @ frame.matrix(parameters) @ before)
        loss = -(local_correlation(warped, target) if local else _correlation(warped, fixed.values))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return parameters.detach()


def _warped(fixed: _Level, moving: _Level, theta: Tensor) -> Tensor:
    places = F.affine_grid(theta[None, :3].float(), [1, 1, *fixed.size], align_corners=True)
    return sample(moving.values, places, outside="border")


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of all voxels; 0 where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.square().sum() * b.square().sum()).clamp_min(1e-12).sqrt()
