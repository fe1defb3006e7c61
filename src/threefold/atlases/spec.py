"""Settings of a propagation: grid, registration network, refinement, failure criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from threefold.errors import ExperimentError
from threefold.experiment.spec import Fraction, NonNegative, Positive, PositiveInt, Seed, Spec
from threefold.experiments import apply_override
from threefold.validation import parse_spec


class FailureSpec(Spec):
    """Criteria of a failed registration, whose case gets no structures and is not used for training, and of
    one to check, whose case keeps them."""

    max_score: Fraction = 0.9
    """Maximum estimated probability that the true Dice is below 0.6; above, the registration has failed."""
    check_score: Fraction = 0.5
    """The same probability above which a registration is to be checked; both equal: those fail as well."""
    max_volume_change: Annotated[float, Field(gt=1)] = 4.0
    """Maximum factor by which a structure's volume changes beyond that of all structures; above: check."""
    max_inverse_error: Positive = 0.5
    """Maximum distance between the alignment and the one from image to atlas, as a share of half the image's
    side; above: check."""
    min_agreement: Fraction = 0.4
    """Minimum mean Dice between the labels of several atlases; below: check."""
    max_deviation: Positive = 5.0
    """Maximum deviation from the median of the cohort's registrations (at least 8), in robust standard
    deviations; above, in the direction of failure: check."""

    min_mask_dice: Fraction = 0.3
    """Minimum Dice of the union of the propagated structures with the case's mask, if it has one."""
    max_folding: Fraction = 0.01
    """Maximum proportion of folding voxels (Jacobian determinant not above 0)."""
    min_gain: float = -0.02
    """Minimum gain of the images' local correlation (0 to 1) over the affine alignment."""


class PropagationSpec(Spec):
    """Registration of atlases to cases."""

    size: Annotated[tuple[PositiveInt, ...], Field(min_length=3, max_length=3)] = (96, 96, 96)
    """Size in voxels of the registration grid; the case's image is scaled to fit it."""
    spacing: Positive | None = None
    """mm per voxel of the grid, instead of its size; null: given by `size`."""
    affine: bool = True
    """Start from an affine alignment of atlas and image; false: from the positions in their files."""
    affine_steps: Annotated[int, Field(ge=0)] = 40
    """Steps of the affine alignment at each resolution; 0: align only the centres."""
    affine_restarts: bool = True
    """Start a poor affine alignment again from turned and mirrored volumes; false: trust the orientation in
    the files."""
    match_by: str | None = None
    """A column of numbers, age for example: of more atlases than `most_atlases`, those nearest to the case
    are used. The atlases' numbers are their `values` in cohort.yaml. null: match by the images."""
    most_atlases: PositiveInt = 3
    """Maximum number of atlases registered to a case: of more, the nearest by `match_by`, else those most
    alike after the affine alignment."""
    fusion: Literal["best", "vote"] = "best"
    """Labels of several atlases. best: those of the atlas that correlates best; vote: a vote, weighted by
    local correlation, of those that have its class and nothing to check by `failure`."""
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (16, 32, 32, 32, 32, 32)
    """VoxelMorph's U-Net: encoder and decoder channels of each resolution, from the finest."""
    final_channels: tuple[PositiveInt, ...] = (16, 16)
    """Channels of VoxelMorph's last convolutions at full resolution."""
    diffeomorphic: bool = True
    """Predict a stationary velocity field and integrate it, so that the deformation cannot fold; false:
    predict the displacement field."""
    integration_steps: PositiveInt = 7
    """Squaring steps of the integration."""
    epochs: Annotated[int, Field(ge=0)] = 30
    """Passes over all pairs of atlas and case; 0: use the given weights, or no network."""
    learning_rate: Positive = 4e-4
    """Learning rate of Adam for the network."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the network's convolutions in bfloat16; float32 on CPUs without bfloat16 multiplication."""
    window: Annotated[int, Field(ge=3)] = 5
    """Window side of the local normalised cross-correlation in voxels; odd."""
    smoothness: Literal["diffusion", "bending"] = "diffusion"
    """Penalty on the field: squared first derivatives, or squared second derivatives."""
    smoothness_weight: NonNegative = 0.3
    """Weight of the penalty, relative to the local correlation."""
    mask_weight: NonNegative = 0.0
    """Weight of the soft Dice loss between the atlas's warped structures and the case's mask; 0: masks are
    not used. Masks of test cases are never used: those with `test` in the table's split column, and in a
    chain those tested by any stage."""
    refinement_steps: Annotated[int, Field(ge=0)] = 20
    """Optimisation steps of each case's own field, starting from the network's prediction, at each of three
    resolutions; 0: no refinement."""
    refinement_learning_rate: Positive = 0.2
    """Learning rate of Adam for the refinement, in voxels."""
    save_transforms: bool = False
    """Keep the affine maps and displacement fields in `transforms`, in ITK's formats."""
    weights: str | None = None
    """File of initial weights: `registration/weights.safetensors` of an earlier propagation with the same
    channels."""
    seed: Seed = 0
    """Random seed of the network's weights and of the order of pairs."""
    failure: FailureSpec = FailureSpec()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.window % 2 == 0:
            raise ValueError(f"window is {self.window}; expected an odd number of voxels")
        if len(self.channels) % 2:
            raise ValueError(f"channels has {len(self.channels)} numbers; expected two per resolution")
        return self


def load_propagation(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> PropagationSpec:
    """Return the propagation that plain values and `key=value` overrides describe.

    Raises:
        ExperimentError: naming the key and the nearest valid one.
    """
    data = dict(values)
    for override in overrides:
        apply_override(data, override)
    return parse_spec(PropagationSpec, data, where="propagation", error=ExperimentError)
