"""What a fetal-heart phantom cohort is made of: its specification, its presets and its scanners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from threefold.experiment import Fraction, NonNegative, Positive, PositiveInt
from threefold.phantoms.phantom import MeasuredSpec

STRUCTURES = ("SVC", "LPA", "RPA", "AO", "AD", "DAO", "MPA", "LSA", "BCA", "LCCA", "PVs")
"""Labels 1 to 11. AO: ascending aorta and arch (in a double arch both arches); AD: arterial duct; DAO:
descending aorta; BCA: brachiocephalic artery, and with a right or double arch the vessels to head and arm on
the right."""
SURROUNDINGS = ("trachea", "heart", "lungs", "spine")
"""Labels 1 to 4 of the maps in truth/."""

Diagnosis = Literal["CoA", "RAA", "DAA"]
DIAGNOSES: tuple[Diagnosis, ...] = ("CoA", "RAA", "DAA")
Count = Annotated[int, Field(ge=0)]


class FetalHeartSpec(MeasuredSpec):
    """A fetal-heart phantom cohort; a patient is a case.

    The defaults are the protocol of the studies (docs/explanation/fetal-heart-phantom.md).
    """

    patients: tuple[Count, Count, Count] = (108, 70, 17)
    """With CoA, RAA and DAA."""
    size: Annotated[int, Field(ge=24, le=256)] = 96
    """Voxels along each side."""
    spacing: Positive = 0.75
    """mm per voxel."""
    vessel_scale: Positive = 1.0
    """Factor on the radius of every vessel."""
    internal_sites: PositiveInt = 4
    external_sites: Annotated[int, Field(ge=0, le=3)] = 2
    """Sites whose scanners lie outside the internal ones' range."""
    external_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of the patients of each diagnosis that are at external sites."""
    shift: NonNegative = 1.0
    """How far the external scanners are from the internal ones: 0 is as they, 1 as the protocol says."""
    mask_share: Fraction = 0.8
    """Share of the patients with a manual mask."""
    hard_share: Fraction = 0.15
    """Share of CoA with a near-complete narrowing, and of DAA with one thin arch."""
    deformation: NonNegative = 1.0
    """Factor on the smooth random deformation of each patient."""
    noise: NonNegative = 1.0
    """Factor on each scanner's noise."""
    artefacts: NonNegative = 1.0
    """Factor on residual motion and slice-to-volume artefacts."""

    @model_validator(mode="after")
    def _some_patients(self) -> Self:
        if not sum(self.patients):
            raise ValueError("patients is [0, 0, 0]; expected at least one patient")
        if self.external_sites == 0 and self.external_share > 0:
            raise ValueError("external_share needs external_sites of at least 1; set it to 0 without them")
        return self


PRESETS: dict[str, FetalHeartSpec] = {
    "study": FetalHeartSpec(),
    # Small volumes and few of them, wider vessels, little noise: the whole chain in minutes on two cores.
    "demo": FetalHeartSpec(
        patients=(24, 20, 16),
        size=48,
        spacing=1.1,
        vessel_scale=1.25,
        internal_sites=2,
        external_sites=1,
        external_share=0.2,
        shift=0.5,
        hard_share=0.1,
        noise=0.6,
        artefacts=0.5,
    ),
}


@dataclass(frozen=True)
class Scanner:
    """A site's scanner and habits; a patient's acquisition is drawn about them.

    Attributes:
        blur: standard deviation of the point spread, mm.
        noise: standard deviation in units of the brightest tissue.
        bias: standard deviation of the log of the field that multiplies the image.
        lumen: signal of blood (black blood is never quite black).
        contrast: exponent of the tissues' signal; above 1 darkens the middle greys.
        motion: standard deviation of the shift of a slice, mm.
        stripes: standard deviation of the log of a slice's brightness.
        thickness: of the slices the volume was put together from, mm.
        flips: for each axis, whether the file stores it against RAS+.
        tilt: rotation of the file's grid about the third axis, degrees.
    """

    blur: float
    noise: float
    bias: float
    lumen: float
    contrast: float
    motion: float
    stripes: float
    thickness: float
    flips: tuple[bool, bool, bool]
    tilt: float


# The first four are alike; the last three lie outside their ranges in several respects.
SCANNERS: tuple[Scanner, ...] = (
    Scanner(0.45, 0.035, 0.12, 0.10, 1.00, 0.15, 0.02, 1.5, (False, False, False), 4.0),
    Scanner(0.50, 0.040, 0.15, 0.12, 1.05, 0.20, 0.03, 1.8, (True, True, False), -6.0),
    Scanner(0.42, 0.045, 0.10, 0.09, 0.95, 0.18, 0.02, 1.5, (True, False, False), 2.0),
    Scanner(0.55, 0.038, 0.18, 0.13, 1.00, 0.22, 0.03, 2.0, (False, True, True), 8.0),
    Scanner(0.80, 0.075, 0.35, 0.22, 1.35, 0.45, 0.07, 3.0, (True, True, True), 15.0),
    Scanner(0.35, 0.090, 0.30, 0.05, 0.70, 0.40, 0.06, 1.2, (False, False, True), -12.0),
    Scanner(0.70, 0.060, 0.45, 0.18, 1.20, 0.55, 0.09, 2.6, (False, True, False), 10.0),
)
INTERNAL_SCANNERS = 4
