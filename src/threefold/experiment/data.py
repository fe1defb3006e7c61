"""Which cases, on which grid."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from threefold.experiment.spec import Fraction, NonNegative, Positive, PositiveInt, Seed, Spec


class SplitSpec(Spec):
    """Who trains, who validates, who tests."""

    kind: Literal["patient", "site", "leave-one-site-out", "slice", "column"] = "patient"
    """patient: grouped by patient, stratified by label and site. site: the held-out sites are the test
    part. leave-one-site-out: site number `fold` is the test part. slice: cases at random, which LEAKS
    patients. column: as the table's `split` column says."""
    hold_out: tuple[str, ...] | None = None
    """Sites, or site groups of cohort.yaml, whose cases are test cases whatever the kind. null: for the
    kinds patient, site and slice the site group `external` where cohort.yaml has one, else none."""
    validation: Fraction = 0.15
    """Share of the patients (slice: cases) that are not held out."""
    test: Fraction = 0.2
    """Share of the patients (slice: cases) that are not held out; unused by the site kinds."""
    fold: Annotated[int, Field(ge=0)] = 0
    """leave-one-site-out: which site, in the order of their names."""
    seed: Seed = 0
    """Of the draw of patients (slice: cases)."""


class PreprocessingSpec(Spec):
    """From an image in its own units and grid to the network's input."""

    size: tuple[PositiveInt, ...] = (224, 224)
    """Voxels per axis of the network's grid (2 or 3 axes); the image is scaled to fit, then padded."""
    spacing: Positive | tuple[Positive, ...] | None = None
    """mm per voxel of the network's grid, one number or one per axis. The image is resampled to it and padded
    where it is smaller than `size`. Where it is larger, training takes the part of that size about the
    middle of the case's mask or structures (else of the image), and prediction the whole image: in one pass
    where that fits into memory, else in windows of `size`. None: scaled to fit."""
    windows: tuple[str | tuple[float, float], ...] | None = None
    """One channel per intensity window: a name (brain, subdural, bone) or [low, high] in the cohort's unit.
    None: the cohort's own window, one channel."""

    @model_validator(mode="after")
    def _axes_match(self) -> Self:
        if isinstance(self.spacing, tuple) and len(self.spacing) != len(self.size):
            raise ValueError(
                f"spacing has {len(self.spacing)} numbers and size {len(self.size)}; expected one number, or "
                "one per axis"
            )
        return self


class AugmentationSpec(Spec):
    """Random changes of a training batch; each is off at 0."""

    flip: Fraction = 0.0
    """Probability of a flip, drawn for each spatial axis."""
    quarter_turns: bool = False
    """2D: rotate by 0, 90, 180 or 270 degrees at random."""
    probability: Fraction = 1.0
    """Share of the cases that each of the changes below is made to, drawn for each by itself; rotation,
    scale, shear and translation are one change."""
    rotation: NonNegative = 0.0
    """Largest rotation to either side, degrees; drawn evenly, in 3D about each axis."""
    rotation_probability: Fraction = 1.0
    """Share of the cases that are rotated."""
    scale: Fraction = 0.0
    """Largest relative change of size, to either side; in 3D drawn for each axis."""
    shear: NonNegative = 0.0
    """Largest shear factor, to either side: voxels moved along one axis per voxel of another (2D: 2 factors,
    3D: 3)."""
    translation: NonNegative = 0.0
    """Largest shift along each axis, to either side, voxels."""
    intensity_shift: NonNegative = 0.0
    """Largest offset added to the 0..1 image, to either side."""
    intensity_scale: NonNegative = 0.0
    """Largest relative change of contrast about the image's mean, to either side."""
    smooth: NonNegative = 0.0
    """Largest standard deviation of a Gaussian filter, voxels; drawn for each axis between a sixth of it
    and it."""
    noise: NonNegative = 0.0
    """Largest standard deviation of added Gaussian noise on the 0..1 image."""
    sharpen: NonNegative = 0.0
    """Largest factor of the difference between two Gaussian filters that is added to the image; drawn
    between a third of it and it. The filters' standard deviations are drawn for each axis: the finer 0.5 to
    1 voxels, the other 0.5 voxels to that."""
    histogram_shift: Annotated[int, Field(ge=0)] = 0
    """Control points, at least 3, of a rising, piecewise linear change of intensities: each of the evenly
    spaced inner ones is moved to between its neighbours. Fewer points move them further."""
    gamma: NonNegative = 0.0
    """Largest exponent, above 0.5, of the intensities between the image's smallest and largest; drawn
    between 0.5 and it."""
    bias_field: NonNegative = 0.0
    """Largest coefficient of a smooth field that multiplies the image: exp of a polynomial of degree 3,
    whose coefficients of Legendre products are drawn between 0 and it."""

    @model_validator(mode="after")
    def _ranges_are_not_empty(self) -> Self:
        if self.histogram_shift in (1, 2):
            raise ValueError(
                f"histogram_shift: {self.histogram_shift} control points leave none to move; expected 0 "
                "(off) or at least 3"
            )
        if 0 < self.gamma <= 0.5:
            raise ValueError(
                f"gamma: exponents are drawn between 0.5 and {self.gamma}; expected 0 (off) or more than 0.5"
            )
        return self


class DataSpec(Spec):
    """Which cases, on which grid."""

    split: SplitSpec = SplitSpec()
    preprocessing: PreprocessingSpec = PreprocessingSpec()
    augmentation: AugmentationSpec = AugmentationSpec()
    sampling: Literal["all", "balanced"] = "all"
    """all: each training case once an epoch. balanced: as many draws, with replacement, each diagnosis
    equally likely; cases without one are drawn as often as the average case."""
    cache: Literal["memory", "disk", "none"] = "memory"
    """Preprocessed cases are kept in memory (after an estimate that they fit), on disk, or not."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read cases; 0 reads in the training process."""
