"""Settings of the data: split, preprocessing, augmentation, sampling."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from threefold.experiment.spec import Fraction, NonNegative, Positive, PositiveInt, Seed, Spec


class SplitSpec(Spec):
    """The split into training, validation and test cases."""

    kind: Literal["patient", "site", "leave-one-site-out", "slice", "column"] = "patient"
    """patient: grouped by patient, stratified by label and site; with `folds`, fold number `fold` is the test
    part. site: the held-out sites are the test part. leave-one-site-out: site number `fold` is the test
    part. slice: random cases, which LEAKS patients. column: given by the table's `split` column."""
    hold_out: tuple[str, ...] | None = None
    """Sites, or site groups of cohort.yaml, whose cases are test cases for every kind. null: for the kinds
    patient, site and slice the site group `external` if it exists, else none."""
    validation: Fraction = 0.15
    """Proportion of the patients (slice: cases) that are not held out, nor in the fold that is tested."""
    test: Fraction = 0.2
    """Proportion of the patients (slice: cases) that are not held out; not used by the site kinds, nor with
    folds."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """patient: number of folds that the patients who are not held out are divided into, stratified likewise;
    null: no folds."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which one is the test part: with folds, index of the fold; leave-one-site-out: index of the site in
    alphabetical order."""
    seed: Seed = 0
    """Random seed of the split."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.folds is not None and self.kind != "patient":
            raise ValueError(f"folds are of patients, but kind is {self.kind}; leave one of the two out")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds} does not exist: they count from 0")
        return self


class PreprocessingSpec(Spec):
    """Preprocessing of an image to the network's input."""

    size: tuple[PositiveInt, ...] = (224, 224)
    """Voxels per axis of the network's grid (2 or 3 axes); the image is scaled to fit, then padded."""
    spacing: Positive | tuple[Positive, ...] | None = None
    """mm per voxel of the network's grid, one number or one per axis. The image is resampled to it and padded
    if it is smaller than `size`. If it is larger, training crops it to that size around the centre of the
    case's mask or structures (else of the image), and prediction uses the whole image: in one pass if that
    fits into memory, else in windows of `size`. null: scaled to fit."""
    windows: tuple[str | tuple[float, float], ...] | None = None
    """One channel per intensity window: a name (brain, subdural, bone) or [low, high] in the cohort's unit.
    null: the cohort's own window, one channel."""

    @model_validator(mode="after")
    def _axes_match(self) -> Self:
        if isinstance(self.spacing, tuple) and len(self.spacing) != len(self.size):
            raise ValueError(
                f"spacing has {len(self.spacing)} numbers and size {len(self.size)}; expected one number, or "
                "one per axis"
            )
        return self


class AugmentationSpec(Spec):
    """Random augmentation of training batches; each transform is off at 0."""

    flip: Fraction | tuple[Fraction, ...] = 0.0
    """Probability of a flip along each spatial axis: one number for all axes, or one per axis. Axes are rows
    and columns for slices, right, anterior and superior for volumes: [0, 0.5] mirrors an axial slice left to
    right."""
    quarter_turns: bool = False
    """2D: rotate by 0, 90, 180 or 270 degrees at random."""
    probability: Fraction = 1.0
    """Probability of each of the following transforms, drawn independently per case; rotation, scale, shear
    and translation count as one transform."""
    rotation: NonNegative = 0.0
    """Maximum rotation in degrees, uniform in both directions; in 3D about each axis."""
    rotation_probability: Fraction = 1.0
    """Proportion of the cases that are rotated."""
    scale: Fraction = 0.0
    """Maximum relative change of size, in both directions; in 3D per axis."""
    shear: NonNegative = 0.0
    """Maximum shear factor, in both directions: voxels of shift along one axis per voxel of another (2D: 2
    factors, 3D: 3)."""
    translation: NonNegative = 0.0
    """Maximum shift along each axis, in both directions, in voxels."""
    intensity_shift: NonNegative = 0.0
    """Maximum offset added to the 0..1 image, in both directions."""
    intensity_scale: NonNegative = 0.0
    """Maximum relative change of contrast around the image's mean, in both directions."""
    smooth: NonNegative = 0.0
    """Maximum standard deviation of a Gaussian filter, in voxels; drawn per axis between a sixth of this
    value and the value."""
    noise: NonNegative = 0.0
    """Maximum standard deviation of Gaussian noise added to the 0..1 image."""
    sharpen: NonNegative = 0.0
    """Maximum factor of the difference of two Gaussian filters that is added to the image; drawn between a
    third of this value and the value. The filters' standard deviations are drawn per axis: the finer 0.5 to 1
    voxels, the other from 0.5 voxels to that."""
    histogram_shift: Annotated[int, Field(ge=0)] = 0
    """Number of control points, at least 3, of an increasing, piecewise linear intensity transform: each of
    the evenly spaced inner points is shifted between its neighbours. Fewer points allow larger shifts."""
    gamma: NonNegative = 0.0
    """Maximum gamma exponent, above 0.5, of the intensities between the image's minimum and maximum; drawn
    between 0.5 and this value."""
    bias_field: NonNegative = 0.0
    """Maximum coefficient of a smooth multiplicative field: exp of a polynomial of degree 3, whose
    coefficients of Legendre products are drawn between 0 and this value."""

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
    """The data: split, preprocessing, augmentation, sampling."""

    split: SplitSpec = SplitSpec()
    preprocessing: PreprocessingSpec = PreprocessingSpec()
    augmentation: AugmentationSpec = AugmentationSpec()
    sampling: Literal["all", "balanced"] = "all"
    """all: each training case once per epoch. balanced: the same number of draws with replacement, with equal
    probability for each diagnosis; cases without a diagnosis are drawn as often as the average case."""
    cache: Literal["memory", "disk", "none"] = "memory"
    """Where to cache preprocessed cases: in memory (if they are estimated to fit), on disk, or not at all."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Number of data-loading processes; 0 loads in the training process."""
