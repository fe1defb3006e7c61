"""What a rule has against an image, and what a rule goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from threefold.cohorts.cohort import CohortSpec
from threefold.cohorts.findings import Severity
from threefold.cohorts.trained_on import TrainedOn
from threefold.cohorts.voxel_values import Values
from threefold.images.facts import Facts
from threefold.images.geometry import Affine


@dataclass(frozen=True)
class Evidence:
    """An image beside what was asked for.

    Attributes:
        asked: the cohort.yaml that speaks of the image, or of the network's training.
        seen: what the network's training images were; None: not known, or no network is asked.
        vouched: a cohort.yaml names the image's modality and unit.
        affine: (4, 4) of the image's grid.
        size, spacing: voxels, and mm a voxel, along canonical axes: of a volume that is given to a 2D
            network, those of its slices.
        thickness: mm, as stated; of a volume that is given to a 2D network else the distance of its slices.
    """

    asked: CohortSpec
    seen: TrainedOn | None
    vouched: bool
    facts: Facts
    values: Values
    affine: Affine
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    thickness: float | None

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
        unlike_training: it says that the image is unlike those that the network was trained on.
    """

    severity: Severity
    refused: bool
    summary: str
    found: str
    claim: str = ""
    advice: str = ""
    unlike_training: bool = False

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


def note(summary: str, found: str = "", advice: str = "") -> Objection:
    """Return what is said of an image and refuses nothing."""
    return Objection("note", False, summary, found, advice=advice)


def unlike(summary: str, found: str = "") -> Objection:
    """Return that an image is unlike those that the network was trained on; it refuses nothing."""
    return Objection("note", False, summary, found, unlike_training=True)
