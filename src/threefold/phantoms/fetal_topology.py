"""What the true structures of a fetal-heart phantom must be like, by diagnosis."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from threefold.phantoms.fetal_protocol import STRUCTURES, Diagnosis
from threefold.topology import betti_numbers, contact_counts

_ALWAYS = {("AO", "DAO"), ("AD", "DAO"), ("AD", "MPA"), ("LPA", "MPA"), ("RPA", "MPA"), ("BCA", "AO")}
_REQUIRED: dict[Diagnosis, set[tuple[str, str]]] = {
    "CoA": _ALWAYS | {("LCCA", "AO"), ("LSA", "AO")},
    "RAA": _ALWAYS | {("LCCA", "AO"), ("LSA", "DAO")},  # the aberrant artery leaves the descending aorta
    "DAA": _ALWAYS | {("LCCA", "AO"), ("LSA", "AO")},
}
# Where three vessels meet, each two of them may touch.
_MAY = {
    ("LPA", "AD"),
    ("RPA", "AD"),
    ("LPA", "RPA"),
    ("AD", "AO"),
    ("LCCA", "BCA"),
    ("LSA", "AO"),
    ("LSA", "AD"),
}
_MAY_NOT_MEET = "touch, and may not"


def violations(structures: NDArray[np.uint8], diagnosis: Diagnosis) -> list[str]:
    """Return what is wrong with a patient's structures, in sentences; empty where nothing is.

    Each vessel is one piece without cavity; the vessels that join do touch, and no others; the union of AO
    and DAO has a tunnel (the ring around the trachea) in DAA and none in CoA and RAA.

    Args:
        structures: (I, J, K) labels 1..11.
        diagnosis: of the patient.
    """
    count = len(STRUCTURES)
    betti = betti_numbers(structures, count)
    found = [
        f"{name} has {b0} pieces and {b2} cavities"
        for name, (b0, _, b2) in zip(STRUCTURES, betti.tolist(), strict=True)
        if b0 != 1 or b2
    ]
    contacts = contact_counts(structures, count) > 0
    touching = {frozenset((STRUCTURES[i], STRUCTURES[j])) for i, j in np.argwhere(contacts).tolist()}
    required = {frozenset(pair) for pair in _REQUIRED[diagnosis]}
    allowed = required | {frozenset(pair) for pair in _MAY}
    found += [f"{'-'.join(sorted(pair))} do not touch" for pair in sorted(required - touching, key=sorted)]
    found += [f"{'-'.join(sorted(pair))} {_MAY_NOT_MEET}" for pair in sorted(touching - allowed, key=sorted)]
    aorta = np.isin(structures, [1 + STRUCTURES.index("AO"), 1 + STRUCTURES.index("DAO")])
    tunnels = int(betti_numbers(aorta, 1)[0, 1])
    expected = 1 if diagnosis == "DAA" else 0
    if tunnels != expected:
        found.append(f"AO and DAO together have {tunnels} tunnels; expected {expected}")
    return found
