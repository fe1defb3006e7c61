"""Cohort: a folder with `cohort.yaml` (what the columns mean) and `cases.csv` (one row per case)."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from threefold.cohorts.reserved_names import (
    RESERVED_GROUPS,
    RESERVED_STRUCTURES,
    RESERVED_TARGETS,
    column_problem,
)
from threefold.core.targets import (
    ClassTarget,
    LabelsTarget,
    MaskSpec,
    MaskTarget,
    MultilabelTarget,
    Name,
    TargetSpec,
    TargetValue,
    refuse_repeats,
)
from threefold.errors import CohortError, RunError
from threefold.experiment import Spec
from threefold.paths import Boundary
from threefold.run import write_atomically
from threefold.validation import did_you_mean, parse_spec, read_yaml

SPEC_NAME = "cohort.yaml"
TABLE_NAME = "cases.csv"
REQUIRED_COLUMNS = ("case_id", "patient_id", "site", "image")
OPTIONAL_COLUMNS = ("split", "slice", "mask", "structures", "label", "reference")
SHORT_KINDS = {"label": "class", "mask": "mask", "structures": "labels"}
"""Targets that the short form of cohort.yaml declares, and their kinds."""
_SHORT_FORM: Mapping[str, Mapping[str, str]] = {
    "label": {"classes": "classes", "positive": "positive"},
    "mask": {"mask": "mask"},
    "structures": {"names": "structures"},
}
"""Keys of the short form that say what a target's own keys say."""
TARGET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def columns_of(name: str, target: TargetSpec) -> tuple[str, ...]:
    """Return the columns of cases.csv that hold a target."""
    if isinstance(target, MultilabelTarget):
        return tuple(target.column(name, finding) for finding in target.classes)
    return (name,)


class IntensitySpec(Spec):
    """Meaning of voxel values."""

    unit: Literal["HU", "grey", "arbitrary"] = "arbitrary"
    """HU: CT numbers. grey: 0..255, already windowed. arbitrary: MRI."""
    window: tuple[float, float] | None = None
    """[low, high], mapped to 0..1; null: each image's own 1st and 99th percentiles."""

    @model_validator(mode="after")
    def _window_rises(self) -> Self:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window is [low, high] with low < high, found {list(self.window)}")
        return self


Code = tuple[
    Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)], Name, Name
]
"""A DICOM code: value, coding scheme and meaning, for example [35566002, SCT, Hematoma]."""


class CodesSpec(Spec):
    """DICOM codes of a mask, a structure or a class."""

    type: Code | None = None
    """What it is: the type of a segment, or the diagnosis that a class means."""
    category: Code | None = None
    """Of a segment: what kind of thing that is, for example [91723000, SCT, Anatomical Structure]."""
    anatomy: Code | None = None
    """Of a segment: the part of the body that it lies in."""


class AtlasSpec(Spec):
    """A labelled template whose structures can be propagated to cases."""

    name: Name
    image: Name
    """Path, relative to the cohort's folder."""
    structures: Name
    """Path of the template's label map, with the labels of the cohort's structures."""
    label: Name | None = None
    """Its class; null: the atlas is registered to every case."""
    values: Mapping[Name, float] = {}
    """Its numbers by the names of the cases' columns, for `match_by` of a propagation; age: 26, say."""


class CohortSpec(Spec):
    """Description of a cohort, in cohort.yaml."""

    name: Name
    modality: Literal["ct", "mri", "photo"]
    dimensions: Literal[2, 3]
    """Axes of a case: 2 for slices, 3 for volumes."""
    classes: tuple[Name, ...] = ()
    """Names of the classes in the label column, in the order of the class indices."""
    positive: Name | None = None
    """The positive class of two; null: the last."""
    mask: MaskSpec | None = None
    structures: tuple[Name, ...] = ()
    """Names of the labels 1, 2, ... of the structures."""
    targets: Mapping[Name, TargetSpec] = {}
    """Further targets by name, each with a column of that name (findings: one column each). The four keys
    above are the short form of the targets label, mask and structures."""
    channels: Mapping[Name, Name] = {}
    """Several images per case, on one grid, as input channels: the column of each by the channel's name, in
    the order of the network's input. Without it, the column `image` is the only channel."""
    missing_channels: Literal["refuse", "zeros"] = "refuse"
    """Empty cells of a channel: refuse them, or set the channel to zero."""
    atlases: tuple[AtlasSpec, ...] = ()
    """Labelled templates, for `threefold propagate`."""
    intensity: IntensitySpec = IntensitySpec()
    site_groups: Mapping[Name, tuple[Name, ...]] = {}
    """Groups of sites, for example internal and external; a site belongs to at most one."""
    spacing: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """mm per voxel, for files that do not state it (PNG, JPG)."""
    columns: Mapping[Name, str] = {}
    """Descriptions of further columns of cases.csv."""
    unknown: tuple[Literal["patient", "site"], ...] = ()
    """What the table does not tell, so that its column holds a stand-in. Without patients no split can keep a
    person's cases together, and every number is marked."""
    not_duplicates: tuple[tuple[str, ...], ...] = ()
    """Groups of case_ids with nearly identical images that were found to be different ones."""
    codes: Mapping[Name, CodesSpec] = {}
    """DICOM codes by the name of a mask, a structure or a class, for `threefold predict --dicom`. Hematoma,
    haemorrhage and the great vessels have codes without them; other names are written as they are."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        """Bring targets named label, mask and structures into the short form."""
        if not isinstance(data, Mapping) or not isinstance(data.get("targets"), Mapping):
            return data
        moved, left = dict(data), dict(data["targets"])
        for name, keys in _SHORT_FORM.items():
            target = left.get(name)
            if not isinstance(target, Mapping) or target.get("kind") != SHORT_KINDS[name]:
                continue
            if any(key in data for key in keys.values()):
                continue  # it is there twice, which is refused below
            said = {key: value for key, value in target.items() if key != "kind"}
            moved |= (
                {"mask": said} if name == "mask" else {own: said.pop(key, None) for key, own in keys.items()}
            )
            del left[name]
        return {**moved, "targets": left}

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(
                f"positive is '{self.positive}', which is not one of classes {list(self.classes)}"
            )
        refuse_repeats("classes", self.classes)
        refuse_repeats("structures", self.structures)
        refuse_repeats("atlases", [atlas.name for atlas in self.atlases])
        _refuse_reserved("structures", self.structures, RESERVED_STRUCTURES)
        _refuse_reserved("site_groups", self.site_groups, RESERVED_GROUPS)
        for atlas in self.atlases:
            if atlas.label is not None and atlas.label not in self.classes:
                raise ValueError(
                    f"atlas '{atlas.name}' is of class '{atlas.label}', which is not one of classes "
                    f"{list(self.classes)}"
                )
        self._refuse_targets()
        self._refuse_channels()
        self._refuse_codes()
        refuse_repeats("site_groups", [site for group in self.site_groups.values() for site in group])
        if self.spacing is not None and not self.dimensions <= len(self.spacing) <= 3:
            raise ValueError(
                f"spacing has {len(self.spacing)} values; expected one per axis of a case, "
                f"which has {self.dimensions}"
            )
        return self

    def _refuse_targets(self) -> None:
        short = {"label": self.classes, "mask": self.mask, "structures": self.structures}
        for name, target in self.targets.items():
            if not TARGET_NAME.fullmatch(name):
                raise ValueError(f"targets: '{name}' can't name a target: expected letters, digits, - and _")
            if short.get(name):
                raise ValueError(f"targets: '{name}' is there twice, in `targets` and in the short form")
            wanted = SHORT_KINDS.get(name, target.kind)
            if target.kind != wanted:
                raise ValueError(f"targets: '{name}' is a target of kind {wanted}, found {target.kind}")
            _refuse_reserved("targets", [name], RESERVED_TARGETS)
            if isinstance(target, LabelsTarget):
                _refuse_reserved(f"targets: {name}", target.names, RESERVED_STRUCTURES)
        columns = [column for name, one in self.targets.items() for column in columns_of(name, one)]
        refuse_repeats("targets: columns of cases.csv", columns)

    def _refuse_channels(self) -> None:
        if len(self.channels) == 1:
            raise ValueError("channels: one alone is the column `image`; name two or more, or none")
        targets = [column for name, one in self.targets.items() for column in columns_of(name, one)]
        taken = {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, *targets} - {"image"}
        for name, column in self.channels.items():
            if not TARGET_NAME.fullmatch(name):
                raise ValueError(
                    f"channels: '{name}' can't name a channel: expected letters, digits, - and _"
                )
            problem = column_problem(column)
            if column in taken or problem:
                raise ValueError(f"channels: {name}: {problem or f'the column {column} has another meaning'}")
        refuse_repeats("channels: columns of cases.csv", self.channels.values())

    def _refuse_codes(self) -> None:
        masks = [self.mask] if self.mask is not None else []
        known = [*self.classes, *self.structures, *(mask.name for mask in masks)]
        for target in self.targets.values():
            known += [*getattr(target, "classes", ()), *getattr(target, "names", ())]
            known += [target.name] if isinstance(target, MaskTarget) else []
        for name in self.codes:
            if name not in known:
                raise ValueError(
                    f"codes: '{name}' is no mask, structure or class.{did_you_mean(name, known)}"
                )

    @cached_property
    def all_targets(self) -> Mapping[str, TargetSpec]:
        """What may be known of a case, by name: the short form's targets, then the others."""
        found: dict[str, TargetSpec] = {}
        if len(self.classes) > 1:
            found["label"] = ClassTarget(classes=self.classes, positive=self.positive)
        if self.mask is not None:
            found["mask"] = MaskTarget(kind="mask", **self.mask.model_dump())
        if self.structures:
            found["structures"] = LabelsTarget(kind="labels", names=self.structures)
        return {**found, **self.targets}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy whose targets are those of its own fields, not what was worked out before."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("all_targets", None)
        return copied

    @property
    def image_columns(self) -> tuple[str, ...]:
        """The columns of cases.csv that hold a case's images, one a channel."""
        return (*self.channels.values(),) or ("image",)

    def site_group(self, site: str) -> str | None:
        """Return the group of a site, or None."""
        return next((name for name, sites in self.site_groups.items() if site in sites), None)

    @property
    def positive_class(self) -> int | None:
        """Index of the positive class of a two-class question; None otherwise."""
        if len(self.classes) != 2:
            return None
        return 1 if self.positive is None else self.classes.index(self.positive)


UNKNOWN = "unknown"
"""The site of cases whose site is not known, and the patient named where no patient is."""


@dataclass(frozen=True)
class Case:
    """One image with its known targets.

    Attributes:
        image: absolute path; a folder is a DICOM series. Of several channels the first that is there.
        slice_index: the case is this slice (0-based, along the third axis) of the volume `image`, and of
            its label maps if they are volumes.
        targets: the known targets, by name: class index (int), findings (tuple of True, False or None),
            number (float), or absolute path of a label map.
        reference: ground-truth label map of structures, used only for evaluation. None: there is none.
        split: the part given in the table, or None.
        extra: further columns, as text.
        channels: absolute path of each channel's image, by its name, those that are there; empty where the
            cohort's cases have one image.
    """

    case_id: str
    patient_id: str
    site: str
    image: Path
    slice_index: int | None = None
    targets: Mapping[str, TargetValue] = field(default_factory=dict)
    split: Literal["train", "validation", "test"] | None = None
    reference: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    channels: Mapping[str, Path] = field(default_factory=dict)

    @property
    def label(self) -> int | None:
        """Class index of the target `label`; None: unknown."""
        return self.targets.get("label")

    @property
    def mask(self) -> Path | None:
        """Label map of the target `mask`; None: unknown."""
        return self.targets.get("mask")

    @property
    def structures(self) -> Path | None:
        """Label map of the target `structures`; None: unknown."""
        return self.targets.get("structures")

    @property
    def label_maps(self) -> Mapping[str, Path]:
        """The targets that are label maps."""
        return {name: value for name, value in self.targets.items() if isinstance(value, Path)}

    @property
    def images(self) -> Mapping[str, Path]:
        """Its images by what a message calls them: `image`, or each channel that is there."""
        return {f"channel {name}": path for name, path in self.channels.items()} or {"image": self.image}


@dataclass(frozen=True)
class Cohort:
    """A cohort in memory: only paths and names, no voxels."""

    folder: Path
    spec: CohortSpec
    cases: tuple[Case, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites in the order of their names."""
        return tuple(sorted({case.site for case in self.cases}))


def read_cohort(folder: str | os.PathLike[str], *, allow_outside: bool = False) -> Cohort:
    """Read cohort.yaml and cases.csv.

    Reads only these two files; `audit` checks the image files they refer to.

    Args:
        folder: the cohort's folder.
        allow_outside: accept paths of cases and atlases outside the folder (`../`, absolute, links).

    Raises:
        CohortError: with the file, row and column, what was expected and what was found. Rows are numbered
            as in a spreadsheet: the header is row 1.
    """
    # Not at the top: table.py needs Case and CohortSpec from here.
    from threefold.cohorts.table import read_rows

    folder = Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.is_file() else "nothing"
        raise CohortError(
            f"{folder}: expected a cohort, that is a folder with {SPEC_NAME} and {TABLE_NAME}; found {found}."
        )
    for name in (SPEC_NAME, TABLE_NAME):
        if not (folder / name).is_file():
            raise CohortError(
                f"{folder}: no {name}. A cohort is a folder with {SPEC_NAME} and {TABLE_NAME}; "
                "`threefold import --help` lists ways to make one."
            )
    spec = read_spec(folder)
    if not allow_outside:
        _refuse_atlases_outside(folder, spec)
    return Cohort(folder, spec, read_rows(folder / TABLE_NAME, spec, allow_outside=allow_outside))


def read_spec(folder: Path) -> CohortSpec:
    """Read only cohort.yaml.

    Raises:
        CohortError: with the key and the nearest valid one.
    """
    path = folder / SPEC_NAME
    return parse_spec(CohortSpec, read_yaml(path, CohortError), where=str(path), error=CohortError)


def write_cohort(
    folder: Path, spec: CohortSpec, rows: Iterable[Mapping[str, Any]], *, allow_outside: bool = False
) -> Cohort:
    """Write cohort.yaml and cases.csv (both renamed into place), and read them back.

    Args:
        folder: created if it does not exist.
        spec: written to cohort.yaml without defaults.
        rows: a mapping from column to value for each case. None and a missing key leave the cell empty;
            `label` is a class name; paths are relative to `folder`.
        allow_outside: accept paths outside the folder.

    Raises:
        CohortError: if the rows are not a valid table (nothing is written then), or writing fails.
    """
    from threefold.cohorts.table import declared_columns, format_rows, parse_table

    folder = Path(folder)
    if not allow_outside:
        _refuse_atlases_outside(folder, spec)
    table = format_rows(rows, declared_columns(spec), spec.image_columns)
    cases = parse_table(table, folder / TABLE_NAME, spec, allow_outside=allow_outside)
    meaning = yaml.safe_dump(
        spec.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TABLE_NAME, table)
        write_atomically(folder / SPEC_NAME, meaning)
    except (OSError, RunError) as error:
        raise CohortError(f"{folder}: the cohort could not be written: {error}") from error
    return Cohort(folder, spec, cases)


def fingerprint(cohort: Cohort) -> str:
    """Return the SHA-256 (hex) of a cohort's description and table.

    It does not depend on the order of the rows or of the columns, nor on where the folder lies; voxels are
    not looked at.
    """
    content = {
        "spec": _meaning(cohort.spec),
        "cases": [
            _relative(case, cohort.folder) for case in sorted(cohort.cases, key=lambda case: case.case_id)
        ],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse_atlases_outside(folder: Path, spec: CohortSpec) -> None:
    boundary = Boundary(folder, "the cohort's folder")
    for atlas in spec.atlases:
        for key in ("image", "structures"):
            how = boundary.leaves(getattr(atlas, key))
            if how is not None:
                raise CohortError(
                    f"{folder / SPEC_NAME}: atlas '{atlas.name}', {key}: {how}. Copy the file into the "
                    "folder, or allow it by name (--allow-outside)."
                )


def _meaning(spec: CohortSpec) -> dict[str, Any]:
    """Return cohort.yaml as plain data; what earlier versions did not know is left out where it says nothing,
    so that their fingerprints hold."""
    data = spec.model_dump(mode="json", exclude={"not_duplicates", "codes"})  # of no meaning to a training
    if not spec.targets:
        del data["targets"]
    if not spec.unknown:
        del data["unknown"]
    if spec.mask is not None and spec.mask.outside == (0,):
        del data["mask"]["outside"]
    if spec.channels:
        data["channels"] = [*spec.channels.items()]  # in their order
    else:
        del data["channels"], data["missing_channels"]
    return data


def _relative(case: Case, folder: Path) -> dict[str, Any]:
    def relative(value: TargetValue) -> TargetValue:
        if isinstance(value, Path):
            return Path(os.path.relpath(value, folder.absolute())).as_posix()
        return value

    row = {name: relative(value) for name, value in vars(case).items()}
    targets = {name: relative(value) for name, value in case.targets.items()}
    short = {name: targets.pop(name, None) for name in SHORT_KINDS}
    del row["targets"]
    if case.channels:
        row["channels"] = {name: relative(path) for name, path in case.channels.items()}
    else:
        del row["channels"]
    return {**row, **short, **({"targets": targets} if targets else {}), "extra": dict(case.extra)}


def _refuse_reserved(key: str, names: Iterable[str], reserved: Collection[str]) -> None:
    taken = [name for name in names if name in reserved]
    if taken:
        raise ValueError(f"{key}: the program's own tables use the name '{taken[0]}'; choose another")
