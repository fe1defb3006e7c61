"""What a propagation says: grid, registration network, refinement, and when a registration has failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from threefold.errors import ExperimentError
from threefold.experiment.spec import Fraction, NonNegative, Positive, PositiveInt, Seed, Spec
from threefold.experiments import apply_override
from threefold.validation import parse_spec


class FailureSpec(Spec):
    """When a registration has failed: its case gets no structures, so that training leaves it out."""

    min_mask_dice: Fraction = 0.3
    """Smallest Dice of the propagated structures' union with the case's mask, where it has one."""
    max_folding: Fraction = 0.01
    """Largest share of voxels where the field folds (Jacobian determinant not above 0)."""
    min_gain: float = -0.02
    """Smallest rise of the images' local correlation (0 to 1) over the affine alignment."""


class PropagationSpec(Spec):
    """How atlases are registered to cases."""

    size: Annotated[tuple[PositiveInt, ...], Field(min_length=3, max_length=3)] = (96, 96, 96)
    """Voxels of the grid on which images are registered; the case's image is scaled to fit it."""
    spacing: Positive | None = None
    """mm per voxel of that grid, instead of a size; null: as `size` says."""
    affine: bool = True
    """Start from an affine alignment of atlas and image; false: from where their files say that they lie."""
    affine_steps: Annotated[int, Field(ge=0)] = 40
    """Steps of the affine alignment at each of its resolutions; 0: centres only."""
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (16, 32, 32, 32, 32, 32)
    """VoxelMorph's U-Net: for each resolution, from the finest, channels on the way down and up."""
    final_channels: tuple[PositiveInt, ...] = (16, 16)
    """Channels of VoxelMorph's last convolutions at full resolution."""
    diffeomorphic: bool = True
    """The network predicts a stationary velocity that is integrated, so that the field can't fold; false:
    the displacement itself."""
    integration_steps: PositiveInt = 7
    """Squarings of the integration."""
    epochs: Annotated[int, Field(ge=0)] = 30
    """Passes over all pairs of an atlas and a case; 0: the weights given, or no network at all."""
    learning_rate: Positive = 4e-4
    """Of Adam, in training the network."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the network's convolutions in bfloat16; in float32 on CPUs that don't multiply it."""
    window: Annotated[int, Field(ge=3)] = 5
    """Side of the window of the local normalised cross-correlation, voxels; odd."""
    smoothness: Literal["diffusion", "bending"] = "diffusion"
    """Penalty on the field: squared first derivatives, or squared second derivatives."""
    smoothness_weight: NonNegative = 0.3
    """Of the penalty, against the local correlation."""
    mask_weight: NonNegative = 0.0
    """Of the soft Dice loss between the atlas's warped structures and the case's mask; 0: masks don't steer.
    Masks of test cases never do: those that the table's split column calls test, and in a chain those that
    any stage tests."""
    refinement_steps: Annotated[int, Field(ge=0)] = 20
    """Steps of the optimisation of each case's own field, from the network's prediction, at each of three
    resolutions; 0: the prediction as it is."""
    refinement_learning_rate: Positive = 0.2
    """Of Adam, in voxels."""
    weights: str | None = None
    """File of a network to start from: `registration/weights.safetensors` of an earlier propagation with the
    same channels."""
    seed: Seed = 0
    """Of the network's first weights and of the order of pairs."""
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
