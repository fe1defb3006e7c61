"""Cohort: a folder with `cohort.yaml` (what the columns mean) and `cases.csv` (a row a case)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from threefold.experiment import Spec

REQUIRED_COLUMNS = ("case_id", "patient_id", "site", "image")
OPTIONAL_COLUMNS = ("split", "slice", "mask", "structures", "label")


class IntensitySpec(Spec):
    """What a voxel's value means."""

    unit: Literal["HU", "grey", "arbitrary"] = "arbitrary"
    """HU: CT numbers. grey: 0..255, already windowed. arbitrary: MRI."""
    window: tuple[float, float] | None = None
    """[low, high] that becomes 0..1; None: each image's own 1st and 99th percentile."""


class MaskSpec(Spec):
    """The binary region."""

    name: str = "lesion"
    values: tuple[int, ...] = (1,)
    """Voxel values that are inside; 0 is outside; any other value is an error."""


class CohortSpec(Spec):
    """cohort.yaml."""

    name: str
    modality: Literal["ct", "mri", "photo"]
    dimensions: Literal[2, 3]
    """Axes of a case: 2 for slices, 3 for volumes."""
    classes: tuple[str, ...] = ()
    """Names that the label column may hold, in the order of the class indices."""
    positive: str | None = None
    """Two classes: the one that sensitivity is about; None: the last."""
    mask: MaskSpec | None = None
    structures: tuple[str, ...] = ()
    """Names of the labels 1, 2, ... of a structures map."""
    intensity: IntensitySpec = IntensitySpec()
    site_groups: Mapping[str, tuple[str, ...]] = {}
    """For example internal and external; a site is in at most one."""
    spacing: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """mm per voxel, for files that do not say (PNG, JPG)."""
    columns: Mapping[str, str] = {}
    """Further columns of cases.csv and what they mean."""

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(
                f"positive is '{self.positive}', which is not one of classes {list(self.classes)}"
            )
        sites = [site for group in self.site_groups.values() for site in group]
        twice = sorted({site for site in sites if sites.count(site) > 1})
        if twice:
            raise ValueError(f"site_groups: {', '.join(twice)} in more than one group")
        return self

    def site_group(self, site: str) -> str | None:
        """Return the group of a site, or None."""
        return next((name for name, sites in self.site_groups.items() if site in sites), None)

    @property
    def positive_class(self) -> int | None:
        """Index of the positive class of a two-class question; None otherwise."""
        if len(self.classes) != 2:
            return None
        return 1 if self.positive is None else self.classes.index(self.positive)


@dataclass(frozen=True)
class Case:
    """One image with whatever is known of it.

    Attributes:
        image, mask, structures: absolute paths; a folder is a DICOM series. None: the target is absent.
        slice_index: the case is this slice (0-based, along the third axis) of the volume `image`, and of
            its mask and structures where those are volumes.
        label: class index; None: absent.
        split: the part that the table names; None where it names none.
        extra: further columns, as text.
    """

    case_id: str
    patient_id: str
    site: str
    image: Path
    slice_index: int | None = None
    mask: Path | None = None
    structures: Path | None = None
    label: int | None = None
    split: Literal["train", "validation", "test"] | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cohort:
    """A cohort in memory: paths and names only, no voxel is read."""

    folder: Path
    spec: CohortSpec
    cases: tuple[Case, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites in the order of their names."""
        return tuple(sorted({case.site for case in self.cases}))


def read_cohort(folder: Path, *, allow_outside: bool = False) -> Cohort:
    """Read cohort.yaml and cases.csv.

    Args:
        folder: the cohort's folder.
        allow_outside: accept paths that leave the folder (`../`, absolute).

    Raises:
        CohortError: naming the file, row and column, what was expected and what was found.
    """
    raise NotImplementedError


def write_cohort(folder: Path, spec: CohortSpec, rows: list[dict[str, Any]]) -> Cohort:
    """Write cohort.yaml and cases.csv (both renamed into place), and read them back."""
    raise NotImplementedError
