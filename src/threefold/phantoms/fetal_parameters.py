"""Drawing the patients of a fetal-heart phantom cohort: every number that a volume is made from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.phantoms.fetal_protocol import (
    DIAGNOSES,
    INTERNAL_SCANNERS,
    SCANNERS,
    STRUCTURES,
    Diagnosis,
    FetalHeartSpec,
    Scanner,
)
from threefold.phantoms.sites import site_name

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Wave:
    """One term of a smooth deformation: `amplitude` * sin(`frequency` . position + `phase`), mm and rad."""

    amplitude: Vector
    frequency: Vector
    phase: float


@dataclass(frozen=True)
class Anatomy:
    """A patient.

    Attributes:
        diagnosis: CoA, RAA or DAA.
        hard: a near-complete narrowing (CoA) or one thin arch (DAA).
        scale: of the whole, by gestational age; 1 at the mean.
        rotation: about the three axes, degrees.
        shift: of the whole, mm.
        radii: factor on the radius of each of the 11 vessels.
        narrowing: CoA: the narrowest radius before the duct, relative to the arch's; else 1.
        second_arch: DAA: radius of the left arch relative to the right one's; else 1.
        waves: the smooth deformation.
    """

    diagnosis: Diagnosis
    hard: bool
    scale: float
    rotation: Vector
    shift: Vector
    radii: tuple[float, ...]
    narrowing: float
    second_arch: float
    waves: tuple[Wave, ...]


@dataclass(frozen=True)
class FetalCase:
    """Everything that determines a case.

    Attributes:
        case_id, patient_id: the same name.
        site: as in cases.csv.
        anatomy: the patient.
        scanner: the acquisition, drawn about its site's.
        size, spacing, vessel_scale: as in the specification.
        masked: whether an annotator drew its mask.
        seed: of what is not a parameter: textures, noise, the annotator's hand.
        redrawn: anatomies that were drawn before this one and did not have their diagnosis's topology.
    """

    case_id: str
    patient_id: str
    site: str
    anatomy: Anatomy
    scanner: Scanner
    size: int
    spacing: float
    vessel_scale: float
    masked: bool
    seed: int
    redrawn: int = 0


def draw_cases(spec: FetalHeartSpec, seed: int) -> tuple[FetalCase, ...]:
    """Draw a cohort's cases, in the order of their names; the same seed gives the same cases.

    Each diagnosis is spread over the sites in the same proportions, so that no site gives it away.
    """
    rng = np.random.default_rng([seed, 11])
    diagnoses = [name for name, count in zip(DIAGNOSES, spec.patients, strict=True) for _ in range(count)]
    sites: list[int] = []
    for count in spec.patients:
        external = round(count * spec.external_share)
        internal = [1 + i % spec.internal_sites for i in range(count - external)]
        outside = [spec.internal_sites + 1 + i % max(spec.external_sites, 1) for i in range(external)]
        sites += internal + outside
    order = rng.permutation(len(diagnoses))
    masked = rng.permutation(len(diagnoses)) < round(len(diagnoses) * spec.mask_share)
    cases = []
    for number, index in enumerate(order.tolist(), start=1):
        name = f"fetus-{number:03d}"
        cases.append(
            FetalCase(
                case_id=name,
                patient_id=name,
                site=site_name(sites[index]),
                anatomy=draw_anatomy(spec, diagnoses[index], np.random.default_rng([seed, 12, number])),
                scanner=_draw_scanner(spec, sites[index], np.random.default_rng([seed, 13, number])),
                size=spec.size,
                spacing=spec.spacing,
                vessel_scale=spec.vessel_scale,
                masked=bool(masked[number - 1]),
                seed=int(np.random.SeedSequence([seed, 14, number]).generate_state(1)[0]),
            )
        )
    return tuple(cases)


def redraw(case: FetalCase, spec: FetalHeartSpec, seed: int) -> FetalCase:
    """Return the case with another anatomy of the same diagnosis."""
    number = int(case.case_id.rpartition("-")[2])
    rng = np.random.default_rng([seed, 12, number, case.redrawn + 1])
    return replace(case, anatomy=draw_anatomy(spec, case.anatomy.diagnosis, rng), redrawn=case.redrawn + 1)


def draw_anatomy(spec: FetalHeartSpec, diagnosis: Diagnosis, rng: np.random.Generator) -> Anatomy:
    """Draw a patient."""
    hard = bool(rng.random() < spec.hard_share) and diagnosis != "RAA"
    narrowing = rng.uniform(0.12, 0.22) if hard else rng.uniform(0.35, 0.65)
    second = rng.uniform(0.35, 0.5) if hard else rng.uniform(0.65, 1.0)
    waves = []
    for _ in range(6):
        direction = rng.standard_normal(3)
        length = rng.uniform(35, 80)  # mm
        frequency = direction / np.linalg.norm(direction) * 2 * np.pi / length
        # Longer waves may be higher, so that the deformation stays smooth.
        amplitude = rng.standard_normal(3) * 0.012 * length * spec.deformation
        waves.append(Wave(_vector(amplitude), _vector(frequency), float(rng.uniform(0, 2 * np.pi))))
    return Anatomy(
        diagnosis=diagnosis,
        hard=hard,
        scale=float(rng.uniform(0.88, 1.12)),
        rotation=_vector(rng.normal(0, 5, 3)),
        shift=_vector(rng.normal(0, 1.2, 3)),
        radii=tuple(float(r) for r in np.exp(rng.normal(0, 0.08, len(STRUCTURES)))),
        narrowing=float(narrowing) if diagnosis == "CoA" else 1.0,
        second_arch=float(second) if diagnosis == "DAA" else 1.0,
        waves=tuple(waves),
    )


def mean_anatomy(diagnosis: Diagnosis) -> Anatomy:
    """Return the mean patient of a diagnosis: the shape of its atlas."""
    return Anatomy(
        diagnosis=diagnosis,
        hard=False,
        scale=1.0,
        rotation=(0.0, 0.0, 0.0),
        shift=(0.0, 0.0, 0.0),
        radii=(1.0,) * len(STRUCTURES),
        narrowing=0.5 if diagnosis == "CoA" else 1.0,
        second_arch=0.82 if diagnosis == "DAA" else 1.0,
        waves=(),
    )


def atlas_case(spec: FetalHeartSpec, diagnosis: Diagnosis, seed: int) -> FetalCase:
    """Return the atlas of a diagnosis as a case: the mean shape, an even field and hardly any noise."""
    clean = replace(
        SCANNERS[0], noise=0.01, bias=0.0, motion=0.0, stripes=0.0, flips=(False, False, False), tilt=0.0
    )
    return FetalCase(
        case_id=f"atlas-{diagnosis}",
        patient_id=f"atlas-{diagnosis}",
        site="atlas",
        anatomy=mean_anatomy(diagnosis),
        scanner=clean,
        size=spec.size,
        spacing=spec.spacing,
        vessel_scale=spec.vessel_scale,
        masked=False,
        seed=seed,
    )


def _draw_scanner(spec: FetalHeartSpec, site: int, rng: np.random.Generator) -> Scanner:
    """Draw an acquisition about its site's scanner; external ones are moved by the shift."""
    external = site > spec.internal_sites
    if external:
        far = SCANNERS[INTERNAL_SCANNERS + site - spec.internal_sites - 1]
        near = SCANNERS[0]
    else:
        far = near = SCANNERS[(site - 1) % INTERNAL_SCANNERS]
    values: dict[str, Any] = {}
    for name in ("blur", "noise", "bias", "lumen", "contrast", "motion", "stripes", "thickness"):
        low, high = float(getattr(near, name)), float(getattr(far, name))
        value = low + spec.shift * (high - low) if external else low
        values[name] = max(value, 0.02) * float(np.exp(rng.normal(0, 0.08)))
    values["noise"] *= spec.noise
    for name in ("motion", "stripes"):
        values[name] *= spec.artefacts
    return replace(far, **values, tilt=far.tilt + float(rng.normal(0, 1)))


def _vector(values: NDArray[np.float64]) -> Vector:
    return (float(values[0]), float(values[1]), float(values[2]))
