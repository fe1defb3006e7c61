"""Smooth random fields in millimetres, the same for every slice of a patient.

White noise on a periodic lattice, interpolated by cubic B-splines. The lattice is tiny and the interpolation
separable, so a plane through it costs two small matrix products.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

Plane = NDArray[np.float32]

_B_SPLINE_VARIANCE = 151 / 315
"""Mean over all positions of the sum of the squared cubic B-spline weights."""


class SmoothNoise:
    """A field of zero mean and unit variance (over its lattice's ensemble), periodic in each axis.

    Args:
        seed: of the lattice.
        cells: lattice points per axis, at least 4.
        pitch: length of a cell per axis; structures are about two cells wide.
    """

    def __init__(
        self, seed: tuple[int, ...], cells: tuple[int, int, int], pitch: tuple[float, float, float]
    ) -> None:
        """Draw the lattice."""
        generator = np.random.default_rng(seed)
        lattice = generator.standard_normal(cells, dtype=np.float32)
        self._lattice = lattice / np.float32(_B_SPLINE_VARIANCE**1.5)
        self._pitch = pitch

    def plane(self, first: NDArray[np.float32], second: NDArray[np.float32], third: float) -> Plane:
        """Return the field on a grid.

        Args:
            first: (N,) positions along the first axis, in the unit of `pitch`.
            second: (M,) positions along the second axis.
            third: position along the third axis.

        Returns:
            (N, M) float32.
        """
        weights = _spline_matrix(np.array([third], np.float32), self._lattice.shape[2], self._pitch[2])[0]
        lattice = self._lattice @ weights  # (cells 1, cells 2)
        rows = _spline_matrix(first, lattice.shape[0], self._pitch[0])
        columns = _spline_matrix(second, lattice.shape[1], self._pitch[1])
        with _blas().limit(limits=1, user_api="blas"):
            return np.asarray(rows @ lattice @ columns.T, np.float32)


@lru_cache(maxsize=16)
def smooth_noise(
    seed: tuple[int, ...], cells: tuple[int, int, int], pitch: tuple[float, float, float]
) -> SmoothNoise:
    """Return the same field again for the same arguments, drawn once for the slices of a patient."""
    return SmoothNoise(seed, cells, pitch)


@cache
def _blas() -> ThreadpoolController:
    """Return what limits the threads of numpy: waiting for them made slices 6 times slower on busy cores.

    The limit is the process's: threads that make slices side by side would lift one another's.
    """
    return ThreadpoolController()


def _spline_matrix(positions: NDArray[np.float32], cells: int, pitch: float) -> NDArray[np.float32]:
    """Return (N, cells) cubic B-spline weights of a periodic lattice."""
    at = positions / np.float32(pitch)
    base = np.floor(at)
    t = at - base
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    ) / np.float32(6)
    index = (base.astype(np.int64)[:, None] + np.arange(-1, 3)) % cells
    matrix = np.zeros((len(positions), cells), np.float32)
    matrix[np.arange(len(positions))[:, None], index] = weights
    return matrix
