"""Which cases, on which grid."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from threefold.experiment.spec import Fraction, NonNegative, PositiveInt, Seed, Spec


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
    windows: tuple[str | tuple[float, float], ...] | None = None
    """One channel per intensity window: a name (brain, subdural, bone) or [low, high] in the cohort's unit.
    None: the cohort's own window, one channel."""


class AugmentationSpec(Spec):
    """Random changes of a training batch; each is off at 0."""

    flip: Fraction = 0.0
    """Probability of a flip, drawn for each spatial axis."""
    quarter_turns: bool = False
    """2D: rotate by 0, 90, 180 or 270 degrees at random."""
    rotation: NonNegative = 0.0
    """Largest rotation to either side, degrees; drawn evenly."""
    rotation_probability: Fraction = 1.0
    """Share of the cases that are rotated."""
    scale: Fraction = 0.0
    """Largest relative change of size, to either side."""
    intensity_shift: NonNegative = 0.0
    """Largest offset added to the 0..1 image, to either side."""
    intensity_scale: NonNegative = 0.0
    """Largest relative change of contrast about the image's mean, to either side."""
    noise: NonNegative = 0.0
    """Largest standard deviation of added Gaussian noise on the 0..1 image."""


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
