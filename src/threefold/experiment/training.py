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
    """Linear rise from zero."""
    part_factors: Mapping[str, Positive] = {}
    """Learning rate of parts of the network, relative to the others': {classifier: 0.1}. A part is named by
    the beginning of its parameters' names."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the whole gradient."""


class SelectionSpec(Spec):
    """Which epoch is the best, judged on the validation part."""

    metric: str = "loss"
    """loss: the weighted sum of the tasks; else a metric of the validation part: auc, average_precision,
    balanced_accuracy, mae, rmse, r2, dice or psnr, with the task's name before it (age.mae) where several
    tasks give it or the task is one's own. Of loss, mae and rmse the lowest is the best, of all others the
    highest."""
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
    """bf16: the network in bfloat16; in float32 on CPUs that don't multiply it, where that is faster."""
    optimiser: OptimiserSpec = OptimiserSpec()
    selection: SelectionSpec = SelectionSpec()
    devices: PositiveInt = 1
    """Processes: GPUs where there are any, else CPU processes."""
    nodes: PositiveInt = 1
    compile: bool = False
    """Compile the network (torch.compile): minutes to start on a CPU, faster in long runs."""
    tensorboard: bool = False
