"""The typed experiment: everything a recipe says, and nothing else.

An experiment is plain data (frozen, extra keys refused); it imports no torch, so that a mistake in it is
found in a fraction of a second. Networks, tasks and trainings are built from it elsewhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Part = Literal["train", "validation", "test"]


class Spec(BaseModel):
    """Base of every part of an experiment: frozen, typed; extra keys and NaN or infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


# --- data -----------------------------------------------------------------------------------------------


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
    cache: Literal["memory", "disk", "none"] = "memory"
    """Preprocessed cases are kept in memory (after an estimate that they fit), on disk, or not."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read cases; 0 reads in the training process."""


# --- networks -------------------------------------------------------------------------------------------

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
    """Where embed_dim, depths and heads come from unless they are given."""
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
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    initialisation: Literal["published", "xavier"] = "published"
    """published: linear layers start from a truncated normal of 0.02, which suits hundreds of channels.
    xavier: by each layer's size (Glorot and Bengio 2010), for narrow networks trained from nothing."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, more time."""

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


class SwinUnetSpec(Spec):
    """MTL-Swin-Unet (arXiv 2505.06185): one encoder; a decoder or head exists where a task needs it."""

    kind: Literal["swin-unet"] = "swin-unet"
    encoder: SwinSpec = SwinSpec()


class JointSwinSpec(Spec):
    """Joint-SwinTransformer: a classifier on its own encoder's pooled features, concatenated with those of
    the frozen encoder of the experiment named in `before`."""

    kind: Literal["joint-swin"] = "joint-swin"
    encoder: SwinSpec = SwinSpec()


NetworkSpec = Annotated[SwinUnetSpec | JointSwinSpec, Field(discriminator="kind")]


class InitialWeightsSpec(Spec):
    """Weights to start from: a local file of an official Swin or Swin-Unet checkpoint, or a run folder."""

    path: str
    decoders_from_encoder: bool = True
    """Official Swin checkpoints: fill each decoder stage from the encoder stage of the same resolution."""


# --- tasks ----------------------------------------------------------------------------------------------


class RampSpec(Spec):
    """A weight that changes with the epoch: start + step * (epoch // every), at most `limit`."""

    start: NonNegative
    step: float
    every: PositiveInt
    limit: NonNegative | None = None


Weight = NonNegative | RampSpec


class ClassificationSpec(Spec):
    """Softmax cross-entropy of the diagnosis."""

    weight: Weight = 1.0
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs the inverse of its frequency among the training cases."""
    label_smoothing: Fraction = 0.0


class SegmentationSpec(Spec):
    """Softmax segmentation: cross_entropy * CE + dice * soft Dice loss."""

    weight: Weight = 1.0
    target: Literal["mask", "structures"] = "mask"
    cross_entropy: NonNegative = 1.0
    dice: NonNegative = 1.0


class ReconstructionSpec(Spec):
    """The network's input image again."""

    weight: Weight = 1.0
    loss: Literal["mse", "l1"] = "mse"


class TasksSpec(Spec):
    """The tasks that teach the representation; a task that is left out costs nothing."""

    classification: ClassificationSpec | None = None
    segmentation: SegmentationSpec | None = None
    reconstruction: ReconstructionSpec | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not self.names:
            raise ValueError(f"at least one task is needed: {', '.join(type(self).model_fields)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks that are there."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


class BalancingSpec(Spec):
    """How the tasks' losses are weighed against each other."""

    method: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    """fixed: the tasks' weights. uncertainty: learned log-variances (Kendall et al. 2018), times the fixed
    weights. gradnorm: equal gradient norms at the shared layer (Chen et al. 2018)."""
    gradnorm_alpha: NonNegative = 1.5
    """gradnorm: strength of the pull towards equal training rates."""


# --- training -------------------------------------------------------------------------------------------


class OptimiserSpec(Spec):
    """The optimiser and its learning-rate schedule, stepped every optimiser step."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    momentum: Fraction = 0.9
    """sgd only."""
    weight_decay: NonNegative = 1e-4
    schedule: Literal["constant", "linear", "polynomial", "cosine"] = "polynomial"
    """From the learning rate to zero at the end of the last epoch; polynomial has power 0.9."""
    warmup_epochs: NonNegative = 0.0
    """Linear rise from zero."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the whole gradient."""


MonitorName = Literal["loss", "auc", "average_precision", "dice", "psnr"]


class SelectionSpec(Spec):
    """Which epoch is the best, judged on the validation part."""

    metric: MonitorName = "loss"
    """loss: the weighted sum of the tasks. The metrics are those of the validation part."""
    patience: PositiveInt | None = None
    """Stop after so many epochs without a better one; None trains every epoch."""


class TrainingSpec(Spec):
    """The training itself."""

    epochs: PositiveInt = 600
    batch_size: PositiveInt = 24
    """Cases a device and step."""
    accumulate: PositiveInt = 1
    """Batches whose gradients add up to one optimiser step."""
    seed: Seed = 0
    """Covers data order, augmentation, weights and dropout."""
    precision: Literal["32", "bf16"] = "32"
    optimiser: OptimiserSpec = OptimiserSpec()
    selection: SelectionSpec = SelectionSpec()
    devices: PositiveInt = 1
    """Processes: GPUs where there are any, else CPU processes."""
    nodes: PositiveInt = 1
    compile: bool = False
    """Compile the network (torch.compile): minutes to start on a CPU, faster in long runs."""
    tensorboard: bool = False


class EvaluationSpec(Spec):
    """How predictions become numbers."""

    replicates: PositiveInt = 1000
    """Resamples of the patients for the bootstrap intervals."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    threshold: Literal["youden", "f1", "0.5"] = "youden"
    """What the decision threshold maximises on the validation part: sensitivity + specificity, or F1;
    0.5 fixes it."""
    patient_rule: Literal["mean", "max"] = "mean"
    """How the probabilities of a patient's cases become the patient's."""
    seed: Seed = 0
    """Of the resamples."""


class Experiment(Spec):
    """An experiment: data, network, tasks, training, evaluation."""

    name: str
    description: str = ""
    paper: str = ""
    """The line of the paper that this is, and how what it leaves open was read."""
    before: str | None = None
    """A recipe that is trained first, into RUN/before; its encoder is what a joint network builds on."""
    data: DataSpec = DataSpec()
    network: NetworkSpec = SwinUnetSpec()
    initial_weights: InitialWeightsSpec | None = None
    tasks: TasksSpec
    balancing: BalancingSpec = BalancingSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if isinstance(self.network, JointSwinSpec):
            if self.before is None:
                raise ValueError("a joint-swin network needs `before`, the recipe of its first encoder")
            if self.tasks.names != ("classification",):
                raise ValueError("a joint-swin network serves the classification task only")
        metric, tasks = self.training.selection.metric, self.tasks
        needs = {
            "auc": tasks.classification,
            "average_precision": tasks.classification,
            "dice": tasks.segmentation,
            "psnr": tasks.reconstruction,
        }
        if metric in needs and needs[metric] is None:
            raise ValueError(f"training.selection.metric is {metric}, but no task gives it")
        return self
