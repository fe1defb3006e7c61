"""What a training part's images state and hold, for `cohorts.meaning` to hold other images against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.channels import read_case_image
from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.targets import read_mask
from threefold.cohorts.voxel_values import Values, measure
from threefold.errors import ImageError, RunError
from threefold.experiment import Spec
from threefold.images.facts import Facts
from threefold.images.geometry import plane_of, tilt_of
from threefold.images.preprocessing import canonical_axes
from threefold.run import COPY_AGAIN
from threefold.validation import parse_spec, read_json

MEASURED = 48
"""Training images that are measured at most: enough for their ranges, and cheap beside an epoch."""


Range = tuple[float, float]


class Intensities(Spec):
    """Ranges, over images, of what `Values` holds of each."""

    low: Range
    p1: Range
    p50: Range
    p75: Range
    p99: Range
    high: Range
    air: Range
    """Share of voxels that are air, if values are CT numbers."""
    coherence: Range | None = None
    """This and what follows: null where no image tells it, and in runs of earlier versions."""
    body50: Range | None = None
    body75: Range | None = None
    shown: Range | None = None


class TrainedOn(Spec):
    """What the images that a network was trained on stated and held: trained_on.json of a run.

    Counts are of the measured images, by what they state; ranges are lowest and highest over them.
    """

    cases: int
    """Of the training part."""
    measured: int
    """How many of them were measured: all, or as many evenly spread."""
    formats: dict[str, int]
    modalities: dict[str, int]
    """DICOM Modality, of the images that state one."""
    units: dict[str, int]
    photometric: dict[str, int]
    bits: dict[str, int]
    spacing_mm: tuple[Range, ...] | None
    """Along canonical axes (`images.preprocessing`); null: no image states it."""
    extent_mm: tuple[Range, ...] | None
    """Side of an image along canonical axes; null: no image states it."""
    thickness_mm: Range | None
    """SliceThickness, of the images that state one."""
    kernels: dict[str, int] | None = None
    """ConvolutionKernel, of images that state one; this and the next: null in runs of earlier versions."""
    field_strength: Range | None = None
    """Tesla, of the images that state one."""
    size: tuple[Range, ...]
    """Voxels along canonical axes."""
    intensities: Intensities
    planes: dict[str, int] | None = None
    """How many images lie in each plane (`plane_of`), of those that state their place; null: not known."""
    tilt_degrees: Range | None = None
    """Of the image's axes against the patient's (`tilt_of`); null: not known."""
    channels: dict[str, Intensities] | None = None
    """Of several channels, by name; `intensities` then are the first's, and counts go over all."""
    mask_follows_label: bool | None
    """Every positive case that has a mask has something in it, and no negative case has; null: not known."""

    def of_channel(self, name: str) -> TrainedOn:
        """Return this with the intensities of a channel."""
        known = (self.channels or {}).get(name)
        return self if known is None else self.model_copy(update={"intensities": known})


def describe_training(cases: Sequence[Case], spec: CohortSpec) -> TrainedOn:
    """Measure the images of a training part; the same cases give the same numbers.

    Args:
        cases: of the training part.
        spec: of their cohort.

    Raises:
        ImageError: naming the case whose image or mask can't be read.
    """
    measured = [_measure(case, spec) for case in _spread(sorted(cases, key=lambda case: case.case_id))]
    images = [one for parts in measured for one in parts]
    by_channel = {name: [one for one in images if one.channel == name] for name in spec.channels}
    intensities = {name: _intensities(found) for name, found in by_channel.items() if found}
    stated = [one for one in images if one.facts.spacing_stated]
    placed = [one for one in images if one.facts.place_stated]
    return TrainedOn(
        cases=len(cases),
        measured=len(measured),
        formats=_counts(one.facts.format for one in images),
        modalities=_counts(one.facts.modality for one in images),
        units=_counts(one.facts.unit for one in images),
        photometric=_counts(one.facts.photometric for one in images),
        bits=_counts(one.facts.bits for one in images),
        spacing_mm=_along_axes([one.spacing for one in stated]) if stated else None,
        extent_mm=_along_axes([one.extent for one in stated]) if stated else None,
        thickness_mm=_range([one.facts.slice_thickness for one in images]),
        kernels=_counts(one.facts.kernel for one in images),
        field_strength=_range([one.facts.field_strength for one in images]),
        size=_along_axes([one.size for one in images]),
        intensities=next(iter(intensities.values()), None) or _intensities(images),
        channels=intensities or None,
        planes=_counts(plane_of(one.affine) for one in placed) if placed else None,
        tilt_degrees=_range([tilt_of(one.affine, spec.dimensions) for one in placed]),
        mask_follows_label=_mask_follows_label(images, spec),
    )


def _intensities(images: Sequence[_Measured]) -> Intensities:
    ranges = {
        name: _range([getattr(one.values, name) for one in images]) for name in Intensities.model_fields
    }
    return Intensities.model_validate(ranges)


def read_trained_on(path: Path) -> TrainedOn | None:
    """Read trained_on.json; None where there is none, as in runs of earlier versions.

    Raises:
        RunError: it is damaged.
    """
    if not path.exists():
        return None
    content = read_json(path, RunError, COPY_AGAIN)
    return parse_spec(TrainedOn, content, where=str(path), error=RunError, remedy=COPY_AGAIN)


def trained_on_together(several: Sequence[TrainedOn | None]) -> TrainedOn | None:
    """Return what networks that predict together were trained on: all counts, and the ranges over all.

    None where it is not known of one of them.
    """
    known = [one for one in several if one is not None]
    if len(known) < len(several):
        return None
    content = [one.model_dump() for one in known]
    merged = {name: _merged([one[name] for one in content]) for name in TrainedOn.model_fields}
    follows = {one.mask_follows_label for one in known}
    return TrainedOn.model_validate(
        {**merged, "mask_follows_label": follows.pop() if len(follows) == 1 else None}
    )


def _merged(values: Sequence[Any]) -> Any:
    """Return the sum of counts, the whole of ranges, part by part; of what one does not tell, the others'."""
    told = [value for value in values if value is not None]
    if not told:
        return None
    if isinstance(told[0], dict):
        names = dict.fromkeys(name for value in told for name in value)
        return {name: _merged([value.get(name) for value in told]) for name in names}
    if isinstance(told[0], tuple):
        if all(isinstance(end, float) for end in told[0]):
            return min(low for low, _ in told), max(high for _, high in told)
        return tuple(_merged(axis) for axis in zip(*told, strict=True))
    return sum(told)


@dataclass(frozen=True)
class _Measured:
    """A training image: what its file states, and what it holds along canonical axes.

    Attributes:
        mask: whether its mask has anything in it; None: it has none.
        channel: the name of the channel that it is; empty: its case has one image.
    """

    label: int | None
    facts: Facts
    values: Values
    spacing: tuple[float, ...]
    size: tuple[float, ...]
    affine: NDArray[np.float64]
    mask: bool | None
    channel: str = ""

    @property
    def extent(self) -> tuple[float, ...]:
        """Side along each axis, mm."""
        return tuple(n * mm for n, mm in zip(self.size, self.spacing, strict=True))


def _measure(case: Case, spec: CohortSpec) -> list[_Measured]:
    """Measure a case's image, or each of its channels."""
    try:
        image = read_case_image(case, spec)
        mask = None
        if case.mask is not None:
            mask = bool(np.asarray(read_mask(case.mask, case.slice_index, image, spec).array).any())
    except ImageError as error:
        raise ImageError(f"case {case.case_id}: {error}") from error
    axes, _ = canonical_axes(image.affine, image.array.ndim)
    return [
        _Measured(
            case.label,
            part.facts,
            measure(np.asarray(part.array), spec.intensity),
            tuple(image.spacing[axis] for axis in axes),
            tuple(image.array.shape[axis] for axis in axes),
            image.affine,
            mask,
            channel,
        )
        for channel, part in image.parts.items()
    ]


def _mask_follows_label(images: Iterable[_Measured], spec: CohortSpec) -> bool | None:
    """Whether masks have something in them in positive cases, and in those alone; None: it can't be told."""
    if spec.positive_class is None:
        return None
    masks = [(one.label == spec.positive_class, one.mask) for one in images if one.label is not None]
    known = [(positive, mask) for positive, mask in masks if mask is not None]
    if not any(positive for positive, _ in known) or all(positive for positive, _ in masks):
        return None
    return all(positive == mask for positive, mask in known)


def _spread(cases: Sequence[Case]) -> list[Case]:
    """Return at most MEASURED cases, from the first to the last at even distances."""
    count = min(len(cases), MEASURED)
    return [cases[index] for index in np.linspace(0, len(cases) - 1, count).round().astype(int)]


def _counts(stated: Iterable[object]) -> dict[str, int]:
    counts = Counter(str(value) for value in stated if value is not None)
    return dict(sorted(counts.items()))


def _range(values: Iterable[float | None]) -> Range | None:
    found = [float(value) for value in values if value is not None]
    return (min(found), max(found)) if found else None


def _along_axes(values: Sequence[tuple[float, ...]]) -> tuple[Range, ...]:
    return tuple((float(min(axis)), float(max(axis))) for axis in zip(*values, strict=True))
