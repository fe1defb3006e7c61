"""Image: an array and where its voxels lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Image:
    """A 2D slice or a 3D volume as its file stores it.

    Attributes:
        array: (I, J) or (I, J, K) voxels, in the file's own axis order. HU for CT.
        affine: (4, 4) from voxel indices (i, j, k, 1) to RAS+ millimetres. A slice keeps the third column
            (its thickness direction).
        source: the file or folder it was read from.
        notes: what reading had to do to it (for example: resampled from uneven slices), for the record.
    """

    array: NDArray[np.generic]
    affine: NDArray[np.float64]
    source: Path
    notes: tuple[str, ...] = ()

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres per voxel along each axis of the array."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, : self.array.ndim], axis=0))
