"""What a voxel means: what a file states and its voxels show, held against what was asked for.

Asked for is what a cohort.yaml says, or what a network was trained on. `objections` goes through the rules
below in both directions (CT numbers for a network of grey pictures, and the other way round). What is proven
wrong is refused; what can be neither proven nor ruled out is noted. `check` and prediction share these rules.

Nothing here reads a file, and nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from threefold.cohorts.cohort import CohortSpec
from threefold.cohorts.findings import Severity
from threefold.cohorts.trained_on import Range, TrainedOn
from threefold.cohorts.voxel_values import AIR, DENSE, HU_RANGE, Values, measure
from threefold.images.facts import Facts
from threefold.images.geometry import Image
from threefold.images.preprocessing import canonical_axes

_LEAST_AIR = 0.001
_NARROW = 10.0
"""No CT number image or 8-bit picture of anything spans less."""
NOISE = 0.1
"""Correlation of neighbouring voxels, at and below which an image shows nothing."""
FAR = 2.0
"""By this factor a length is far outside a range."""


@dataclass(frozen=True)
class Evidence:
    """An image beside what was asked for.

    Attributes:
        asked: the cohort.yaml that speaks of the image, or of the network's training.
        seen: what the network's training images were; None: not known, or no network is asked.
        vouched: a cohort.yaml names the image's modality and unit.
    """

    asked: CohortSpec
    seen: TrainedOn | None
    vouched: bool
    facts: Facts
    values: Values
    size: tuple[int, ...]
    spacing: tuple[float, ...]

    @property
    def unit(self) -> str:
        """The unit asked for."""
        return self.asked.intensity.unit


@dataclass(frozen=True)
class Objection:
    """What a rule has against an image.

    Attributes:
        severity: of the finding of an audit.
        refused: whether a prediction is refused; otherwise it is noted.
        summary: the same words for every image.
        found: at this image.
        claim: what of cohort.yaml it contradicts, as `key: value`; empty: nothing.
        advice: what to do.
    """

    severity: Severity
    refused: bool
    summary: str
    found: str
    claim: str = ""
    advice: str = ""

    def of_cohort(self) -> str:
        """Return the summary as an audit says it."""
        return f"{self.summary}, though cohort.yaml says {self.claim}" if self.claim else self.summary

    def of_network(self) -> str:
        """Return it in a sentence, as a prediction says it."""
        but = f", but the network was trained on {_TRAINED.get(self.claim, self.claim)}" if self.claim else ""
        found = f" ({self.found})" if self.found else ""
        return f"{self.summary}{found}{but}{f'. {self.advice}' if self.advice else ''}"


_TRAINED = {
    "unit: HU": "CT numbers (HU)",
    "unit: grey": "grey values (0 to 255)",
    "unit: arbitrary": "values without a unit",
    "modality: ct": "CT",
    "modality: mri": "MRI",
    "modality: photo": "photographs",
}

Rule = Callable[[Evidence], Objection | None]


def _note(summary: str, found: str = "", advice: str = "") -> Objection:
    return Objection("note", False, summary, found, advice=advice)


def objections(
    image: Image, asked: CohortSpec, seen: TrainedOn | None = None, *, vouched: bool
) -> Iterator[Objection]:
    """Yield what speaks against an image; nothing where all fits.

    Args:
        image: as read, with the facts of its file.
        asked: what its cohort.yaml says, or that of the cohort that the network was trained on.
        seen: what the network's training images were.
        vouched: a cohort.yaml speaks of the image; False: a bare file, which only its facts speak for.
    """
    axes, _ = canonical_axes(image.affine, image.array.ndim)
    evidence = Evidence(
        asked,
        seen,
        vouched,
        image.facts,
        measure(np.asarray(image.array)),
        tuple(image.array.shape[axis] for axis in axes),
        tuple(image.spacing[axis] for axis in axes),
    )
    for rule in RULES:
        objection = rule(evidence)
        if objection is not None:
            yield objection


# --- the rules -------------------------------------------------------------------------------------------

_CODES = {
    "ct": frozenset({"CT"}),
    "mri": frozenset({"MR"}),
    "photo": frozenset({"XC", "GM", "SM", "ES", "OP", "DMS"}),
}
"""DICOM Modality of each modality of cohort.yaml (PS3.3 C.7.3.1.1.1)."""
_SAY_NOTHING = frozenset({"OT"})


def _modality(e: Evidence) -> Objection | None:
    code = e.facts.modality
    if code is None or code in _SAY_NOTHING or code in _CODES[e.asked.modality]:
        return None
    if e.seen is not None and code in e.seen.modalities:
        return None
    return Objection(
        "refuse",
        True,
        "the file states another modality",
        f"Modality {code}",
        f"modality: {e.asked.modality}",
        "Give an image of that modality, or correct the file's header.",
    )


def _hounsfield_stated(e: Evidence) -> Objection | None:
    if e.facts.unit != "HU" or e.unit != "grey" or (e.facts.bits or 16) <= 8:
        return None
    return Objection(
        "refuse",
        True,
        "the file states CT numbers (HU)",
        _span(e.values),
        "unit: grey",
        "Export it through the window of those pictures, or use a network trained on HU.",
    )


def _picture(e: Evidence) -> Objection | None:
    if e.facts.format != "picture" or (e.seen is not None and "picture" in e.seen.formats):
        return None
    if e.unit == "HU" and not e.vouched:
        return Objection(
            "refuse",
            True,
            "a picture of grey values",
            _span(e.values),
            "unit: HU",
            "Give the DICOM or NIfTI file that it was made from.",
        )
    if e.seen is None:
        return None
    return _note("a picture, and no training image was one: its values may be cut to a window")


def _no_picture(e: Evidence) -> Objection | None:
    if e.seen is None or {*e.seen.formats} != {"picture"} or e.facts.format in ("picture", None):
        return None
    return _note(
        "not a picture, and all training images were: its values are taken as grey values as they are",
        _span(e.values),
    )


def _bits(e: Evidence) -> Objection | None:
    bits = e.facts.bits
    if e.seen is None or e.facts.format != "picture" or not e.seen.bits or str(bits) in e.seen.bits:
        return None
    return _note("stored with another number of bits than any training image", f"{bits}")


def _photometric(e: Evidence) -> Objection | None:
    if e.facts.photometric != "MONOCHROME1":
        return None
    if e.seen is not None and "MONOCHROME1" in e.seen.photometric:
        return None
    return _note("the file is shown inverted (MONOCHROME1), and no training image is known to be")


def _constant(e: Evidence) -> Objection | None:
    if e.values.low != e.values.high:
        return None
    advice = "It shows nothing; was the right file exported?"
    return Objection("warn", True, "the image is constant", _span(e.values), "", advice)


def _noise(e: Evidence) -> Objection | None:
    if not abs(e.values.correlation) <= NOISE:  # NaN: can't be told
        return None
    return Objection(
        "warn",
        True,
        "the image is noise: neighbouring voxels have nothing in common",
        f"correlation {e.values.correlation:.2f}",
        "",
        "It shows nothing; was the right file exported, with the right shape and type?",
    )


def _grey_range(e: Evidence) -> Objection | None:
    if e.unit != "grey" or (e.values.low >= 0 and e.values.high <= 255):
        return None
    return Objection(
        "refuse",
        True,
        "values outside 0 to 255",
        _span(e.values),
        "unit: grey",
        "Set intensity.unit to what the values are."
        if e.vouched
        else "Give the pictures that it was trained on the like of.",
    )


def _eight_bits(e: Evidence) -> Objection | None:
    v = e.values
    if e.unit != "HU" or not (v.low >= 0 and 200 < v.high <= 255 and v.whole):
        return None
    return Objection(
        "refuse",
        True,
        "looks like 8-bit grey values",
        _span(v),
        "unit: HU",
        "Set intensity.unit: grey, or import the files with the window that they were shown in.",
    )


def _narrow(e: Evidence) -> Objection | None:
    v = e.values
    if e.unit == "arbitrary" or v.low == v.high or v.high - v.low >= _NARROW:
        return None
    return Objection(
        "warn",
        True,
        "the values span less than those of any tissue",
        _span(v),
        f"unit: {e.unit}",
        "Were they normalised? Give the image with its own values.",
    )


def _stored(e: Evidence) -> Objection | None:
    """CT numbers without air, of which most would be bone; or soft tissue where scanners store it."""
    v = e.values
    if e.unit != "HU" or v.air >= _LEAST_AIR:
        return None
    mostly_bone = v.p75 > DENSE and not (e.seen is not None and e.seen.intensities.p75[1] > DENSE)
    shifted = v.dense > 0.02 and v.offset > 0.5 * v.dense
    if not (mostly_bone or shifted):
        return None
    return Objection(
        "refuse",
        True,
        "looks like stored values that were not rescaled: no air, and as much bone as soft tissue",
        f"{_span(v)}; three quarters below {v.p75:g}",
        "unit: HU",
        "Apply the rescale slope and intercept (often 1 and -1024), or convert the DICOM series again.",
    )


def _impossible(e: Evidence) -> Objection | None:
    v = e.values
    if e.unit != "HU" or (v.low >= HU_RANGE[0] and v.high <= HU_RANGE[1]):
        return None
    return Objection(
        "warn",
        v.p99 > HU_RANGE[1],
        f"values outside what CT can give ({HU_RANGE[0]:g} to {HU_RANGE[1]:g} HU)",
        _span(v),
        "",
        "Padding outside the field of view is harmless under a window; a wrong rescale slope or intercept "
        "is not.",
    )


def _unproven(e: Evidence) -> Objection | None:
    if e.unit != "HU" or e.facts.format != "dicom" or e.facts.unit == "HU" or e.facts.modality != "CT":
        return None
    return Objection(
        "warn",
        False,
        "the file does not prove CT numbers (no rescale to HU): its values are taken as HU",
        _span(e.values),
    )


def _no_air(e: Evidence) -> Objection | None:
    v = e.values
    if e.unit != "HU" or v.air > 0 or v.low == v.high:
        return None
    if _eight_bits(e) or _narrow(e) or _stored(e) or _impossible(e):  # which say more
        return None
    if e.seen is not None and e.seen.intensities.air[0] == 0 and _within(v.high, e.seen.intensities.high):
        return None  # the training images were cut alike
    return _note(
        "no air: the image was cut to a window, or its values are not HU",
        _span(v),
        "Compare it only with images in the same window.",
    )


def _like_hounsfield(e: Evidence) -> Objection | None:
    v = e.values
    if e.unit != "arbitrary" or e.asked.modality != "mri" or e.facts.unit == "HU":
        return None
    if v.high <= 0 or not (v.air > 0.25 or (v.air > 0.05 and -1100 <= v.p1 <= -900)):
        return None
    if e.seen is not None and e.seen.intensities.low[0] < AIR:
        return None
    return Objection(
        "warn",
        True,
        "looks like CT numbers: air at -1000",
        _span(v),
        "modality: mri",
        "Give the MR image.",
    )


def _intensity_far(e: Evidence) -> Objection | None:
    """Values far from those of any training image; where each image is scaled by itself, only by a factor."""
    if e.seen is None:
        return None
    v, seen = e.values, e.seen.intensities
    scaled = e.unit == "arbitrary" and e.asked.intensity.window is None
    width = (seen.p99[1] - seen.p1[0]) * (10 if scaled else 1) or 1.0
    for name, value, known in (("p1", v.p1, seen.p1), ("p50", v.p50, seen.p50), ("p99", v.p99, seen.p99)):
        if not known[0] - width <= value <= known[1] + width:
            return _note(
                "values far outside those of the training images",
                f"percentile {name[1:]} is {value:g}, there {known[0]:g} to {known[1]:g}",
            )
    return None


def _spacing_far(e: Evidence) -> Objection | None:
    if e.seen is None or e.seen.spacing_mm is None:
        return None
    if not e.facts.spacing_stated:
        return _note("states no spacing, and the training images did: lengths are in pixels")
    return _far_lengths(
        "voxels far from the spacing of the training images", e.spacing, e.seen.spacing_mm, "mm"
    )


def _size_far(e: Evidence) -> Objection | None:
    if e.seen is None:
        return None
    if e.seen.extent_mm is None or not e.facts.spacing_stated:
        return _far_lengths("a size far from the training images'", e.size, e.seen.size, "voxels")
    extent = tuple(n * mm for n, mm in zip(e.size, e.spacing, strict=True))
    return _far_lengths("a field of view far from the training images'", extent, e.seen.extent_mm, "mm")


def _thickness_far(e: Evidence) -> Objection | None:
    if e.seen is None or e.seen.thickness_mm is None or e.facts.slice_thickness is None:
        return None
    summary = "a slice thickness far from the training images'"
    return _far_lengths(summary, (e.facts.slice_thickness,), (e.seen.thickness_mm,), "mm")


def _far_lengths(
    summary: str, found: tuple[float, ...], known: tuple[Range, ...], unit: str
) -> Objection | None:
    if len(found) != len(known):
        return None
    far = [not low / FAR <= value <= high * FAR for value, (low, high) in zip(found, known, strict=True)]
    if not any(far):
        return None
    ranges = " x ".join(f"{low:.4g} to {high:.4g}" for low, high in known)
    return _note(summary, f"{' x '.join(f'{one:.4g}' for one in found)} {unit}, there {ranges}")


RULES: tuple[Rule, ...] = (
    _modality, _hounsfield_stated, _picture, _no_picture, _bits, _photometric, _constant, _noise, _grey_range,
    _eight_bits, _narrow, _stored, _impossible, _unproven, _no_air, _like_hounsfield, _intensity_far,
    _spacing_far, _size_far, _thickness_far,
)  # fmt: skip


def _span(values: Values) -> str:
    return f"{values.low:g} to {values.high:g}"


def _within(value: float, known: Range) -> bool:
    return known[0] - (known[1] - known[0]) <= value <= known[1] + (known[1] - known[0])
