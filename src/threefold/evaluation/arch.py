"""What a label map says of the aortic arch: single or double, on which side, whether its ring closes.

The one room of evaluation that knows the vessels' names: AO (ascending aorta and arch; in a double arch both
arches), DAO (descending aorta), LPA, RPA and PVs (pulmonary arteries and veins).

The rule, on label maps in RAS+ (voxel axes point to the right, to the front and to the head):

  double        AO and DAO alone wind around a line from feet to head that they don't touch: the trachea's,
                or one through a hole that both leave free as seen along the body, up to 27 degrees aslant
  open-ring     they do where gaps of up to 3 mm are bridged: a thin second arch, broken
  single-left   no ring, and the arch passes the trachea on its left; single-right: on its right
  undetermined  AO or DAO is absent, the arch passes within 1 mm of the midline, or nothing shows the midline

The arterial duct and the pulmonary arteries are left out on purpose: a fetal duct closes a loop between aorta
and pulmonary trunk in every case, through the heart, and with a right arch, left duct and aberrant subclavian
artery that loop goes around the trachea. It is a vascular ring, but no double arch.

Where no mask of the trachea is given, the midline stands for it: halfway between the outer ends of the left
and the right pulmonary artery, and between those of the pulmonary veins (the mean where both are known). The
arch's place is that of AO and DAO in the frontal plane halfway between ascending and descending aorta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.winding import Line, holes_along_body, mask_line, widened, winds_around
from threefold.topology import as_label_map

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
_GAP_MM = 3.0
_MIDLINE_MM = 1.0
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
    windpipe = None if trachea is None or not trachea.any() else mask_line(trachea, vessels.mm)
    for arch, gap in (("double", 0.0), ("open-ring", _GAP_MM)):
        if _has_ring(vessels.mask("AO", "DAO"), vessels.mm, gap, windpipe):
            return ArchFinding(arch, arch == "double", None)  # type: ignore[arg-type]
    place = _passing_place(ascending, descending)
    middle = windpipe.at(place[2])[0] if windpipe is not None else vessels.midline()
    if middle is None:
        return ArchFinding("undetermined", False, None)
    offset = float(place[0] - middle)
    if abs(offset) < _MIDLINE_MM:
        return ArchFinding("undetermined", False, offset)
    return ArchFinding("single-right" if offset > 0 else "single-left", False, offset)


class _Vessels:
    """The vessels of a label map by name, in mm."""

    def __init__(self, labels: NDArray[np.generic], names: Sequence[str], mm: Points) -> None:
        self.labels, self.mm = labels, mm
        self.label = {name: number for number, name in enumerate(names, start=1)}

    def mask(self, *names: str) -> NDArray[np.bool_]:
        return np.isin(self.labels, [self.label[name] for name in names])

    def points(self, name: str) -> Points:
        """Return the centres (mm) of a vessel's voxels: (n, 3); none where the vessel is not known."""
        return np.argwhere(self.labels == self.label.get(name, -1)) * self.mm

    def midline(self) -> float | None:
        """Return where the midline is (mm along the first axis)."""
        sides = []
        left, right, veins = (self.points(name)[:, 0] for name in ("LPA", "RPA", "PVs"))
        if len(left) and len(right):
            sides.append(np.percentile(left, 2) + np.percentile(right, 98))
        if len(veins):
            sides.append(np.percentile(veins, 2) + np.percentile(veins, 98))
        return float(np.mean(sides) / 2) if sides else None


def _has_ring(mask: NDArray[np.bool_], mm: Points, gap: float, windpipe: Line | None) -> bool:
    """Whether a mask, with gaps bridged, winds around the windpipe or around a hole along the body."""
    bridged, origin = widened(mask, mm, gap / 2)
    if windpipe is not None:
        line = windpipe.moved(-origin)
        if line.is_clear_of(bridged, mm):
            return winds_around(bridged, mm, line)
    return any(winds_around(bridged, mm, line) for line in holes_along_body(bridged, mm))


def _passing_place(aorta: Points, descending: Points) -> Points:
    """Return where (mm) the arch passes the frontal plane halfway between ascending and descending aorta."""
    lowest = np.quantile(aorta[:, 2], _BESIDE_ARCH)
    highest = np.quantile(descending[:, 2], 1 - _BESIDE_ARCH)
    front = aorta[aorta[:, 2] <= lowest][:, 1].mean()
    back = descending[descending[:, 2] >= highest][:, 1].mean()
    both = np.concatenate([aorta, descending])
    away = np.abs(both[:, 1] - (front + back) / 2)
    place: Points = both[away <= away.min() + 1.0].mean(axis=0)
    return place
