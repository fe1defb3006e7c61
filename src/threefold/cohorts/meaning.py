"""What a voxel means: what a file states and its voxels show, held against what was asked for.

Asked for is what a cohort.yaml says, or what a network was trained on. `objections` goes through the rules
below in both directions (CT numbers for a network of grey pictures, and the other way round). What is proven
wrong is refused; what can be neither proven nor ruled out is noted. `check` and prediction share these rules.

Nothing here reads a file, and nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from threefold.cohorts.cohort import CohortSpec
from threefold.cohorts.distance import FAR_FROM_TRAINING
from threefold.cohorts.objection import Evidence, Objection, Rule, note
from threefold.cohorts.trained_on import Range, TrainedOn
from threefold.cohorts.voxel_values import AIR, DENSE, HU_RANGE, NOISE, Values, measure
from threefold.images.geometry import Image
from threefold.images.preprocessing import canonical_axes

_LEAST_AIR = 0.001
_NARROW = 10.0
"""No CT number image or 8-bit picture of anything spans less."""
_BLANK = 1e-4
"""Share of voxels that differ from the others, at and below which an image shows nothing."""


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
    sliced = image.array.ndim > asked.dimensions
    axes, _ = canonical_axes(image.affine, asked.dimensions if sliced else image.array.ndim)
    thickness = image.facts.slice_thickness
    if thickness is None and sliced and image.facts.spacing_stated:
        thickness = image.spacing[2]
    evidence = Evidence(
        asked,
        seen,
        vouched,
        image.facts,
        measure(np.asarray(image.array), asked.intensity),
        image.affine,
        tuple(image.array.shape[axis] for axis in axes),
        tuple(image.spacing[axis] for axis in axes),
        thickness,
    )
    for rule in RULES:
        objection = rule(evidence)
        if objection is not None:
            yield objection


def shows_nothing(image: Image, asked: CohortSpec) -> Objection | None:
    """Return why a slice of a volume shows nothing; None where it shows something."""
    values = measure(np.asarray(image.array), asked.intensity)
    found = (rule(values) for rule in (_constant, _blank, _noise))
    return next((one for one in found if one is not None), None)


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
        "the file states CT numbers, in HU",
        _span(e.values),
        "unit: grey",
        "Export it through the window of those pictures, or use a network trained on HU.",
    )


def _other_unit(e: Evidence) -> Objection | None:
    if e.unit != "HU" or e.facts.unit in (None, "HU", "HU_MOD"):
        return None
    if e.seen is not None and e.facts.unit in e.seen.units:
        return None
    return Objection(
        "refuse",
        True,
        "the file states values that are no CT numbers",
        f"in {e.facts.unit}, {_span(e.values)}",
        "unit: HU",
        "Give the image that its scanner reconstructed in HU.",
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
    return note("a picture, and no training image was one: its values may be cut to a window")


def _no_picture(e: Evidence) -> Objection | None:
    if e.seen is None or {*e.seen.formats} != {"picture"} or e.facts.format in ("picture", None):
        return None
    return note(
        "not a picture, and all training images were: its values are taken as grey values as they are",
        _span(e.values),
    )


def _bits(e: Evidence) -> Objection | None:
    bits = e.facts.bits
    if e.seen is None or e.facts.format != "picture" or not e.seen.bits or str(bits) in e.seen.bits:
        return None
    return note("stored with another number of bits than any training image", f"{bits}")


def _photometric(e: Evidence) -> Objection | None:
    if e.facts.photometric != "MONOCHROME1":
        return None
    if e.seen is not None and "MONOCHROME1" in e.seen.photometric:
        return None
    return note("the file is shown inverted (MONOCHROME1), and no training image is known to be")


def _nothing_shown(e: Evidence) -> Objection | None:
    return _constant(e.values) or _blank(e.values)


def _constant(v: Values) -> Objection | None:
    if v.low != v.high:
        return None
    advice = "It shows nothing: check that the right file was exported."
    return Objection("warn", True, "the image is constant", _span(v), "", advice)


def _blank(v: Values) -> Objection | None:
    if v.varied > _BLANK:
        return None
    return Objection(
        "warn",
        True,
        "the image is blank: as the network sees it, its voxels are all alike",
        _span(v),
        "",
        "It shows nothing: check that the right file was exported, and that intensity.window fits it.",
    )


def _random(e: Evidence) -> Objection | None:
    return _noise(e.values)


def _noise(v: Values) -> Objection | None:
    if not v.correlation <= NOISE:  # NaN: can't be told
        return None
    return Objection(
        "warn",
        True,
        "the image is noise: neighbouring voxels have nothing in common",
        f"correlation {v.correlation:.2f}",
        "",
        "It shows nothing: check that the right file was exported, with the right shape and type.",
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
        "Give the image with its own values, as they were before they were normalised.",
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
        f"values outside the {HU_RANGE[0]:g} to {HU_RANGE[1]:g} HU that CT can give",
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
    return note(
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


RULES: tuple[Rule, ...] = (
    _modality, _hounsfield_stated, _other_unit, _picture, _no_picture, _bits, _photometric, _nothing_shown,
    _random, _grey_range, _eight_bits, _narrow, _stored, _impossible, _unproven, _no_air, _like_hounsfield,
    *FAR_FROM_TRAINING,
)  # fmt: skip


def _span(values: Values) -> str:
    return f"{values.low:g} to {values.high:g}"


def _within(value: float, known: Range) -> bool:
    return known[0] - (known[1] - known[0]) <= value <= known[1] + (known[1] - known[0])
