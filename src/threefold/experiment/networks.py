"""Settings of the networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from threefold.experiment.spec import ByKind, Fraction, PositiveInt, Spec, kinds_in
from threefold.experiment.tasks import HeadKind

_SWIN_SIZES: dict[str, dict[str, Any]] = {
    # Field names as in the Swin paper; the hematoma paper says: 2 or 6 blocks in stage 3, channels up to 96.
    "mini": {"embed_dim": 24, "depths": (2, 2, 2, 2), "heads": (3, 6, 12, 24)},
    "tiny": {"embed_dim": 48, "depths": (2, 2, 2, 2), "heads": (3, 6, 12, 24)},
    "default": {"embed_dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "public": {"embed_dim": 96, "depths": (2, 2, 2, 2), "heads": (3, 6, 12, 24)},
}


class SwinSpec(Spec):
    """The Swin encoder (Liu et al. 2021), and by mirror the Swin-Unet decoders (Cao et al. 2021)."""

    size: Literal["mini", "tiny", "default", "public"] = "public"
    """Preset of embed_dim, depths and heads."""
    embed_dim: PositiveInt = 96
    """Channels of the first stage; they double at each patch merging."""
    depths: tuple[PositiveInt, ...] = (2, 2, 2, 2)
    """Transformer blocks per stage."""
    heads: tuple[PositiveInt, ...] = (3, 6, 12, 24)
    """Attention heads per stage."""
    window: PositiveInt = 7
    """Tokens along a side of an attention window."""
    patch: PositiveInt = 4
    """Pixels along a side of a patch."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    drop_path: Fraction = 0.1
    """Stochastic depth rate of the last block; it increases linearly from 0 at the first."""
    initialisation: Literal["published", "xavier"] = "published"
    """published: truncated normal with standard deviation 0.02 for linear layers, suitable for hundreds of
    channels. xavier: scaled by each layer's size (Glorot and Bengio 2010), for narrow networks trained from
    scratch."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass, to save memory at the cost of time."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**_SWIN_SIZES.get(str(data.get("size")), {}), **data}

    @model_validator(mode="after")
    def _stages_match(self) -> Self:
        if len(self.depths) != len(self.heads):
            raise ValueError(f"depths has {len(self.depths)} stages and heads {len(self.heads)}")
        for stage, heads in enumerate(self.heads):
            if (self.embed_dim * 2**stage) % heads:
                raise ValueError(
                    f"stage {stage + 1} has {self.embed_dim * 2**stage} channels, "
                    f"which {heads} heads do not divide"
                )
        return self


class NetworkBase(Spec):
    """Common settings of a network.

    Attributes:
        serves: the kinds of heads it supports.
        axes: the numbers of image axes it supports.
        code: module:class of the network, constructed from (spec, in_channels, heads) and, if it takes them,
            `dimensions` or `size` of the image.
    """

    serves: ClassVar[tuple[HeadKind, ...]] = ("pooled", "dense", "restored")
    axes: ClassVar[tuple[int, ...]] = (2, 3)
    code: ClassVar[str]


class SwinUnetSpec(NetworkBase):
    """MTL-Swin-Unet (arXiv 2505.06185): one encoder, with a decoder or head for each task."""

    axes = (2,)
    code = "threefold.networks.swin_unet:SwinUnet"

    kind: Literal["swin-unet"] = "swin-unet"
    encoder: SwinSpec = SwinSpec()


class JointSwinSpec(NetworkBase):
    """Joint-SwinTransformer: a classifier on its own encoder's pooled features, concatenated with those of
    the frozen encoder of the experiment named in `pretrain`."""

    serves = ("pooled",)
    axes = (2,)
    code = "threefold.networks.joint:JointSwin"

    kind: Literal["joint-swin"] = "joint-swin"
    encoder: SwinSpec = SwinSpec()


class AttentionUnetSpec(NetworkBase):
    """Attention U-Net (Oktay et al. 2018): the segmenter of the aortic-arch system (arXiv 2311.07234).

    With a classification task, a head on the pooled deepest features shares the encoder.
    """

    serves = ("pooled", "dense")
    code = "threefold.networks.attention_unet:AttentionUnet"

    kind: Literal["attention-unet"] = "attention-unet"
    channels: tuple[PositiveInt, ...] = Field(default=(32, 64, 128, 256, 512), min_length=2)
    """Channels of each level; each level halves the resolution."""
    dropout: Fraction = 0.2
    initialisation: Literal["default", "published"] = "default"
    """default: PyTorch's initialisation of each layer. published: Xavier normal with gain 0.1, as in the
    paper's implementation."""
    background_prior: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Initial background probability of the segmenter, set by the bias of its last layer (Lin et al. 2017,
    arXiv 1708.02002, section 3.3), so that structures of few voxels are not pushed to zero before they can be
    distinguished; null: no prior."""
    pooling: Literal["image", "region", "image+region"] = "image"
    """Features of the image-level heads. image: the deepest features, averaged over the image. region: the
    features of all encoder and decoder levels, averaged over the predicted region, each voxel weighted by the
    foreground probability of the first segmentation task. image+region: both."""
    detach_mask: bool = False
    """With pooling region, stop the gradient of the image-level heads at the weights of the voxels, so that
    only the segmentation task shapes the region."""

    @model_validator(mode="after")
    def _detaches_what_it_uses(self) -> Self:
        if self.detach_mask and self.pooling == "image":
            raise ValueError("detach_mask needs pooling: region or image+region")
        return self


class DenseNetSpec(NetworkBase):
    """DenseNet121 (Huang et al. 2017) with instance normalisation: the classifier of the aortic-arch
    system (arXiv 2311.07234)."""

    serves = ("pooled",)
    code = "threefold.networks.densenet:DenseNet"

    kind: Literal["densenet"] = "densenet"
    blocks: tuple[PositiveInt, ...] = (6, 12, 24, 16)
    """Dense layers of each block; the resolution is halved between blocks."""
    growth: PositiveInt = 32
    """Channels added by each dense layer."""
    stem: PositiveInt = 64
    """Channels before the first block."""
    dropout: Fraction = 0.2


class MaskShapeSpec(Spec):
    """A linear layer on shape features of the predicted mask (after Hooper et al. 2023, segmentation for
    classification): for each structure its size, its largest probability, its spread along the principal axes
    and, in 2D, the harmonics of its outline.
    """

    kind: Literal["mask-shape"] = "mask-shape"
    harmonics: PositiveInt = 8
    """Harmonics of the outline, from the first on; 2D only."""


class CascadeSpec(NetworkBase):
    """A segmenter followed by a classifier of its output (arXiv 2311.07234)."""

    serves = ("pooled", "dense")
    code = "threefold.networks.cascade:Cascade"

    kind: Literal["cascade"] = "cascade"
    segmenter: AttentionUnetSpec = AttentionUnetSpec()
    classifier: Annotated[DenseNetSpec | MaskShapeSpec, ByKind("densenet")] = DenseNetSpec()
    """kind: densenet, or mask-shape, whose input is structures or region."""
    classifier_input: Literal[
        "structures", "region", "image+structures", "image+region", "gated+structures", "gated+region"
    ] = "structures"
    """structures: the softmax of all labels, background included ("multi"). region: two channels, the
    background's probability and that of all structures together ("binary"). With image+ before: the image's
    channels first. With gated+ before: those channels multiplied by the probability of all structures
    together, so that the image is visible only inside the predicted region."""
    detach_mask: bool = False
    """Stop the classifier's gradient at the mask, so that only the segmentation tasks train the segmenter."""
    freeze_segmenter: bool = False
    """Train only the classifier, on a pretrained segmenter."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.segmenter.pooling != "image":
            raise ValueError(
                f"segmenter.pooling is {self.segmenter.pooling}, but in a cascade the classifier has the "
                "image-level heads; say what it reads with classifier_input"
            )
        if isinstance(self.classifier, MaskShapeSpec) and "+" in self.classifier_input:
            raise ValueError(
                f"classifier_input is {self.classifier_input}, but a mask-shape classifier does not use the "
                "image; expected structures or region"
            )
        return self


class ForeignNetworkSpec(NetworkBase):
    """Your own network, or one of a library: `kind` is module:Class, or a name registered by an installed
    package. All other keys are passed to the class; its arguments `in_channels`, `spatial_dims`, and
    `out_channels` or `num_classes` are filled in if omitted.

    The module may return a tensor, a sequence, a mapping, or `threefold.core.outputs.Outputs`.
    """

    model_config = ConfigDict(extra="allow")
    code = "threefold.networks.foreign:ForeignNetwork"

    kind: str
    heads: Mapping[str, int | str] | None = None
    """The output of each task in the module's return value: an index of a sequence, or a key of a mapping.
    null: a tensor belongs to the only task, a sequence has the tasks' order, a mapping their names."""
    pool: str | None = None
    """A submodule, such as encoder.layer4, whose output is averaged over the image and passed to a linear
    layer for the image-level tasks that are not in `heads`. "output": the module's own output."""
    cam: str | None = None
    """The submodule for Grad-CAM."""
    shared: str | None = None
    """The last parameter shared by all tasks, for balancing.method gradnorm."""
    stages: Mapping[str, str] | None = None
    """Submodules of the encoder's stages by name, finest first, for `probe` and `similarity`."""
    arguments: Mapping[str, Any] = {}
    """Further arguments of the class, whose names are keys above."""

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the class."""
        return {**(self.model_extra or {}), **self.arguments}


BuiltIn = SwinUnetSpec | JointSwinSpec | AttentionUnetSpec | DenseNetSpec | CascadeSpec
"""The program's own networks."""
BUILT_IN_NETWORKS: Mapping[str, type[BuiltIn]] = kinds_in(BuiltIn)
NetworkSpec = Annotated[BuiltIn | ForeignNetworkSpec, ByKind("swin-unet", own="your own network")]


def fitted_to_kind(network: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Return the settings of a network that also exist for another kind.

    Args:
        network: as in YAML, with or without its kind.
        kind: the other kind; for your own network the keys are unknown and none is kept.
    """
    if network.get("kind", SwinUnetSpec.model_fields["kind"].default) == kind:
        return dict(network)
    spec = BUILT_IN_NETWORKS.get(str(kind))
    return {key: value for key, value in network.items() if spec is not None and key in spec.model_fields}


class InitialWeightsSpec(Spec):
    """Initial weights: a run folder, a model that the package ships (`threefold models list`), or a local
    file of an official Swin or Swin-Unet checkpoint.

    A segmenter's run initialises a cascade's segmenter, a cascade's run both of its networks.
    """

    path: str
    decoders_from_encoder: bool = True
    """Official Swin checkpoints: initialise each decoder stage from the encoder stage of the same
    resolution."""
