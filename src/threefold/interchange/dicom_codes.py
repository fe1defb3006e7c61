"""DICOM codes of masks, structures and classes: of cohort.yaml, else known ones, else the plain name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

    from threefold.cohorts.cohort import CodesSpec

Triple = tuple[str, str, str]
"""Value, coding scheme and meaning, as DICOM PS3.16 lists them."""

OWN = "99THREEFOLD"
"""Coding scheme of names that have no code: DICOM reserves those that begin with 99 for private use."""

_ABNORMAL: Triple = ("49755003", "SCT", "Morphologically Abnormal Structure")
_ANATOMY: Triple = ("91723000", "SCT", "Anatomical Structure")
_BRAIN: Triple = ("12738006", "SCT", "Brain")
_HEMATOMA: Triple = ("35566002", "SCT", "Hematoma")
_HAEMORRHAGE: Triple = ("50960005", "SCT", "Hemorrhage")


@dataclass(frozen=True)
class Coded:
    """What a segment shows.

    Attributes:
        category, kind: SegmentedPropertyCategory and SegmentedPropertyType (CID 7150 and below).
        anatomy: AnatomicRegion; None: not stated.
    """

    category: Triple
    kind: Triple
    anatomy: Triple | None = None


_LESIONS: Mapping[str, Coded] = {
    **dict.fromkeys(("hematoma", "haematoma"), Coded(_ABNORMAL, _HEMATOMA, _BRAIN)),
    **dict.fromkeys(("haemorrhage", "hemorrhage"), Coded(_ABNORMAL, _HAEMORRHAGE, _BRAIN)),
    "lesion": Coded(_ABNORMAL, ("52988006", "SCT", "Lesion")),
}
_VESSELS: Mapping[str, Triple] = {
    "svc": ("48345005", "SCT", "Superior vena cava"),
    "lpa": ("50408007", "SCT", "Left pulmonary artery"),
    "rpa": ("78480002", "SCT", "Right pulmonary artery"),
    "mpa": ("45341000", "SCT", "Pulmonary trunk"),
    "ao": ("57034009", "SCT", "Aortic arch"),
    "ad": ("4432005", "SCT", "Ductus arteriosus"),
    "dao": ("281130003", "SCT", "Descending aorta"),
    "lsa": ("85235006", "SCT", "Left subclavian artery"),
    "bca": ("12691009", "SCT", "Brachiocephalic trunk"),
    "lcca": ("113263003", "SCT", "Left common carotid artery"),
    "pvs": ("122972007", "SCT", "Pulmonary vein"),
}
"""The great vessels by the names that the aortic-arch system uses."""


def own(name: str) -> Triple:
    """Return a private code for a name without one."""
    return (name[:64], OWN, name[:64])


def coded_segment(name: str, codes: Mapping[str, CodesSpec]) -> Coded:
    """Return what a segment of this name shows: as `codes` of cohort.yaml says, else as it is known."""
    known = _LESIONS.get(name.lower())
    if known is None:
        known = Coded(_ANATOMY, _VESSELS.get(name.lower(), own(name)))
    given = codes.get(name)
    if given is None:
        return known
    kind = given.type or known.kind
    return Coded(given.category or known.category, kind, given.anatomy or known.anatomy)


def coded_class(name: str, codes: Mapping[str, CodesSpec]) -> Triple:
    """Return the code of a class: as cohort.yaml says, else a private one of its name."""
    given = codes.get(name)
    return own(name) if given is None or given.type is None else given.type


def concept(code: Triple) -> CodedConcept:
    """Return a code as highdicom takes it."""
    from highdicom.sr import CodedConcept

    return CodedConcept(*code)
