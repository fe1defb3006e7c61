"""What a label map says of the aortic arch: single or double, on which side, whether its ring closes.

The one room of evaluation that knows the vessels' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from threefold.topology import betti_numbers

Arch = Literal["single-left", "single-right", "double", "open-ring", "undetermined"]
Diagnosis = Literal["CoA", "RAA", "DAA", "undetermined"]
_DIAGNOSES: dict[Arch, Diagnosis] = {
    "single-left": "CoA",
    "single-right": "RAA",
    "double": "DAA",
    "open-ring": "DAA",
    "undetermined": "undetermined",
}


@dataclass(frozen=True)
class ArchFinding:
    """The arch of one label map.

    Attributes:
        arch: single-left, single-right, double, open-ring (a double arch with a gap) or undetermined.
        ring_closed: whether aorta and descending aorta alone, without the duct, form a ring.
    """

    arch: Arch
    ring_closed: bool

    @property
    def diagnosis(self) -> Diagnosis:
        """The diagnosis that the arch speaks for."""
        return _DIAGNOSES[self.arch]

    def agrees(self, classified: str) -> bool | None:
        """Whether the classifier's class is the diagnosis; None: the arch is undetermined."""
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
    """Return what a label map says of the aortic arch.

    Args:
        labels: (I, J, K) label map in RAS+, 0..len(names).
        names: of the structures of label 1, 2, ...; AO and DAO among them.
        spacing: mm of a voxel along each axis.
        trachea: mask on the same grid, where it is known.

    Raises:
        ValueError: AO or DAO is not among the names, or shapes differ.
    """
    if not knows_arch(names):
        raise ValueError(f"the arch needs structures AO and DAO, found {', '.join(names)}")
    aorta = np.isin(labels, [names.index(name) + 1 for name in ("AO", "DAO")])
    ring = bool(betti_numbers(aorta, 1)[0, 1])
    return ArchFinding("double" if ring else "undetermined", ring)
