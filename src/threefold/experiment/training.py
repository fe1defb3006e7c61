"""The optimiser, the selection of the best epoch, the training itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from threefold.experiment.spec import Fraction, NonNegative, Positive, PositiveInt, Seed, Spec


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
    """Epochs of linear warm-up from zero."""
    part_factors: Mapping[str, Positive] = {}
    """Relative learning rates of parts of the network: {classifier: 0.1}. A part is given by the prefix of
    its parameter names."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum norm of the gradient of all parameters."""


class SelectionSpec(Spec):
    """Selection of the best epoch on the validation part."""

    metric: str = "loss"
    """loss: the weighted sum of the tasks; else a metric of the validation part: auc, average_precision,
    balanced_accuracy, mae, rmse, r2, dice or psnr, prefixed by the task's name (age.mae) if several tasks
    have it or the task is your own. The loss and errors (mae, rmse) are minimised, all others
    maximised; the first of equal epochs is kept. tasks: the mean of the tasks' auc, dice and r2 (at least 0);
    the last of equal epochs is kept."""
    smoothing: PositiveInt = 1
    """Number of epochs to average the metric over: each epoch and those before it."""
    weights: Literal["best", "last"] = "best"
    """Weights to predict with: those of the best epoch, or of the last one, since with few validation cases
    the best is mostly chance. The others are kept as well (`predict --weights`)."""
    patience: PositiveInt | None = None
    """Stop after this number of epochs without improvement; null: train all epochs."""


class TrainingSpec(Spec):
    """Settings of the training."""

    epochs: PositiveInt = 600
    batch_size: PositiveInt = 24
    """Cases per device and step."""
    accumulate: PositiveInt = 1
    """Batches whose gradients are accumulated for one optimiser step."""
    seed: Seed = 0
    """Random seed of data order, augmentation, weights and dropout."""
    precision: Literal["32", "bf16"] = "32"
    """bf16: bfloat16 mixed precision; float32 on CPUs without bfloat16 multiplication, where it is faster."""
    optimiser: OptimiserSpec = OptimiserSpec()
    selection: SelectionSpec = SelectionSpec()
    devices: PositiveInt = 1
    """Number of GPUs, or of CPU processes without a GPU."""
    nodes: PositiveInt = 1
    compile: bool = False
    """Compile the network (torch.compile): takes minutes on a CPU, pays off in long runs."""
    tensorboard: bool = False
