"""What a label map says of the aortic arch: single or double, on which side, whether its ring closes.

The one room of evaluation that knows the vessels' names: AO (ascending aorta and arch; in a double arch both
arches), DAO (descending aorta), LPA, RPA and PVs (pulmonary arteries and veins).

The rule, on label maps in RAS+ (voxel axes point to the right, to the front and to the head):

  double        AO and DAO alone wind around a line from feet to head that they don't touch: the trachea's,
                or one through a hole that both leave free as seen along the body
  open-ring     they do where gaps of up to 3 mm are bridged: a thin second arch, broken
  single-left   no ring, and the arch passes the trachea on its left; single-right: on its right
  undetermined  AO or DAO is absent, gaps wider than 3 mm part them, the arch passes within 1 mm of the
                midline, or nothing shows the midline

The arterial duct and the pulmonary arteries are left out on purpose: a fetal duct closes a loop between aorta
and pulmonary trunk in every case, through the heart, and with a right arch, left duct and aberrant subclavian
artery that loop goes around the trachea. It is a vascular ring, but no double arch.

Where no mask of the trachea is given, the midline stands for it: halfway between the outer ends of the left
and the right pulmonary artery, and between those of the pulmonary veins (the mean where both are known). The
arch's place is that of AO and DAO in the frontal plane halfway between ascending and descending aorta. Right,
front and head are the body's own: from the left ends to the right ones, and up along the descending aorta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.winding import Line, holes_along_body, mask_line, widened, winds_around
from threefold.topology import Labels, as_label_map, label_components

Arch = Literal["single-left", "single-right", "double", "open-ring", "undetermined"]
Diagnosis = Literal["CoA", "RAA", "DAA", "undetermined"]
Points = NDArray[np.float64]

_DIAGNOSES: dict[Arch, Diagnosis] = {
    "single-left": "CoA",
    "single-right": "RAA",
    "double": "DAA",
    "open-ring": "DAA",
    "undetermined": "undetermined",
}
# What counts as a ring: the widest gap (mm) that may be bridged.
_RINGS: dict[Arch, float] = {"double": 0.0, "open-ring": 3.0}
_MIDLINE_MM = 1.0
# Components of a vessel smaller than this share of its largest don't tell where it is.
_ISLAND = 0.1
# Vessels tell the body's axes if their ends are as far apart (mm), within 37 degrees of the volume's axes.
_LONG_ENOUGH_MM, _UPRIGHT = 5.0, 0.8
# Quantiles of the voxels from left to right between which the outer ends lie: without the outermost, islands.
_LEFT_ENDS, _RIGHT_ENDS = (0.02, 0.15), (0.85, 0.98)
# The share of AO, from below, that is ascending aorta; and of DAO, from above, that is beside the arch.
_BESIDE_ARCH = 1 / 3


@dataclass(frozen=True)
class ArchFinding:
    """The arch of one label map.

    Attributes:
        arch: what was found, by the rule of this module.
        ring_closed: whether the two arches' ring is closed; False too where there is none.
        offset_mm: how far to the right of the trachea (or of the midline that stands for it) the arch passes;
            negative: to the left. None for a ring, or where it is not known.
    """

    arch: Arch
    ring_closed: bool
    offset_mm: float | None

    @property
    def diagnosis(self) -> Diagnosis:
        """The diagnosis that the arch speaks for, among CoA (left arch), RAA and DAA.

        A left arch is no proof of a coarctation; among these three diagnoses it is the one that has it.
        """
        return _DIAGNOSES[self.arch]

    def agrees(self, classified: str) -> bool | None:
        """Whether the classifier's class is the diagnosis that the arch speaks for; None: undetermined."""
        return None if self.diagnosis == "undetermined" else self.diagnosis == classified


def knows_arch(names: Sequence[str]) -> bool:
    """Whether structures of these names have what `find_arch` needs."""
    return {"AO", "DAO"} <= set(names)


def find_arch(
    labels: NDArray[np.generic],
    names: Sequence[str],
    spacing: Sequence[float],
    *,
    trachea: NDArray[np.generic] | None = None,
) -> ArchFinding:
    """Return what a label map says of the aortic arch, by the rule of this module.

    Args:
        labels: (I, J, K) label map in RAS+, 0..len(names).
        names: of the structures of label 1, 2, ...; AO and DAO among them.
        spacing: mm of a voxel along each axis.
        trachea: mask on the same grid (not zero: inside), where it is known.

    Raises:
        ValueError: AO or DAO is not among the names, shapes differ, or the label map is refused.
    """
    if not knows_arch(names):
        raise ValueError(f"the arch needs structures AO and DAO, found {', '.join(names)}")
    if labels.ndim != 3 or (trachea is not None and trachea.shape != labels.shape):
        shapes = f"{labels.shape}" + ("" if trachea is None else f" and {trachea.shape}")
        raise ValueError(f"expected a label map (I, J, K) and a trachea of its shape, found {shapes}")
    vessels = _Vessels(as_label_map(labels, len(names)), names, np.asarray(spacing, np.float64))
    ascending, descending = vessels.points("AO"), vessels.points("DAO")
    if not len(ascending) or not len(descending):
        return ArchFinding("undetermined", False, None)
    frame = vessels.frame()
    windpipe = None if trachea is None or not trachea.any() else mask_line(trachea, vessels.mm)
    for arch, gap in _RINGS.items():
        if _has_ring(vessels.mask("AO", "DAO"), vessels.mm, gap, frame.up, windpipe):
            return ArchFinding(arch, gap == 0, None)
    place = None
    if _is_joined(vessels.mask("AO", "DAO"), vessels.mm, ascending, descending):
        place = _passing_place(ascending, descending, frame, float(vessels.mm.max()))
    middle = frame.middle
    if windpipe is not None and place is not None:
        middle = np.append(windpipe.at(float(place[2])), place[2])
    if place is None or middle is None:
        return ArchFinding("undetermined", False, None)
    offset = float((place - middle) @ frame.right)
    if abs(offset) < _MIDLINE_MM:
        return ArchFinding("undetermined", False, offset)
    return ArchFinding("single-right" if offset > 0 else "single-left", False, offset)


@dataclass(frozen=True)
class _Frame:
    """The body's own axes, orthogonal unit vectors in the volume's, and a point (mm) of its midline."""

    right: Points
    up: Points
    middle: Points | None

    @property
    def front(self) -> Points:
        return np.cross(self.up, self.right)


class _Vessels:
    """The vessels of a label map by name, in mm."""

    def __init__(self, labels: Labels, names: Sequence[str], mm: Points) -> None:
        self.labels, self.mm = labels, mm
        self.label = {name: number for number, name in enumerate(names, start=1)}
        self.components = label_components(labels)
        self.sizes = np.bincount(self.components.ravel())

    def mask(self, *names: str) -> NDArray[np.bool_]:
        return np.isin(self.labels, [self.label[name] for name in names])

    def points(self, name: str) -> Points:
        """Return the centres (mm) of a vessel's voxels, (n, 3), without islands; none where it is absent."""
        voxels = np.argwhere(self.labels == self.label.get(name, -1))
        sizes = self.sizes[self.components[tuple(voxels.T)]]
        kept: Points = voxels[sizes >= _ISLAND * sizes.max(initial=0)] * self.mm
        return kept

    def frame(self) -> _Frame:
        """Return the body's axes; the volume's own where no vessel shows them."""
        ends = []
        for left, right in (("LPA", "RPA"), ("PVs", "PVs")):
            if len(self.points(left)) and len(self.points(right)):
                ends.append(
                    (_part(self.points(left), 0, *_LEFT_ENDS), _part(self.points(right), 0, *_RIGHT_ENDS))
                )
        left_end, right_end = np.mean(ends, axis=0) if ends else np.zeros((2, 3))
        across = _direction(right_end - left_end, 0)
        descending = self.points("DAO")
        up = _direction(_part(descending, 2, 0.7, 1) - _part(descending, 2, 0, 0.3), 2)
        up = up - (up @ across) * across  # the descending aorta crosses to the middle on its way
        return _Frame(across, up / np.linalg.norm(up), (left_end + right_end) / 2 if ends else None)


def _direction(step: Points, axis: int) -> Points:
    """Return the direction of a step, or the axis where the step is too short or too far from it to tell."""
    length = np.linalg.norm(step)
    return step / length if step[axis] > max(_LONG_ENOUGH_MM, _UPRIGHT * length) else np.eye(3)[axis]


def _part(points: Points, axis: int, low: float, high: float) -> Points:
    """Return the mean of the points between two quantiles along an axis."""
    values = points[:, axis]
    start, end = np.quantile(values, low, method="lower"), np.quantile(values, high, method="higher")
    mean: Points = points[(values >= start) & (values <= end)].mean(axis=0)
    return mean


def _has_ring(mask: NDArray[np.bool_], mm: Points, gap: float, up: Points, windpipe: Line | None) -> bool:
    """Whether a mask, with gaps bridged, winds around the windpipe or around a hole along the body."""
    bridged, origin = widened(mask, mm, gap / 2)
    if windpipe is not None:
        line = windpipe.moved(-origin)
        if line.is_clear_of(bridged, mm):
            return winds_around(bridged, mm, line)
    return any(winds_around(bridged, mm, line) for line in holes_along_body(bridged, mm, up))


def _is_joined(mask: NDArray[np.bool_], mm: Points, aorta: Points, descending: Points) -> bool:
    """Whether ascending and descending aorta (mm) are in one piece of a mask, with gaps bridged."""
    bridged, origin = widened(mask, mm, _RINGS["open-ring"] / 2)
    pieces = label_components(bridged.astype(np.uint8))
    ends = [pieces[tuple(np.round((part - origin) / mm).astype(int).T)] for part in (aorta, descending)]
    return bool(np.bincount(ends[0]).argmax() == np.bincount(ends[1]).argmax())


def _passing_place(aorta: Points, descending: Points, frame: _Frame, voxel: float) -> Points | None:
    """Return where (mm) the arch passes the frontal plane halfway between ascending and descending aorta.

    None where nothing of them is within a voxel (mm) of that plane.
    """
    heights, heights_descending = aorta @ frame.up, descending @ frame.up
    ascending = aorta[heights <= np.quantile(heights, _BESIDE_ARCH)]
    beside = descending[heights_descending >= np.quantile(heights_descending, 1 - _BESIDE_ARCH)]
    halfway = (ascending.mean(axis=0) + beside.mean(axis=0)) @ frame.front / 2
    both = np.concatenate([aorta, descending])
    passing = both[np.abs(both @ frame.front - halfway) <= voxel]
    return passing.mean(axis=0) if len(passing) else None
