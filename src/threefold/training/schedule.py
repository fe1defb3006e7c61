"""The optimiser, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from threefold.errors import ExperimentError
from threefold.experiment import OptimiserSpec
from threefold.validation import did_you_mean

POLYNOMIAL_POWER = 0.9


def build_optimiser(module: nn.Module, spec: OptimiserSpec) -> Optimizer:
    """Make the optimiser of a module's trainable parameters.

    Parts of the network that `part_factors` names have their own relative rate. Weight decay falls on
    matrices and convolution kernels only: normalisation, biases, learned loss weights and relative position
    biases are left out, as in Swin's published training.

    Raises:
        ExperimentError: if `part_factors` names a part that the network has not.
    """
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or "relative_position" in name or "position_bias" in name
        decay = 0.0 if exempt else spec.weight_decay
        grouped.setdefault((_factor(name, spec.part_factors), decay), []).append(parameter)
    _refuse_idle_factors(module, spec.part_factors)
    groups = [
        {"params": parameters, "weight_decay": decay, "factor": factor, "lr": spec.learning_rate * factor}
        for (factor, decay), parameters in sorted(grouped.items(), reverse=True)
    ]
    if spec.name == "sgd":
        return SGD(groups, lr=spec.learning_rate, momentum=spec.momentum)
    return AdamW(groups, lr=spec.learning_rate)


def _factor(name: str, factors: Mapping[str, float]) -> float:
    """Return the relative rate of a parameter: that of the longest part that its name begins with."""
    parts = [part for part in factors if _is_of(name, part)]
    return factors[max(parts, key=len)] if parts else 1.0


def _is_of(name: str, part: str) -> bool:
    return f"{name.removeprefix('network.')}.".startswith(f"{part}.")


def _refuse_idle_factors(module: nn.Module, factors: Mapping[str, float]) -> None:
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    for part in factors:
        if not any(_is_of(name, part) for name in names):
            parts = dict.fromkeys(name.removeprefix("network.").partition(".")[0] for name in names)
            raise ExperimentError(
                f"training.optimiser.part_factors: no trained parameter of the network is in '{part}'. Its "
                f"parts are {', '.join(parts)}.{did_you_mean(part, list(parts))}"
            )


def learning_rate(spec: OptimiserSpec, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of an optimiser step.

    Args:
        spec: base rate, schedule, warm-up.
        step: 0-based, over the whole training; the rate reaches zero just after the last one.
        steps_per_epoch, epochs: the training's length.
    """
    warmup = round(spec.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return spec.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps_per_epoch * epochs - warmup)
    if spec.schedule == "linear":
        return spec.learning_rate * (1 - done)
    if spec.schedule == "polynomial":
        return float(spec.learning_rate * (1 - done) ** POLYNOMIAL_POWER)
    if spec.schedule == "cosine":
        return spec.learning_rate * (1 + math.cos(math.pi * done)) / 2
    return spec.learning_rate


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    """Give every parameter group the rate, times its own factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]
