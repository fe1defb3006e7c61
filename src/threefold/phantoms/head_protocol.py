"""What a head-CT phantom cohort is made of: its specification, its presets and its eleven scanners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from threefold.experiment import Fraction, NonNegative, PositiveInt
from threefold.phantoms.phantom import MeasuredSpec

BLOOD_HU, MARKER_HU = (55.0, 80.0), (30.0, 45.0)
"""Between which the blood and the hypodensities of every case lie."""

Range = tuple[float, float]
Holder = Literal["cup", "rails", "table", "none"]


class HeadCtSpec(MeasuredSpec):
    """A head-CT phantom cohort.

    The defaults are the protocol of the studies (docs/explanation/head-ct-phantom.md).
    """

    patients_per_site: PositiveInt = 60
    """Patients at each internal site (1 to 4)."""
    external_patients_per_site: PositiveInt = 30
    """Patients at each external site (5 to 11)."""
    slices: tuple[PositiveInt, PositiveInt] = (4, 8)
    """Fewest and most slices of a patient; every one of them crosses the hematoma."""
    sites: Annotated[int, Field(ge=1, le=11)] = 11
    """Sites 1 to 4 are internal, 5 to 11 external."""
    mask_sites: tuple[Annotated[int, Field(ge=1, le=11)], ...] = (1, 2, 3, 4)
    """Sites whose masks the cohort carries; the truth of the others lies in truth/."""
    positives: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the patients whose hematoma holds hypodensities, the same at every site."""
    shortcut: Fraction = 0.0
    """Strength s of the planted shortcut at the internal sites: P(feature = label) = (1 + s) / 2."""
    external_shortcut: Literal["absent", "reversed", "random"] = "absent"
    """The feature at the external sites: nowhere, with P(feature = label) = (1 - s) / 2, or a fair coin."""
    size: Annotated[int, Field(ge=64, le=1024)] = 224
    """Pixels along a side."""
    field_of_view: Annotated[float, Field(gt=0)] = 1.0
    """Factor on each scanner's field of view."""
    hematoma_volume: Range = (6.0, 60.0)
    """Millilitres."""
    hematoma_density: Range = (55.0, 80.0)
    """HU of the hematoma's blood, texture included."""
    marker_density: Range = (30.0, 45.0)
    """HU of the hypodensities, texture included."""
    marker_share: Range = (0.06, 0.25)
    """Share of the hematoma's section that hypodensities fill, where there are any."""
    confounders: Fraction = 0.5
    """Share of hematomas, with and without the marker alike, with a blended edge or a density gradient."""
    noise: NonNegative = 1.0
    """Factor on each scanner's noise."""

    @model_validator(mode="after")
    def _ranges_fit(self) -> Self:
        for name in ("slices", "hematoma_volume", "hematoma_density", "marker_density", "marker_share"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is [{low}, {high}]; expected two numbers 0 < low <= high")
        for name, limits in (("hematoma_density", BLOOD_HU), ("marker_density", MARKER_HU)):
            low, high = getattr(self, name)
            if low < limits[0] or high > limits[1]:
                raise ValueError(f"{name} is [{low}, {high}] HU; expected it within {list(limits)}")
        if len(set(self.mask_sites)) < len(self.mask_sites):
            raise ValueError(f"mask_sites is {list(self.mask_sites)}; expected each site once")
        if self.marker_share[1] > 0.5:
            raise ValueError(f"marker_share reaches {self.marker_share[1]}; expected at most 0.5")
        return self


PRESETS: dict[str, HeadCtSpec] = {
    "study": HeadCtSpec(),
    # Small, without a shortcut, with larger hematomas and clearer markers: learned in minutes on two cores.
    "demo": HeadCtSpec(
        patients_per_site=80,
        external_patients_per_site=8,
        slices=(2, 3),
        field_of_view=0.8,
        hematoma_volume=(30.0, 75.0),
        hematoma_density=(68.0, 80.0),
        marker_density=(30.0, 36.0),
        marker_share=(0.25, 0.42),
        confounders=0.2,
        noise=0.6,
    ),
}


@dataclass(frozen=True)
class Scanner:
    """A site's scanner and habits; a patient's acquisition is drawn about them.

    Attributes:
        field_of_view: mm along a side.
        thickness: of a slice, mm.
        blur: standard deviation of the in-plane point spread, mm.
        sharpening: gain of the kernel's edge enhancement.
        noise: standard deviation in the head's middle, HU.
        noise_frequency: where the noise's spectrum peaks, cycles/mm (low is blotchy, high is grainy).
        cupping: HU that beam hardening adds under the skull, against the middle.
        streak: depth of the dark band between the petrous bones, HU.
        offset: calibration error, HU.
        tilt: mean gantry tilt, degrees.
        holder: what the head lies in.
    """

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


# Sites 1 to 4 are alike; sites 5 to 11 lie outside their ranges in several respects, each in other ones.
SCANNERS: tuple[Scanner, ...] = (
    Scanner(240, 5.0, 0.75, 0.2, 3.6, 0.22, 3.0, 8.0, 0.0, 4.0, "cup"),
    Scanner(235, 5.0, 0.80, 0.1, 3.2, 0.20, 3.5, 9.0, 0.8, 8.0, "rails"),
    Scanner(245, 4.5, 0.70, 0.2, 4.0, 0.24, 2.5, 7.0, -0.8, 0.0, "cup"),
    Scanner(238, 5.0, 0.85, 0.1, 3.4, 0.20, 4.0, 10.0, 0.4, 6.0, "table"),
    Scanner(255, 8.0, 1.20, 0.0, 2.6, 0.14, 6.0, 14.0, 3.0, 16.0, "rails"),
    Scanner(228, 2.5, 0.55, 0.7, 6.2, 0.34, 1.0, 8.0, -3.0, 0.0, "none"),
    Scanner(262, 7.0, 1.00, 0.3, 5.0, 0.18, 7.0, 18.0, 4.0, 12.0, "table"),
    Scanner(226, 3.0, 0.60, 0.9, 5.4, 0.38, 0.0, 5.0, -4.5, -6.0, "cup"),
    Scanner(250, 6.0, 1.35, 0.0, 4.6, 0.12, 6.0, 16.0, 5.0, 18.0, "rails"),
    Scanner(270, 5.0, 1.10, 0.5, 6.6, 0.26, 4.0, 12.0, -2.0, 10.0, "none"),
    Scanner(232, 10.0, 0.95, 0.2, 5.8, 0.16, 8.0, 20.0, 2.0, -10.0, "table"),
)
INTERNAL_SITES = (1, 2, 3, 4)
