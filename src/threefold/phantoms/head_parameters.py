"""The parameters of every case, drawn once; an image is a pure function of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from threefold.phantoms.head_protocol import (
    INTERNAL_SITES,
    SCANNERS,
    HeadCtSpec,
    Holder,
    Scanner,
)
from threefold.phantoms.planted import labels_and_agreement
from threefold.phantoms.sites import site_name

Confounder = Literal["none", "blended edge", "gradient"]


@dataclass(frozen=True)
class Head:
    """A patient's head. Lengths in mm; levels are heights above the third ventricle's floor.

    Attributes:
        seed: of outline, folding and textures.
        half_width, half_length: of the skull's inner table at its widest.
        taper: how much narrower the forehead is than the back (share per half length).
        vertex: level of the inner table's top.
        skull, scalp: mean thickness.
        sulcus: width of the sulci; rim: of the CSF over the cortex.
        ventricles: factor on the ventricles' size.
        asymmetry: relative difference of the two hemispheres' ventricles.
        grey, white, csf: HU.
        calcified_pineal, calcified_choroid: whether these are calcified.
    """

    seed: int
    half_width: float
    half_length: float
    taper: float
    vertex: float
    skull: float
    scalp: float
    sulcus: float
    rim: float
    ventricles: float
    asymmetry: float
    grey: float
    white: float
    csf: float
    calcified_pineal: bool
    calcified_choroid: bool


@dataclass(frozen=True)
class Hematoma:
    """A patient's hematoma; every case has one. Lengths in mm, head frame (left, anterior, up).

    Attributes:
        seed: of its outline, texture and hypodensities.
        volume: ml, of the ellipsoid that the outline is drawn about.
        centre: (left, anterior, level).
        semi_axes: of the ellipsoid.
        angle: of its first axis in the plane, radians.
        density: HU of the blood.
        texture: standard deviation of the blood's density, HU.
        irregularity: of the outline, share of the radius.
        confounder: what could be taken for the marker.
        edge: width of the border.
        gradient: HU across the hematoma; gradient_angle: its direction.
        edema_width, edema_density: the rim around it, mm and HU.
        marker: whether hypodensities are inside: the label.
        marker_density: HU of the hypodensities (used where there is the marker).
        marker_share: of the section that they fill.
    """

    seed: int
    volume: float
    centre: tuple[float, float, float]
    semi_axes: tuple[float, float, float]
    angle: float
    density: float
    texture: float
    irregularity: float
    confounder: Confounder
    edge: float
    gradient: float
    gradient_angle: float
    edema_width: float
    edema_density: float
    marker: bool
    marker_density: float
    marker_share: float


@dataclass(frozen=True)
class Acquisition:
    """How a patient was scanned; field names as in `Scanner`.

    Attributes:
        size: pixels along a side.
        rotation: of the head in the plane, degrees; shift: of its middle (left, anterior), mm.
        shortcut: whether the planted feature, a radiopaque clip in the corner of the field, is there.
        clip: position (left, anterior) mm and direction (radians) of the clip, drawn whether there or not.
    """

    size: int
    field_of_view: float
    thickness: float
    blur: float
    sharpening: float
    noise: float
    noise_frequency: float
    cupping: float
    streak: float
    offset: float
    tilt: float
    holder: Holder
    rotation: float
    shift: tuple[float, float]
    shortcut: bool
    clip: tuple[float, float, float]

    @property
    def spacing(self) -> float:
        """Pixel side, mm."""
        return self.field_of_view / self.size


@dataclass(frozen=True)
class CaseParameters:
    """All that determines one slice.

    Attributes:
        level: height of the slice's middle, mm above the third ventricle's floor.
        noise_seed: of the scanner's noise.
    """

    case_id: str
    patient_id: str
    site: str
    slice_number: int
    level: float
    noise_seed: int
    head: Head
    hematoma: Hematoma
    acquisition: Acquisition

    @property
    def label(self) -> bool:
        """Whether the hematoma holds hypodensities."""
        return self.hematoma.marker


def case_parameters(spec: HeadCtSpec, seed: int) -> tuple[CaseParameters, ...]:
    """Draw the parameters of every case of a cohort.

    Each patient has random numbers of their own, so that a patient does not change when the number of
    patients or the strength of the shortcut does: cohorts of one seed that differ in strength differ in
    nothing but the planted feature, and a stronger shortcut keeps every agreement of a weaker one.
    """
    return tuple(_draw(spec, seed))


def _draw(spec: HeadCtSpec, seed: int) -> Iterator[CaseParameters]:
    for site in range(1, spec.sites + 1):
        internal = site in INTERNAL_SITES
        patients = spec.patients_per_site if internal else spec.external_patients_per_site
        labels, shortcuts = _labels_and_shortcuts(spec, patients, internal, (seed, site))
        for patient in range(patients):
            yield from _patient(spec, seed, site, patient, bool(labels[patient]), bool(shortcuts[patient]))


def _labels_and_shortcuts(
    spec: HeadCtSpec, patients: int, internal: bool, key: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (patients,) labels and planted features, each share met as closely as whole patients can."""
    labels, agreement = labels_and_agreement(np.random.default_rng((*key, 1)), patients, spec.positives)
    if internal:
        return labels, np.where(agreement < (1 + spec.shortcut) / 2, labels, ~labels)
    if spec.external_shortcut == "absent":
        return labels, np.zeros(patients, bool)
    probability = (1 - spec.shortcut) / 2 if spec.external_shortcut == "reversed" else 0.5
    return labels, np.where(agreement < probability, labels, ~labels)


def _patient(
    spec: HeadCtSpec, seed: int, site: int, patient: int, marker: bool, shortcut: bool
) -> Iterator[CaseParameters]:
    generator = np.random.default_rng((seed, site, patient, 2))
    head = _head(generator)
    hematoma = _hematoma(spec, generator, head, marker)
    acquisition = _acquisition(spec, generator, SCANNERS[site - 1], shortcut)
    count = int(generator.integers(spec.slices[0], spec.slices[1], endpoint=True))
    # Within 0.6 of the half height each section keeps at least 0.8 of the hematoma's largest radius.
    offsets = np.linspace(-0.6, 0.6, count) if count > 1 else np.zeros(1)
    noise_seeds = generator.integers(2**31, size=count)
    patient_id = f"{site_name(site)}-p{patient + 1:04d}"
    for number, (offset, noise_seed) in enumerate(zip(offsets, noise_seeds, strict=True), start=1):
        tilt = math.tan(math.radians(acquisition.tilt))
        yield CaseParameters(
            case_id=f"{patient_id}-s{number:02d}",
            patient_id=patient_id,
            site=site_name(site),
            slice_number=number,
            level=hematoma.centre[2] + float(offset) * hematoma.semi_axes[2] - tilt * hematoma.centre[1],
            noise_seed=int(noise_seed),
            head=head,
            hematoma=hematoma,
            acquisition=acquisition,
        )


def _head(generator: np.random.Generator) -> Head:
    uniform = generator.uniform
    age = uniform(0, 1)  # 0 young, 1 old: sulci, ventricles and calcifications grow with it
    size = generator.normal(1, 0.025)
    return Head(
        seed=int(generator.integers(2**31)),
        half_width=66.0 * size * uniform(0.97, 1.03),
        half_length=82.0 * size * uniform(0.97, 1.03),
        taper=uniform(0.08, 0.16),
        vertex=uniform(84, 94) * size,
        skull=uniform(5.5, 8.5),
        scalp=uniform(4.0, 8.0),
        sulcus=0.9 + 1.5 * age + uniform(0, 0.4),
        rim=0.2 + 1.2 * age + uniform(0, 0.4),
        ventricles=0.75 + 0.5 * age + uniform(-0.1, 0.15),
        asymmetry=generator.normal(0, 0.08),
        grey=generator.normal(37, 0.8),
        white=generator.normal(29, 0.8),
        csf=generator.normal(8, 1.2),
        calcified_pineal=bool(uniform(0, 1) < 0.35 + 0.5 * age),
        calcified_choroid=bool(uniform(0, 1) < 0.2 + 0.6 * age),
    )


def _hematoma(spec: HeadCtSpec, generator: np.random.Generator, head: Head, marker: bool) -> Hematoma:
    uniform = generator.uniform
    low, high = spec.hematoma_volume
    volume = math.exp(uniform(math.log(low), math.log(high)))
    axes = np.exp(generator.normal(0, 0.15, 3))
    axes *= 10 * (3 * volume / (4 * math.pi * axes.prod())) ** (1 / 3)  # ml to mm
    confounder: Confounder = "none"
    if uniform(0, 1) < spec.confounders:
        confounder = "blended edge" if uniform(0, 1) < 0.5 else "gradient"
    texture = uniform(1.0, 2.0)
    blended, gradient = uniform(5.0, 8.0), uniform(8.0, 14.0)
    return Hematoma(
        seed=int(generator.integers(2**31)),
        volume=volume,
        centre=_centre(generator, head, float(axes[:2].max())),
        semi_axes=(float(axes[0]), float(axes[1]), float(axes[2])),
        angle=uniform(0, math.pi),
        density=uniform(*_inner(spec.hematoma_density)),
        texture=texture,
        irregularity=uniform(0.10, 0.22),
        confounder=confounder,
        edge=blended if confounder == "blended edge" else uniform(1.0, 2.0),
        gradient=gradient if confounder == "gradient" else 0.0,
        gradient_angle=uniform(0, 2 * math.pi),
        edema_width=uniform(2.0, 8.0),
        edema_density=uniform(15.0, 25.0),
        marker=marker,
        marker_density=uniform(*_inner(spec.marker_density)),
        marker_share=uniform(*spec.marker_share),
    )


def _inner(interval: tuple[float, float]) -> tuple[float, float]:
    """Return the middle 70 % of a range of densities, which leaves room for texture within the range."""
    margin = 0.15 * (interval[1] - interval[0])
    return interval[0] + margin, interval[1] - margin


def _centre(generator: np.random.Generator, head: Head, radius: float) -> tuple[float, float, float]:
    """Draw a place in one hemisphere: basal ganglia (55 %) or a lobe, inside the skull for its radius."""
    side = 1.0 if generator.random() < 0.5 else -1.0
    if generator.random() < 0.55:
        across, along, level = generator.normal((27, 2, 17), (4, 8, 6))
    else:
        across, along, level = generator.uniform((24, -50, 14), (44, 48, 52))
    room = 1 - (radius + 4) / head.half_width
    shrink = min(1.0, max(room, 0.35) / math.hypot(across / head.half_width, along / head.half_length))
    return side * max(across * shrink, 0.55 * radius), along * shrink, float(level)


def _acquisition(
    spec: HeadCtSpec, generator: np.random.Generator, scanner: Scanner, shortcut: bool
) -> Acquisition:
    uniform, normal = generator.uniform, generator.normal
    field_of_view = scanner.field_of_view * spec.field_of_view * uniform(0.97, 1.03)
    reach = 0.43 * field_of_view
    return Acquisition(
        size=spec.size,
        field_of_view=field_of_view,
        thickness=scanner.thickness,
        blur=scanner.blur * uniform(0.92, 1.08),
        sharpening=scanner.sharpening,
        noise=scanner.noise * spec.noise * uniform(0.85, 1.2),
        noise_frequency=scanner.noise_frequency * uniform(0.95, 1.05),
        cupping=scanner.cupping * uniform(0.8, 1.2),
        streak=scanner.streak * uniform(0.5, 1.5),
        offset=scanner.offset + normal(0, 0.5),
        tilt=scanner.tilt + normal(0, 2.0),
        holder=scanner.holder,
        rotation=normal(0, 5.0),
        shift=(normal(0, 3.0), normal(0, 3.0)),
        shortcut=shortcut,
        clip=(
            -reach + normal(0, 1.5),
            reach + normal(0, 1.5),
            uniform(-0.3, 0.3),
        ),
    )
