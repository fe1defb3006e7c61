"""Affine alignment of two volumes: from centres, then twelve parameters from coarse to fine.

Where that ends poorly, it starts again from every turn of the axes, mirrored or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product

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


RESTART_BELOW = 0.65
"""Local correlation of aligned volumes, 0 to 1, below which an alignment starts again from turned volumes."""
_ROUNDS = ((16, 12), (3, 30))
"""How many turned starts, the best so far, are optimised on the coarsest grid, and for how many steps; one is
optimised to the end."""
_CLEARLY = 0.02
"""Gain of local correlation that a turned start has to show, and a mirrored one over those that are not."""


@dataclass(frozen=True)
class Alignment:
    """An affine map, and how it was found.

    Attributes:
        matrix: (4, 4) from the fixed volume's RAS+ mm to the moving volume's.
        correlation: local correlation of the aligned volumes on a grid of 32 voxels, 0 to 1.
        start: file (as the files lie, or from their centres), turned or mirrored: how it was started anew.
        begun: (4, 4) the map that it started from.
    """

    matrix: Affine
    correlation: float
    start: str
    begun: Affine


def align(fixed: Volume, moving: Volume, steps: int, *, restarts: bool = True) -> Alignment:
    """Return the affine map that brings a moving volume onto a fixed one.

    It starts from the best of: where the files say they lie, the centres of the grids on each other, the
    centres of mass on each other, the same with the sizes (roots of the second moments) matched. Then
    translation, rotation, scales and shears are optimised by Adam on coarse to fine grids: by the correlation
    of all voxels on the first, by the local correlation on the others.

    The files may be turned or mirrored against each other: 96 turns and 24 reflections about the centres of
    mass are tried where the local correlation then is below `RESTART_BELOW`, or where one of them, as it is,
    has a higher correlation on the first grid. The best are optimised on the first grid, the best turned and
    the best mirrored one to the end if they then correlate better there, and one of these is taken if its
    local correlation is clearly better. Nothing is random.

    Args:
        fixed, moving: prepared volumes.
        steps: of the optimisation on each grid; 0: the best start as it is.
        restarts: false: never start again.
    """
    levels = [(_Level.of(fixed, side), _Level.of(moving, side)) for side in _SIDES]
    start = max(_starts(*levels[0]), key=lambda matrix: float(_fit(*levels[0], matrix[None])))
    (best,) = _aligned(levels, start[None], steps, "file")
    if not restarts or not steps:
        return best
    others = {mirrored: np.stack(list(_turns(*levels[0], mirrored=mirrored))) for mirrored in (False, True)}
    fits = {mirrored: _fit(*levels[0], turns) for mirrored, turns in others.items()}
    coarse = float(_fit(*levels[0], best.matrix[None]))
    if best.correlation >= RESTART_BELOW and all(float(fit.max()) <= coarse for fit in fits.values()):
        return best
    for mirrored, turns in others.items():
        for count, short in _ROUNDS:
            turns = turns[(-fits[mirrored]).argsort(stable=True)[:count].numpy()]
            fits[mirrored] = _fit(*levels[0], _optimised(levels[:1], turns, short))
        if float(fits[mirrored].max()) <= coarse:
            continue
        start = turns[[int(fits[mirrored].argmax())]]
        (other,) = _aligned(levels, start, steps, "mirrored" if mirrored else "turned")
        if other.correlation > best.correlation + _CLEARLY:
            best, coarse = other, float(_fit(*levels[0], other.matrix[None]))
    return best


def align_back(fixed: Volume, moving: Volume, there: Alignment, steps: int) -> Affine:
    """Return the affine map of the other direction, optimised on its own, to be held against the one there.

    Args:
        fixed, moving, steps: that `align` got.
        there: what it returned. Where it was turned or mirrored, this starts from that start's inverse.

    Returns:
        (4, 4) from the moving volume's RAS+ mm to the fixed volume's.
    """
    if there.start == "file":
        return align(moving, fixed, steps, restarts=False).matrix
    levels = [(_Level.of(moving, side), _Level.of(fixed, side)) for side in _SIDES]
    (back,) = _aligned(levels, np.linalg.inv(there.begun)[None].astype(np.float64), steps, there.start)
    return back.matrix


def _aligned(
    levels: Sequence[tuple[_Level, _Level]], starts: NDArray[np.float64], steps: int, name: str
) -> list[Alignment]:
    """Optimise starts (K, 4, 4) from coarse to fine."""
    fixed, moving = levels[-1]
    matrices = _optimised(levels, starts, steps)
    target = LocalSums.of(fixed.values, _WINDOW)
    warped = _warped(fixed, moving, _theta(fixed, moving, matrices))
    fits = [float(local_correlation(one[None], target)) for one in warped]
    found = zip(matrices, fits, starts, strict=True)
    return [Alignment(matrix, fit, name, start) for matrix, fit, start in found]


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

    def matrices(self, parameters: Tensor) -> Tensor:
        """(K, 3, 4) logarithms of the linear parts and translations to (K, 4, 4), about the centre."""
        linear = torch.linalg.matrix_exp(parameters[:, :, :3] / self.radius)
        offset = self.centre + parameters[:, :, 3] - linear @ self.centre
        last = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]], dtype=torch.float64).expand(len(parameters), 1, 4)
        return torch.cat((torch.cat((linear, offset[:, :, None]), 2), last), 1)


def _starts(fixed: _Level, moving: _Level) -> Iterator[Affine]:
    """Maps from the fixed volume's mm to the moving volume's."""
    yield np.eye(4)
    yield _about(fixed.centre, moving.centre, 1.0)
    (fixed_mass, fixed_size), (moving_mass, moving_size) = fixed.moments(), moving.moments()
    yield _about(fixed_mass, moving_mass, 1.0)
    yield _about(fixed_mass, moving_mass, moving_size / fixed_size)


_HALF = np.sqrt(0.5)
_EIGHTHS = (
    np.array([[1, 0, 0], [0, _HALF, -_HALF], [0, _HALF, _HALF]]),
    np.array([[_HALF, 0, _HALF], [0, 1, 0], [-_HALF, 0, _HALF]]),
    np.array([[_HALF, -_HALF, 0], [_HALF, _HALF, 0], [0, 0, 1]]),
)
"""An eighth of a turn about each axis."""


def _turns(fixed: _Level, moving: _Level, *, mirrored: bool) -> Iterator[Affine]:
    """Turns or reflections about the centres of mass, the sizes matched.

    The turns: the 24 of a cube, each also with a further eighth of a turn about each axis. The reflections:
    the 24 of a cube.
    """
    (fixed_mass, fixed_size), (moving_mass, moving_size) = fixed.moments(), moving.moments()
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        turn = np.diag(signs)[list(order)]
        if (np.linalg.det(turn) < 0) != mirrored:
            continue
        for further in (np.eye(3), *(() if mirrored else _EIGHTHS)):
            matrix = np.eye(4)
            matrix[:3, :3] = moving_size / fixed_size * further @ turn
            matrix[:3, 3] = moving_mass - matrix[:3, :3] @ fixed_mass
            yield matrix


def _about(fixed: NDArray[np.float64], moving: NDArray[np.float64], scale: float) -> Affine:
    matrix = np.diag([scale, scale, scale, 1.0])
    matrix[:3, 3] = moving - scale * fixed
    return matrix


def _fit(fixed: _Level, moving: _Level, matrices: NDArray[np.float64]) -> Tensor:
    """(K,) correlations of all voxels under maps (K, 4, 4)."""
    return _correlation(_warped(fixed, moving, _theta(fixed, moving, matrices)), fixed.values)


def _theta(fixed: _Level, moving: _Level, matrices: NDArray[np.float64]) -> Tensor:
    """Turn maps of mm (K, 4, 4) into maps of -1..1 places."""
    return torch.from_numpy(np.linalg.inv(moving.to_mm) @ matrices @ fixed.to_mm)


def _optimised(
    levels: Sequence[tuple[_Level, _Level]], starts: NDArray[np.float64], steps: int
) -> NDArray[np.float64]:
    """Optimise starts (K, 4, 4), side by side and each for itself, from coarse to fine."""
    frame = _Frame.of(levels[-1][0])
    parameters = torch.zeros(len(starts), 3, 4, dtype=torch.float64)
    for number, (fixed, moving) in enumerate(levels):
        if steps and (number == 0 or fixed.size != levels[number - 1][0].size):
            parameters = _optimise(fixed, moving, starts, frame, parameters, steps, local=number > 0)
    return np.asarray(starts @ frame.matrices(parameters).numpy())


def _optimise(
    fixed: _Level,
    moving: _Level,
    starts: NDArray[np.float64],
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
    after = torch.from_numpy(np.linalg.inv(moving.to_mm) @ starts)
    before = torch.from_numpy(fixed.to_mm)
    for _ in range(steps):
        optimiser.zero_grad()
        warped = _warped(fixed, moving, after @ frame.matrices(parameters) @ before)
        fit = local_correlation(warped, target) if local else _correlation(warped, fixed.values).mean()
        # Of all starts' mean each gets its share: Adam's steps do not depend on a gradient's scale.
        (-len(starts) * fit).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return parameters.detach()


def _warped(fixed: _Level, moving: _Level, theta: Tensor) -> Tensor:
    """(K, 1, *S) the moving volume on the fixed one's grid, under maps (K, 4, 4) of -1..1 places."""
    count = len(theta)
    places = F.affine_grid(theta[:, :3].float(), [count, 1, *fixed.size], align_corners=True)
    return sample(moving.values.expand(count, -1, -1, -1, -1), places, outside="border")


def _correlation(values: Tensor, fixed: Tensor) -> Tensor:
    """(K,) Pearson's correlations of (K, 1, *S) with (1, 1, *S), all voxels; 0 where one is constant."""
    a, b = values.flatten(1), fixed.flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).clamp_min(1e-12).sqrt()
