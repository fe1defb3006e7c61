"""The vessels of a fetal heart as tubes around curves, and what lies around them; mm in RAS+.

The first axis grows to the patient's right, the second to the front, the third to the head; the origin is
near the middle of the arch. The curves go through the points below (mean shape, 32 weeks), by a spline.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from threefold.phantoms.fetal_parameters import Anatomy
from threefold.phantoms.fetal_protocol import STRUCTURES

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Tube:
    """A stretch of a vessel.

    Attributes:
        structure: name of the vessel.
        points: (N, 3) mm, close together.
        radii: (N,) mm.
        free_end: whether it ends (at its last point) in tissue, where an annotator may stop early.
    """

    structure: str
    points: Points
    radii: NDArray[np.float64]
    free_end: bool = False


@dataclass(frozen=True)
class Ellipsoid:
    """A body part: centre and half axes, mm."""

    centre: Points
    axes: tuple[float, float, float]


@dataclass(frozen=True)
class Surroundings:
    """What lies around the vessels."""

    airways: tuple[Tube, ...]
    spine: Tube
    heart: Ellipsoid
    chambers: tuple[Ellipsoid, ...]
    thymus: Ellipsoid
    lungs: tuple[Ellipsoid, Ellipsoid]
    body: Ellipsoid


RADII = {
    "SVC": 1.5,
    "LPA": 1.15,
    "RPA": 1.15,
    "AO": 1.75,
    "AD": 1.35,
    "DAO": 1.7,
    "MPA": 1.95,
    "LSA": 0.85,
    "BCA": 0.95,
    "LCCA": 0.8,
    "PVs": 0.85,
}
"""mm, of the mean patient."""

_P = tuple[float, float, float]
# Points of each curve. The first point of a branch lies inside the vessel that it leaves.
_TRUNK: tuple[_P, ...] = ((-4, 10, -9), (-5.4, 9.2, -4), (-5.6, 6.6, -0.8), (-4.8, 3.4, 0.1))
_SVC: tuple[_P, ...] = ((10.8, 5, 17), (10.6, 5.2, 8), (10, 5, 0), (8.2, 4.4, -7.5))
_LPA: tuple[_P, ...] = ((-4.8, 3.4, 0.1), (-9, 0.8, -0.8), (-15, -3, -1.8))
_RPA: tuple[_P, ...] = ((-4.8, 3.4, 0.1), (-1.6, 0.2, -2.2), (4, -0.6, -3.2), (14, -2.5, -3.2))
_VEINS: tuple[tuple[_P, ...], ...] = (
    ((-1.5, -2.2, -10.5), (-7, -3.4, -9.6), (-14.5, -5.5, -8)),
    ((-1.5, -2.2, -10.5), (-7, -3.6, -12), (-14, -6, -14.5)),
    ((-1.5, -2.2, -10.5), (5, -3.6, -10), (13.5, -5.5, -8.4)),
    ((-1.5, -2.2, -10.5), (5, -3.8, -12), (13, -6, -14.5)),
)
_Curves = Mapping[str, Sequence[Sequence[_P]]]
_LEFT_ARCH: _Curves = {
    "AO": (
        ((1.5, 5, -9), (2.2, 5, 0), (1.2, 4.2, 6), (-3.2, 0.4, 8.6), (-6.2, -4.6, 6.2), (-6.6, -8.2, 1.2)),
    ),
    "AD": (((-4.8, 3.4, 0.1), (-7.2, 0.2, 1.6), (-7.6, -4.2, 1.4), (-6.6, -8.2, -0.6)),),
    "DAO": (((-6.6, -8.2, 1.0), (-6.4, -9.4, -2.5), (-5.2, -10.4, -12), (-4, -11, -27)),),
    "BCA": (((0.4, 3.6, 7), (3.6, 2, 11.5), (5.8, -0.4, 18)),),
    "LCCA": (((-3.2, 0.4, 8.8), (-4, 1, 13), (-4.4, 1, 19)),),
    "LSA": (((-5.9, -4, 6.8), (-7.4, -4.4, 11), (-12, -4.6, 16.5)),),
}
_RIGHT_ARCH: _Curves = {
    "AO": (((1.5, 5, -9), (2.6, 5, 0), (4.4, 3, 6), (6.4, -1.6, 8.2), (6.2, -6.4, 5.6), (4.4, -9.6, 1)),),
    "AD": (((-4.8, 3.4, 0.1), (-7, -0.6, 1.2), (-6, -6, 0.8), (-1.6, -9.8, -0.4), (3.4, -10.4, -1.4)),),
    "DAO": (((4.4, -9.6, 0.8), (3.8, -10.4, -3), (1.6, -10.8, -13), (-1, -11, -27)),),
    "BCA": (((6.2, -1, 8.4), (6.6, -1.2, 13), (7, -1.6, 18.5)),),
    "LCCA": (((3.4, 3.8, 4.6), (-0.6, 4, 9), (-4, 2, 18.5)),),
    "LSA": (((4.2, -9.8, 1.2), (-0.6, -9.8, 4.2), (-5.6, -7.4, 8), (-11.5, -5, 16.5)),),
}
_DOUBLE_ARCH: _Curves = {
    "AO": (
        # the right arch with the ascending aorta, then the left one
        ((1.5, 5, -9), (1.6, 5, 0), (3.2, 3.6, 4.6), (6, -1.4, 7.4), (5.4, -6.4, 5), (1.4, -9.8, 0.8)),
        ((1.6, 4.9, 1), (-1.4, 4, 4.6), (-5.4, -0.8, 7), (-5.8, -5.8, 5.2), (-1.4, -9.6, 1)),
    ),
    "AD": (((-4.8, 3.4, 0.1), (-8, -0.6, 1), (-7.6, -5.6, -0.6), (-2.4, -10, -2.4)),),
    "DAO": (((0, -9.9, 1), (-0.6, -10.4, -3), (-1.4, -10.8, -13), (-2, -11, -27)),),
    "BCA": (((5.8, -1, 7.8), (6.4, -1, 12.5), (7, -1.6, 18.5)),),
    "LCCA": (((-4.4, 0.6, 6.8), (-4.4, 1.2, 12), (-4.4, 1.4, 18.5)),),
    "LSA": (((-5.8, -4.6, 6.2), (-7.6, -5, 10.5), (-12, -4.8, 16)),),
}
_ARCHES = {"CoA": _LEFT_ARCH, "RAA": _RIGHT_ARCH, "DAA": _DOUBLE_ARCH}
_TRACHEA: tuple[_P, ...] = ((0.2, -3.6, 26), (0, -4, 10), (0, -4.6, 1.5))
_BRONCHI: tuple[tuple[_P, ...], ...] = (
    ((0, -4.6, 1.5), (-4.5, -5.6, -3.8), (-11, -6.6, -6)),
    ((0, -4.6, 1.5), (4.5, -5.8, -4), (10.5, -6.8, -6.4)),
)
_SPINE: tuple[_P, ...] = ((0, -18, 27), (0, -18.5, 0), (0, -18.5, -28))
_STEP = 0.2  # mm between the points of a tube
_FREE_ENDS = ("SVC", "LPA", "RPA", "LSA", "BCA", "LCCA", "PVs")


def vessels(anatomy: Anatomy, vessel_scale: float) -> tuple[Tube, ...]:
    """Return the tubes of all 11 vessels of a patient."""
    return tuple(_vessels(anatomy, vessel_scale))


def _vessels(anatomy: Anatomy, vessel_scale: float) -> Iterator[Tube]:
    curves: _Curves = {
        "SVC": (_SVC,),
        "LPA": (_LPA,),
        "RPA": (_RPA,),
        "MPA": (_TRUNK,),
        "PVs": _VEINS,
        **_ARCHES[anatomy.diagnosis],
    }
    for index, name in enumerate(STRUCTURES):
        for branch, curve in enumerate(curves[name]):
            points = _placed(curve, anatomy)
            radius = RADII[name] * anatomy.radii[index] * vessel_scale * anatomy.scale
            radii = radius * _profile(name, branch, len(points), anatomy)
            yield Tube(name, points, radii, free_end=name in _FREE_ENDS)


def _profile(name: str, branch: int, count: int, anatomy: Anatomy) -> NDArray[np.float64]:
    """Return the radius along a tube, relative to its vessel's."""
    along = np.linspace(0, 1, count)
    if name == "AO":
        # The arch tapers towards its end; a double arch's two are each thinner than one.
        taper = 1 - 0.22 * np.clip((along - 0.45) / 0.4, 0, 1)
        if anatomy.diagnosis == "CoA":
            near = np.exp(-(((along - 0.9) / 0.07) ** 2))
            taper = taper * (1 - (1 - anatomy.narrowing) * near)
        if anatomy.diagnosis == "DAA":
            beyond = np.clip((along - 0.4) / 0.1, 0, 1) if branch == 0 else np.ones(count)
            taper = taper * (1 - 0.2 * beyond) * (1 if branch == 0 else anatomy.second_arch)
        return np.asarray(taper)
    if name in ("LPA", "RPA", "PVs", "LSA", "BCA", "LCCA"):
        return 1 - 0.2 * along
    return np.ones(count)


def surroundings(anatomy: Anatomy) -> Surroundings:
    """Return what lies around a patient's vessels."""
    scale = anatomy.scale

    def ellipsoid(centre: _P, axes: _P) -> Ellipsoid:
        return Ellipsoid(
            deform(np.array([centre], np.float64), anatomy)[0],
            (axes[0] * scale, axes[1] * scale, axes[2] * scale),
        )

    def tube(name: str, curve: Sequence[_P], radius: float) -> Tube:
        points = _placed(curve, anatomy)
        return Tube(name, points, np.full(len(points), radius * scale))

    return Surroundings(
        airways=(
            tube("trachea", _TRACHEA, 1.5),
            *(tube("trachea", bronchus, 1.0) for bronchus in _BRONCHI),
        ),
        spine=tube("spine", _SPINE, 4.2),
        heart=ellipsoid((-4, 5, -18), (12, 10, 11)),
        chambers=(
            ellipsoid((2.5, 8, -19), (4.5, 4, 6)),
            ellipsoid((-9, 4, -20), (4.2, 4, 6)),
            ellipsoid((6, 1.5, -14), (3.6, 3.2, 3.6)),
            ellipsoid((-2, -0.5, -13.5), (4.2, 2.6, 3.2)),
        ),
        thymus=ellipsoid((0, 12, 6), (8, 3.2, 8)),
        lungs=(ellipsoid((-19, -5, -8), (10, 14, 20)), ellipsoid((19, -5, -8), (10, 14, 20))),
        body=ellipsoid((0, -2, -6), (34, 25, 60)),
    )


def deform(points: Points, anatomy: Anatomy) -> Points:
    """Move points of the mean shape, (N, 3) mm, to where a patient has them."""
    moved = points.copy()
    for wave in anatomy.waves:
        moved += np.sin(points @ np.array(wave.frequency) + wave.phase)[:, None] * np.array(wave.amplitude)
    turned: Points = moved * anatomy.scale @ _rotation(anatomy.rotation).T
    turned += np.array(anatomy.shift)
    return turned


def _placed(curve: Sequence[_P], anatomy: Anatomy) -> Points:
    """Return a patient's curve through control points of the mean shape."""
    return deform(_along(tuple(curve)), anatomy)


@cache
def _along(curve: tuple[_P, ...]) -> Points:
    """Return points of a curve through control points, `_STEP` apart."""
    from scipy.interpolate import CubicSpline

    control = np.array(curve, np.float64)
    lengths = np.concatenate([[0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(control, axis=0), axis=1)))])
    spline = CubicSpline(lengths, control, bc_type="natural")
    fine = spline(np.linspace(0, lengths[-1], 200))
    travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    at = np.interp(
        np.linspace(0, travelled[-1], 1 + math.ceil(travelled[-1] / _STEP)),
        travelled,
        np.linspace(0, lengths[-1], 200),
    )
    return np.asarray(spline(at), np.float64)


def _rotation(degrees: tuple[float, float, float]) -> Points:
    matrix = np.eye(3)
    for angle, (first, second) in zip(np.radians(degrees), ((1, 2), (0, 2), (0, 1)), strict=True):
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
