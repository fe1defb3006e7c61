"""How far an image is from those that a network was trained on: each rule notes, and proves nothing."""

from __future__ import annotations

import numpy as np

from threefold.cohorts.objection import Evidence, Objection, Rule, note, unlike
from threefold.cohorts.trained_on import Intensities, Range
from threefold.cohorts.voxel_values import NOISE, Values
from threefold.images.geometry import plane_of, tilt_of

FAR = 2.0
"""By this factor a length is far outside a range."""
MARGIN = 0.25
"""Percentiles may leave the training images' range by the range's own width, and by this share of the window
at least; the share of voxels within the window by this much at least."""
_MARGIN_OF_SPAN = 0.1
"""As MARGIN where there is no window, of what lies between the percentiles 1 and 99."""
TILTED = 30.0
"""Degrees beyond those of the training images: more than a CT gantry tilts."""
SAME_FIELD = 1.2
"""Field strengths within this factor are one: 1.494 T is 1.5 T, and 3 T is not."""
_RIGHT_ANGLE = 5.0
"""Degrees that two axes of a grid may miss a right angle by."""


def _intensity_far(e: Evidence) -> Objection | None:
    """Values far from those of any training image; where each image is scaled by itself, only by a factor."""
    if e.seen is None:
        return None
    v, seen = e.values, e.seen.intensities
    scaled = e.unit == "arbitrary" and e.asked.intensity.window is None
    width = (seen.p99[1] - seen.p1[0]) * (10 if scaled else 1) or 1.0
    for name, value, known in (("p1", v.p1, seen.p1), ("p50", v.p50, seen.p50), ("p99", v.p99, seen.p99)):
        if not known[0] - width <= value <= known[1] + width:
            return unlike(
                "values far outside those of the training images",
                f"percentile {name[1:]} is {value:g}, there {known[0]:g} to {known[1]:g}",
            )
    return None if scaled else _body_far(v, seen, e.asked.intensity.window)


def _body_far(v: Values, seen: Intensities, window: tuple[float, float] | None) -> Objection | None:
    """What is neither air nor padding, each number held against its own range."""
    least = (
        _MARGIN_OF_SPAN * (seen.p99[1] - seen.p1[0]) if window is None else MARGIN * (window[1] - window[0])
    )
    cut = "" if window is None else f", cut to {window[0]:g} to {window[1]:g},"
    for name, value, known, margin in (
        (f"the median{cut}", v.body50, seen.body50, least),
        (f"percentile 75{cut}", v.body75, seen.body75, least),
        ("the share within the window", v.shown, seen.shown, MARGIN),
    ):
        if value is None or known is None:
            continue
        margin = max(margin, known[1] - known[0])
        if not known[0] - margin <= value <= known[1] + margin:
            return unlike(
                "values outside air far from those of the training images",
                f"{name} is {value:.3g}, there {known[0]:.3g} to {known[1]:.3g}",
            )
    return None


def _shapeless(e: Evidence) -> Objection | None:
    known = None if e.seen is None else e.seen.intensities.coherence
    found = e.values.coherence
    if known is None or found is None or found > NOISE or found >= 0.5 * known[0]:
        return None
    return unlike(
        "nothing larger than a few voxels, unlike in any training image: smoothed noise looks so",
        f"correlation {found:.2f} at a 16th of a side, there {known[0]:.2f} to {known[1]:.2f}",
    )


def _plane(e: Evidence) -> Objection | None:
    """A 2D network sees the plane that it is given; volumes are turned to the patient's axes."""
    if e.seen is None or not e.seen.planes or e.asked.dimensions == 3 or not e.facts.place_stated:
        return None
    plane = plane_of(e.affine)
    if plane in e.seen.planes:
        return None
    return unlike(
        "another plane than that of any training image", f"{plane}, there {' and '.join(e.seen.planes)}"
    )


def _tilted(e: Evidence) -> Objection | None:
    known = None if e.seen is None else e.seen.tilt_degrees
    if known is None or not e.facts.place_stated:
        return None
    tilt = tilt_of(e.affine, e.asked.dimensions)
    if tilt <= known[1] + TILTED:
        return None
    return unlike(
        "turned against the patient's axes, further than the training images",
        f"{tilt:.0f} degrees, there {known[0]:.0f} to {known[1]:.0f}",
    )


def _sheared(e: Evidence) -> Objection | None:
    if e.seen is None or e.seen.tilt_degrees is None or not e.facts.place_stated:
        return None
    axes = e.affine[:3, : e.asked.dimensions] / np.linalg.norm(e.affine[:3, : e.asked.dimensions], axis=0)
    cosine = np.abs(np.triu(axes.T @ axes, 1)).max()
    off = float(np.degrees(np.arcsin(min(1.0, cosine))))
    if off <= _RIGHT_ANGLE:
        return None
    return unlike("a sheared grid: its axes are not at right angles", f"{90 - off:.0f} degrees")


def _spacing_far(e: Evidence) -> Objection | None:
    if e.seen is None or e.seen.spacing_mm is None:
        return None
    if not e.facts.spacing_stated:
        return note("states no spacing, and the training images did: lengths are in pixels")
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
    if e.seen is None or e.seen.thickness_mm is None or e.thickness is None:
        return None
    summary = "a slice thickness far from the training images'"
    return _far_lengths(summary, (e.thickness,), (e.seen.thickness_mm,), "mm")


def _kernel_unknown(e: Evidence) -> Objection | None:
    known, kernel = None if e.seen is None else e.seen.kernels, e.facts.kernel
    if not known or kernel is None or kernel in known:
        return None
    return unlike("a convolution kernel of no training image", f"{kernel}, there {', '.join(known)}")


def _field_strength_far(e: Evidence) -> Objection | None:
    known, found = None if e.seen is None else e.seen.field_strength, e.facts.field_strength
    if known is None or found is None:
        return None
    if known[0] / SAME_FIELD <= found <= known[1] * SAME_FIELD:
        return None
    return unlike("a field strength of no training image", f"{found:g} T, there {known[0]:g} to {known[1]:g}")


def _far_lengths(
    summary: str, found: tuple[float, ...], known: tuple[Range, ...], unit: str
) -> Objection | None:
    if len(found) != len(known):
        return None
    far = [not low / FAR <= value <= high * FAR for value, (low, high) in zip(found, known, strict=True)]
    if not any(far):
        return None
    ranges = " x ".join(f"{low:.4g} to {high:.4g}" for low, high in known)
    return unlike(summary, f"{' x '.join(f'{one:.4g}' for one in found)} {unit}, there {ranges}")


FAR_FROM_TRAINING: tuple[Rule, ...] = (
    _intensity_far, _shapeless, _plane, _tilted, _sheared, _spacing_far, _size_far, _thickness_far,
    _kernel_unknown, _field_strength_far,
)  # fmt: skip
