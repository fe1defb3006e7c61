"""Where a NIfTI says that its voxels lie: sform, qform, their codes and the unit of length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.geometry import Affine, describe_difference, spacing_of

_KNOWN_CODES = range(1, 6)
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_SPACING_TOLERANCE = 0.01


@dataclass(frozen=True)
class NiftiPlace:
    """How a NIfTI states where its voxels lie, as it is stored, so that a mask can state the same.

    Attributes:
        affine: (4, 4) voxel indices to RAS+ mm, as taken from what follows.
        sform: (3, 4) voxel indices to RAS+, in the file's unit; counts where its code is not 0.
        quatern, qoffset: (3,) rotation (b, c, d of a unit quaternion) and position of the qform.
        pixdim: (8,) qfac, then the voxel's sides in the file's unit.
        sform_code, qform_code: as stored.
        unit: of length: 0 not stated, 1 metre, 2 millimetre, 3 micrometre.
        shape: of the grid, (I, J, K).
    """

    affine: Affine
    sform: NDArray[np.float64]
    quatern: NDArray[np.float64]
    qoffset: NDArray[np.float64]
    pixdim: NDArray[np.float64]
    sform_code: int
    qform_code: int
    unit: int
    shape: tuple[int, int, int]

    @property
    def has_sform(self) -> bool:
        """Whether the sform counts; a code that the standard does not know is 0, as nibabel takes it."""
        return self.sform_code in _KNOWN_CODES

    @property
    def has_qform(self) -> bool:
        """Whether the qform counts."""
        return self.qform_code in _KNOWN_CODES

    @property
    def qform(self) -> Affine:
        """(4, 4) of quaternion, qoffset and pixdim, in the file's unit; NaN where they are no rotation."""
        affine = np.eye(4)
        affine[:3, :3] = _rotation(self.quatern) * _sides(self.pixdim)
        affine[:3, 2] *= -1 if self.pixdim[0] < 0 else 1
        affine[:3, 3] = self.qoffset
        return affine

    def of_grid(self, affine: Affine) -> NiftiPlace | None:
        """Return the place of a grid that is this one moved by whole voxels, for example one of its slices.

        Args:
            affine: (4, 4) of the other grid, in RAS+ mm.

        Returns:
            None where the axes differ, or where this place has no words for it: codes of 0 and moved, or
            an sform without thickness.
        """
        move = np.linalg.inv(self.affine) @ affine
        shift = np.rint(move[:3, 3])
        if not np.allclose(move[:3], np.column_stack([np.eye(3), shift]), atol=1e-3):
            return None
        if self.has_sform and not _invertible(self.sform[:, :3]):
            return None
        if shift.any() and not (self.has_sform or self.has_qform):
            return None
        sform = self.sform.copy()
        sform[:, 3] += sform[:, :3] @ shift
        with np.errstate(invalid="ignore"):
            qoffset = self.qoffset + self.qform[:3, :3] @ shift if shift.any() else self.qoffset
        return replace(self, affine=affine, sform=sform, qoffset=qoffset)


def read_place(fields: Any, dimensions: int, path: Path) -> tuple[NiftiPlace, tuple[str, ...]]:
    """Return where the voxels lie, and notes on what is not stated or contradicts itself.

    The sform counts before the qform, and a file with neither is centred and turned to the left, all as
    nibabel takes it; lengths become millimetres.

    Args:
        fields: of a NIfTI header: dim, pixdim, codes, forms, xyzt_units.
        dimensions: of the image, 2 or 3.
        path: of the file, for errors.

    Raises:
        ImageError: what is stated is no grid.
    """
    notes: list[str] = []
    unit = int(fields["xyzt_units"]) & 7
    if unit not in _MM_PER_UNIT:
        unit = 0
    scale = np.diag([*[_MM_PER_UNIT[unit]] * 3, 1.0])
    axes, *sizes = (int(n) for n in fields["dim"][:4])
    place = NiftiPlace(
        np.eye(4),
        fields["srow"].astype(np.float64),
        fields["quatern"].astype(np.float64),
        fields["qoffset"].astype(np.float64),
        fields["pixdim"].astype(np.float64),
        int(fields["sform_code"]),
        int(fields["qform_code"]),
        unit,
        (sizes[0], sizes[1], sizes[2] if axes > 2 else 1),
    )
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        if place.has_sform:
            affine = np.vstack([place.sform, [0, 0, 0, 1]])
        else:
            _refuse_sides(path, place, dimensions)
            affine = place.qform if place.has_qform else _centred(place)
        affine = scale @ affine
        if dimensions == 2 and not affine[:3, 2].any():  # a slice need not say how thick it is
            normal = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
        if not (np.isfinite(affine).all() and np.abs(affine).max() < 1e9 and _invertible(affine[:3, :3])):
            raise ImageError(f"{path}: its affine is not usable: {affine[:3].tolist()}. Fix sform or qform.")
        notes += _notes(place, affine, scale, dimensions)
    return replace(place, affine=affine), tuple(notes)


def _notes(place: NiftiPlace, affine: Affine, scale: Affine, dimensions: int) -> list[str]:
    notes = []
    if place.unit == 0:
        notes.append("unit of length not stated (xyzt_units): taken as mm")
    elif place.unit != 2:
        notes.append(f"lengths are stated in {_UNIT_NAMES[place.unit]}: converted to mm")
    if not place.has_sform and not place.has_qform:
        notes.append("no orientation in the file (sform and qform codes are 0): taken as LAS, centred")
    if not place.has_sform:
        return notes
    if place.has_qform:
        qform = scale @ place.qform
        if not np.isfinite(qform).all():
            difference: str | None = "the qform is no rotation"
        else:
            shape = place.shape[:dimensions]
            difference = describe_difference(shape, affine, shape, qform)
        if difference is not None:
            notes.append(
                "sform and qform place the voxels differently; the sform is taken, other tools may take the "
                f"qform. By it: {difference}"
            )
        return notes
    sides = _MM_PER_UNIT[place.unit] * place.pixdim[1 : dimensions + 1]
    stated = spacing_of(affine, dimensions)
    if not np.allclose(sides, stated, rtol=_SPACING_TOLERANCE):
        said = (" x ".join(f"{side:.4g}" for side in each) for each in (sides, stated))
        notes.append("pixdim says {} mm per voxel, the sform {}: the sform is taken".format(*said))
    return notes


def _refuse_sides(path: Path, place: NiftiPlace, dimensions: int) -> None:
    """Refuse voxel sides, where they count, that readers take differently or that are no lengths."""
    sides = place.pixdim[1 : dimensions + 1]
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        raise ImageError(
            f"{path}: its voxels' sides (pixdim) are {sides.tolist()}, and without an sform its affine rests "
            "on them. Expected lengths above 0. Fix pixdim, or give the file an sform."
        )
    if place.has_qform and not (place.pixdim[0] >= 0 or place.pixdim[0] == -1):
        raise ImageError(
            f"{path}: pixdim[0] (qfac) is {place.pixdim[0]:g}; expected 1 or -1: it says whether the third "
            "axis is reversed, and readers differ over other values. Fix it, or give the file an sform."
        )


def _centred(place: NiftiPlace) -> Affine:
    sides = _sides(place.pixdim) * (-1, 1, 1)
    affine = np.diag([*sides, 1.0])
    affine[:3, 3] = -sides * (np.array(place.shape) - 1) / 2
    return affine


def _sides(pixdim: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the voxel's three sides; 1 for a third one that a slice does not state."""
    sides = pixdim[1:4].copy()
    sides[2] = sides[2] if sides[2] > 0 else 1.0
    return sides


def _invertible(matrix: NDArray[np.float64]) -> bool:
    lengths = np.linalg.norm(matrix, axis=0)
    if not (np.isfinite(lengths).all() and (lengths > 1e-6).all() and (lengths < 1e6).all()):
        return False
    return bool(abs(np.linalg.det(matrix / lengths)) > 1e-3)


def _rotation(bcd: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix of the unit quaternion (a, b, c, d) with a >= 0 (nifti1.h, METHOD 2); NaN if none."""
    b, c, d = bcd
    rest = 1.0 - (b * b + c * c + d * d)
    if not rest > -1e-5:  # beyond the rounding of float32
        return np.full((3, 3), np.nan)
    a = np.sqrt(max(0.0, rest))
    norm = a * a + b * b + c * c + d * d
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    return np.asarray(rotation / norm)
