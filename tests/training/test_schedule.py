"""The learning rate against PyTorch's own schedulers, and what weight decay falls on."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from threefold.errors import ExperimentError
from threefold.experiment import OptimiserSpec
from threefold.training.schedule import build_optimiser, learning_rate, set_learning_rate

STEPS, EPOCHS = 7, 5


def _rates(spec: OptimiserSpec) -> list[float]:
    return [learning_rate(spec, step, STEPS, EPOCHS) for step in range(STEPS * EPOCHS)]


@pytest.mark.parametrize("schedule", ["linear", "polynomial", "cosine", "constant"])
def test_schedules_agree_with_pytorch(
    schedule: Literal["linear", "polynomial", "cosine", "constant"],
) -> None:
    spec = OptimiserSpec(learning_rate=0.3, schedule=schedule)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    total = STEPS * EPOCHS
    reference = {
        "linear": lambda: lr_scheduler.PolynomialLR(optimiser, total, power=1.0),
        "polynomial": lambda: lr_scheduler.PolynomialLR(optimiser, total, power=0.9),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimiser, total),
        "constant": lambda: lr_scheduler.ConstantLR(optimiser, factor=1.0),
    }[schedule]()
    expected = []
    for _ in range(total):
        expected.append(reference.get_last_lr()[0])
        optimiser.step()
        reference.step()
    assert _rates(spec) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_warmup_rises_linearly_then_the_schedule_takes_over() -> None:
    rates = _rates(OptimiserSpec(learning_rate=1.0, schedule="linear", warmup_epochs=1))
    assert rates[:STEPS] == pytest.approx([(i + 1) / (STEPS + 1) for i in range(STEPS)])
    assert rates[STEPS] == 1.0
    assert rates[STEPS:] == sorted(rates[STEPS:], reverse=True)
    assert 0 < rates[-1] < 0.05


def test_parts_have_their_own_relative_rate() -> None:
    network = nn.ModuleDict({"segmenter": nn.Linear(2, 2), "classifier": nn.Linear(2, 2)})
    module = nn.ModuleDict({"network": network, "balancer": nn.Linear(1, 1)})
    spec = OptimiserSpec(name="adamw", learning_rate=1e-3, part_factors={"classifier": 0.1})
    optimiser = build_optimiser(module, spec)
    for rate in (1e-3, 5e-4):
        set_learning_rate(optimiser, rate)
        rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
        found = {name: rates[id(p)] for name, p in module.named_parameters()}
        assert found == pytest.approx({name: rate * (0.1 if "classifier" in name else 1.0) for name in found})
    with pytest.raises(ExperimentError, match=r"in 'classifer'.*Did you mean 'classifier'\?"):
        build_optimiser(module, spec.model_copy(update={"part_factors": {"classifer": 0.1}}))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_leaves_out_norms_biases_and_position_biases(name: Literal["sgd", "adamw"]) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    module.register_parameter("relative_position_bias_table", nn.Parameter(torch.zeros(5, 2)))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    module.append(frozen)
    optimiser = build_optimiser(module, OptimiserSpec(name=name, weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    named = {n: decay.get(id(p)) for n, p in module.named_parameters()}
    assert named == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "relative_position_bias_table": 0.0,
        "2.weight": None,
        "2.bias": None,
    }
