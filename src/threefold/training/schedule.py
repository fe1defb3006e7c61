"""The optimiser, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from threefold.experiment import OptimiserSpec

POLYNOMIAL_POWER = 0.9


def build_optimiser(module: nn.Module, spec: OptimiserSpec) -> Optimizer:
    """Make the optimiser of a module's trainable parameters.

    Weight decay falls on matrices and convolution kernels only: normalisation, biases, learned loss weights
    and relative position biases are left out, as in Swin's published training.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or "relative_position" in name or "position_bias" in name
        (free if exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": spec.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if spec.name == "sgd":
        return SGD(groups, lr=spec.learning_rate, momentum=spec.momentum)
    return AdamW(groups, lr=spec.learning_rate)


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
    """Give every parameter group the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
