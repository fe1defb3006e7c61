"""The one loss from several: hand-computed cases and toys with a known optimum."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from threefold.experiment import BalancingSpec
from threefold.tasks.balancing import Balancer, GradNormBalancer, UncertaintyBalancer, build_balancer

NAMES = ("classification", "segmentation")
ONES = dict.fromkeys(NAMES, 1.0)


def build(method: str, **more: float) -> Balancer:
    return build_balancer(BalancingSpec.model_validate({"method": method, **more}), NAMES)


def losses(*values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in zip(NAMES, values, strict=True)}


def test_fixed_is_the_weighted_sum() -> None:
    balancer = build("fixed")
    assert balancer.total(losses(2.0, 5.0), {"classification": 0.3, "segmentation": 0.4}).item() == (
        pytest.approx(2.6)
    )
    assert not list(balancer.parameters())
    assert balancer.factors().tolist() == [1, 1]


def test_uncertainty_by_hand() -> None:
    balancer = build("uncertainty")
    assert isinstance(balancer, UncertaintyBalancer)
    weights = {"classification": 0.5, "segmentation": 2.0}
    assert balancer.total(losses(2.0, 5.0), weights).item() == pytest.approx(11)  # s = 0: the fixed sum
    with torch.no_grad():
        balancer.log_variances.copy_(torch.tensor([math.log(2.0), -1.0]))
    balancer.total(losses(2.0, 5.0), weights).backward()
    assert balancer.log_variances.grad is not None
    # d/ds w (exp(-s) L + s) = w (1 - exp(-s) L)
    assert balancer.log_variances.grad.tolist() == pytest.approx([0, 2 * (1 - math.e * 5)], abs=1e-6)
    assert balancer.factors().tolist() == pytest.approx([0.5, math.e])


def test_uncertainty_reaches_log_loss() -> None:
    balancer = build("uncertainty")
    assert isinstance(balancer, UncertaintyBalancer)
    optimiser = torch.optim.SGD(balancer.parameters(), lr=0.1)
    for _ in range(400):
        optimiser.zero_grad()
        balancer.total(losses(0.2, 7.0), {"classification": 0.6, "segmentation": 1.0}).backward()
        optimiser.step()
    torch.testing.assert_close(balancer.log_variances.detach(), torch.tensor([0.2, 7.0]).log())


@pytest.mark.parametrize("present", [False, torch.tensor(False)])
def test_uncertainty_of_an_absent_task_is_not_moved(present: bool | Tensor) -> None:
    balancer = build("uncertainty")
    assert isinstance(balancer, UncertaintyBalancer)
    total = balancer.total(losses(2.0, 0.0), ONES, present={"classification": True, "segmentation": present})
    total.backward()
    assert balancer.log_variances.grad is not None
    assert balancer.log_variances.grad.tolist() == [-1, 0]


class Toy(nn.Module):
    """Two regressions on one shared layer, whose losses differ by `scale`^2 in size."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(4, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])
        self.x = torch.randn(64, 4)
        self.targets = [self.x.sin().sum(1, keepdim=True), self.x.cos().prod(1, keepdim=True)]
        self.scales = [1.0, scale]

    def losses(self) -> dict[str, Tensor]:
        hidden = torch.tanh(self.shared(self.x))
        parts = zip(NAMES, self.heads, self.targets, self.scales, strict=True)
        return {name: scale * (head(hidden) - target).square().mean() for name, head, target, scale in parts}

    def norms(self, factors: Tensor, weights: Mapping[str, float]) -> list[float]:
        values = self.losses()
        return [
            float(
                torch.autograd.grad(weights[n] * f * values[n], self.shared.weight, retain_graph=True)[
                    0
                ].norm()
            )
            for n, f in zip(NAMES, factors, strict=True)
        ]


@pytest.mark.parametrize("weights", [ONES, {"classification": 0.25, "segmentation": 1.0}])
def test_gradnorm_balances_losses_that_differ_a_hundredfold(weights: Mapping[str, float]) -> None:
    toy, balancer = Toy(100.0), build("gradnorm", gradnorm_alpha=0.0)
    wanted = weights["segmentation"] / weights["classification"]
    before = toy.norms(balancer.factors(), weights)
    assert not 0.2 * wanted < before[1] / before[0] < 5 * wanted
    # A frozen network: what the balances converge to is then exact.
    for _ in range(400):
        balancer.total(toy.losses(), weights, toy.shared.weight)
    after = toy.norms(balancer.factors(), weights)
    assert after[1] / after[0] == pytest.approx(wanted, rel=0.06)  # the step is 2.5 %
    assert balancer.factors().sum().item() == pytest.approx(2)


def test_gradnorm_in_training_evens_the_two_gradients() -> None:
    def late_ratio(method: str) -> float:
        toy, balancer = Toy(100.0), build(method, gradnorm_alpha=0.0)
        optimiser = torch.optim.SGD(toy.parameters(), lr=1e-3)
        ratios = []
        for step in range(500):
            optimiser.zero_grad()
            balancer.total(toy.losses(), ONES, toy.shared.weight).backward()
            optimiser.step()
            if step >= 400:
                first, second = toy.norms(balancer.factors(), ONES)
                ratios.append(abs(math.log(second / first)))
        return sum(ratios) / len(ratios)

    assert late_ratio("gradnorm") < 0.1
    assert late_ratio("fixed") > 0.5


def test_gradnorm_first_update_by_hand() -> None:
    balancer = build("gradnorm", gradnorm_alpha=1.0)
    shared = torch.tensor([1.0, 1.0], requires_grad=True)

    def two(first: float, second: float) -> dict[str, Tensor]:
        # gradients (3, 4) * first and (1, 0) * second: norms 5 first and second
        return {
            "classification": first * (shared @ torch.tensor([3.0, 4.0])),
            "segmentation": second * shared[0],
        }

    total = balancer.total(two(1, 1), ONES, shared)
    # r = 1 at first; mean G = 3; G = 5 is too much and 1 too little.
    logs = torch.tensor([-0.025, 0.025])
    expected = 2 * logs.exp() / logs.exp().sum()
    torch.testing.assert_close(balancer.factors(), expected)
    assert total.item() == pytest.approx((expected * torch.tensor([7.0, 1.0])).sum().item())
    # The classification loss halves, the other stays: r = 2/3 and 4/3, so that even G = 2 wants more.
    with torch.no_grad():
        balancer.balances.fill_(1.0)
    balancer.total(two(0.5, 1), ONES, shared)
    # G = 2.5 and 1, mean 1.75, wanted 1.75 * 2/3 and 1.75 * 4/3
    logs = torch.tensor([-0.025, 0.025])
    torch.testing.assert_close(balancer.factors(), 2 * logs.exp() / logs.exp().sum())


def test_gradnorm_keeps_the_weights_of_other_tasks_while_one_makes_no_progress() -> None:
    names = ("classification", "segmentation", "reconstruction")
    balancer = build_balancer(BalancingSpec.model_validate({"method": "gradnorm"}), names)
    shared = torch.ones(2, requires_grad=True)
    norms = {"classification": 0.5, "segmentation": 2.0, "reconstruction": 1.0}
    progress = {"classification": 1.0, "segmentation": 0.3, "reconstruction": 0.05}

    def step(left: Mapping[str, float]) -> None:
        values = {n: shared[0] * norms[n] + (left[n] - norms[n]) for n in names}  # the loss is `left`
        balancer.total(values, dict.fromkeys(names, 1.0), shared)

    step(dict.fromkeys(names, 1.0))
    for _ in range(3000):
        step(progress)
    balanced = balancer.factors() * torch.tensor([*norms.values()])
    # Of the classification more is wanted than there is; the others have what is wanted of them.
    relative = torch.tensor([*progress.values()])
    wanted = (relative / relative.mean()) ** 1.5 * balanced.mean()
    assert wanted[0] > balanced[0]
    torch.testing.assert_close(balanced[1:], wanted[1:], rtol=0.1, atol=0)


def test_gradnorm_total_gives_the_weighted_gradient_once() -> None:
    toy, balancer = Toy(3.0), build("gradnorm")
    weights = {"classification": 0.3, "segmentation": 0.7}
    balancer.total(toy.losses(), weights, toy.shared.weight).backward()
    gradient = toy.shared.weight.grad
    values = toy.losses()
    expected = sum(weights[n] * f * values[n] for n, f in zip(NAMES, balancer.factors(), strict=True))
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, toy.shared.weight)[0])


def test_gradnorm_does_not_move_without_training_or_for_an_absent_task() -> None:
    toy, balancer = Toy(100.0), build("gradnorm")
    balancer.eval()
    balancer.total(toy.losses(), ONES)
    assert balancer.factors().tolist() == [1, 1]
    balancer.train()
    with torch.no_grad():
        balancer.total(toy.losses(), ONES)
    values = toy.losses() | {"segmentation": torch.tensor(0.0)}
    total = balancer.total(
        values, ONES, toy.shared.weight, {"classification": True, "segmentation": torch.tensor(False)}
    )
    assert isinstance(balancer, GradNormBalancer)
    assert total.isfinite()
    assert balancer.initial_losses.isnan().tolist() == [False, True]
    torch.testing.assert_close(balancer.factors(), torch.ones(2), atol=0.02, rtol=0)
    # Present in the step, but not in this one of its batches: the loss is 0 and starts nothing.
    balancer.total(values, ONES, toy.shared.weight)
    assert balancer.initial_losses.isnan().tolist() == [False, True]


def test_gradnorm_survives_a_non_finite_loss() -> None:
    toy, balancer = Toy(1.0), build("gradnorm")
    values = toy.losses()
    values["segmentation"] = values["segmentation"] * torch.nan
    assert balancer.total(values, ONES, toy.shared.weight).isnan()
    assert balancer.factors().isfinite().all()


def test_gradnorm_resumes_from_its_state() -> None:
    toy, unbroken = Toy(10.0), build("gradnorm")
    for _ in range(5):
        unbroken.total(toy.losses(), ONES, toy.shared.weight)
    resumed = build("gradnorm")
    resumed.load_state_dict(unbroken.state_dict())
    for balancer in (unbroken, resumed):
        balancer.total(toy.losses(), ONES, toy.shared.weight)
    assert torch.equal(unbroken.factors(), resumed.factors())


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="one loss for each of"):
        build("fixed").total({"classification": torch.tensor(1.0)}, ONES)
    with pytest.raises(ValueError, match="needs the shared tensor"):
        build("gradnorm").total(losses(1.0, 1.0), ONES)
    unrelated = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="the classification loss does not pass through the shared tensor"):
        build("gradnorm").total(losses(1.0, 1.0), ONES, unrelated)


TWO_PROCESSES = """
import os, sys
import torch, torch.distributed as dist
from threefold.experiment import BalancingSpec
from threefold.tasks.balancing import build_balancer

other = os.fork()
rank = int(other == 0)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
balancer = build_balancer(BalancingSpec(method="gradnorm", gradnorm_alpha=1.0), ("a", "b", "c"))
shared = torch.ones(1, requires_grad=True)
for step in range(3):
    size = (2.0 + rank) / (1 + step)
    # b is carried by the cases of rank 1 only, c by none
    losses = {"a": size * shared[0], "b": rank * 4.0 * shared[0], "c": 0.0 * shared[0]}
    balancer.total(losses, {"a": 1.0, "b": 1.0, "c": 1.0}, shared, {"a": True, "b": True, "c": False})
numbers = [*balancer.factors().tolist(), *balancer.initial_losses.tolist()]
sys.stdout.write(" ".join(map(str, numbers)) + chr(10))  # both to one pipe, a line at once
sys.stdout.flush()
dist.destroy_process_group()
if other:
    os.waitpid(other, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, so that PyTorch is imported once")
def test_gradnorm_of_two_processes_is_that_of_their_means(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "store")]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = [[float(x) for x in line.split()] for line in said.splitlines()]
    assert len(found) == 2
    spec = BalancingSpec(method="gradnorm", gradnorm_alpha=1.0)
    alone, shared = build_balancer(spec, ("a", "b", "c")), torch.ones(1, requires_grad=True)
    for step in range(3):
        of_means = {"a": 2.5 / (1 + step) * shared[0], "b": 2.0 * shared[0], "c": 0.0 * shared[0]}
        present = {"a": True, "b": True, "c": False}
        alone.total(of_means, dict.fromkeys("abc", 1.0), shared, present)
    for numbers in found:
        assert numbers[:3] == pytest.approx(alone.factors().tolist())
        assert numbers[3:5] == [2.5, 2.0]
        assert math.isnan(numbers[5])
