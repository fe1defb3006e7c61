"""How the tasks' losses become one: fixed weights, learned uncertainty, or balanced gradient norms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from threefold.experiment import BalancingSpec

Presence = Mapping[str, bool | Tensor]


class Balancer(nn.Module, ABC):
    """Weighs the losses of T named tasks against each other.

    Attributes:
        names: the tasks, in order.
        needs_shared: whether `total` needs the tensor that the tasks share while training.
    """

    needs_shared: ClassVar[bool] = False

    def __init__(self, names: Sequence[str]) -> None:
        """Weigh the named tasks."""
        super().__init__()
        self.names = tuple(names)

    @abstractmethod
    def total(
        self,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
        shared: Tensor | None = None,
        present: Presence | None = None,
    ) -> Tensor:
        """Return the scalar to minimise.

        Args:
            losses: scalar loss of each task (its mean over the cases that carry the target; 0 if none).
            weights: the experiment's weight of each task in this epoch.
            shared: what all tasks' gradients pass through; for gradnorm only.
            present: whether any case carried the task's target, in all batches that `losses` is a mean
                over. None: every task's target was there.

        Raises:
            ValueError: if a task's loss or weight is missing, or `shared` is needed and not given.
        """

    @abstractmethod
    def factors(self) -> Tensor:
        """Return (T,) what multiplies each task's weight at this moment, detached, for the log."""

    def _vectors(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float], present: Presence | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, weights and presence as (T,) tensors on the losses' device."""
        for what, mapping in (("loss", losses), ("weight", weights)):
            if set(mapping) != set(self.names):
                raise ValueError(f"expected one {what} for each of {self.names}, found {tuple(mapping)}")
        loss = torch.stack([losses[name] for name in self.names])
        weight = loss.new_tensor([weights[name] for name in self.names])
        there = loss.new_ones(len(self.names), dtype=torch.bool)
        if present is not None:
            flags = [torch.as_tensor(present[name], device=loss.device) for name in self.names]
            there = torch.stack(flags).bool()
        return loss, weight, there


class FixedBalancer(Balancer):
    """sum_i w_i L_i."""

    def total(
        self,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
        shared: Tensor | None = None,
        present: Presence | None = None,
    ) -> Tensor:
        """Return the weighted sum."""
        loss, weight, _ = self._vectors(losses, weights, present)
        return (weight * loss).sum()

    def factors(self) -> Tensor:
        """Return ones."""
        return torch.ones(len(self.names))


class UncertaintyBalancer(Balancer):
    """Homoscedastic uncertainty (Kendall et al. 2018, arXiv 1705.07115, eq. 10), times the fixed weights.

        total = sum_i w_i (exp(-s_i) L_i + s_i)

    with s_i = log sigma_i^2 learned from 0: twice the paper's regression form, so that training starts
    from the fixed weighting. The optimum for a loss that stays at L is s = log L. A task without a target
    in the batch adds 0 and no gradient to its s. Do not apply weight decay to `log_variances`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Start from the fixed weighting: s = 0."""
        super().__init__(names)
        self.log_variances = nn.Parameter(torch.zeros(len(self.names)))

    def total(
        self,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
        shared: Tensor | None = None,
        present: Presence | None = None,
    ) -> Tensor:
        """Return the sum above over the tasks that are present."""
        loss, weight, there = self._vectors(losses, weights, present)
        s = self.log_variances
        return (there * weight * (torch.exp(-s) * loss + s)).sum()

    def factors(self) -> Tensor:
        """Return exp(-s_i)."""
        return torch.exp(-self.log_variances.detach())


class GradNormBalancer(Balancer):
    """Equal gradient norms at a shared layer (GradNorm, Chen et al. 2018, arXiv 1711.02257, eq. 1 and 2).

    With g_i the balance of task i, W the shared tensor, n_i = ||d L_i / d W||_2 and G_i = g_i n_i:

        r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0))        relative inverse training rate
        L_grad = sum_i |G_i - mean_j(G_j) r_i^alpha|,        mean_j(G_j) r_i^alpha held constant
        total = sum_i w_i g_i L_i,                           sum_i g_i = T

    The fixed weights w stay outside, as the wanted ratio of the gradients, so that all equal to 1 is the
    paper's method. The tasks' weights are not given to the network's optimiser (whose learning rate, decay
    and momentum are tuned for other units): one step of descent on L_grad in log g, by the sign of the
    gradient and with the paper's rate 0.025, is taken here, at each training call and before the sum,

        log g_i <- log g_i - 0.025 sign(G_i - mean_j(G_j) r_i^alpha),

    then sum_i g_i = T is restored. In log g no weight turns negative and scales that differ by orders of
    magnitude are reached. The gradient's size is left out: in log g it is G_i, which hardly lifts a small
    weight, so that beside a task that makes no progress, whose weight is lifted for ever, restoring the sum
    took the others to nothing (docs/results/studies/hematoma-sensitivity.md). Everything is kept in
    buffers, so a resumed run goes on as if unbroken; over several processes the norms and losses are
    averaged first, so that all hold the same weights.

    Which W: the parameter of the last layer that every task passes through (for a Swin-Unet the weight of
    the encoder's final norm). Not `Outputs.features`: the decoders read the tokens, not their pooled mean.
    What reaches the encoder by skip connections is not measured. The price is a backward pass through each
    head and decoder down to W, without their weights' gradients.
    """

    needs_shared = True
    rate: ClassVar[float] = 0.025

    balances: Tensor
    initial_losses: Tensor

    def __init__(self, names: Sequence[str], alpha: float) -> None:
        """Start from g = 1; `alpha` is the strength of the pull towards equal training rates."""
        super().__init__(names)
        self.alpha = alpha
        self.register_buffer("balances", torch.ones(len(self.names)))
        # NaN: not seen yet.
        self.register_buffer("initial_losses", torch.full((len(self.names),), torch.nan))

    def total(
        self,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
        shared: Tensor | None = None,
        present: Presence | None = None,
    ) -> Tensor:
        """Return the sum above, after an update of the balances if the module is training."""
        loss, weight, there = self._vectors(losses, weights, present)
        if self.training and torch.is_grad_enabled():
            if shared is None:
                raise ValueError("gradnorm needs the shared tensor that the tasks' gradients pass through")
            norms = torch.stack([self._norm(name, losses[name], shared) for name in self.names])
            self._update(loss.detach(), norms, there & (weight > 0))
        return (weight * self.balances.clone() * loss).sum()

    def factors(self) -> Tensor:
        """Return the balances g_i."""
        return self.balances.clone()

    @staticmethod
    def _norm(name: str, loss: Tensor, shared: Tensor) -> Tensor:
        if not loss.requires_grad:  # no case carried the target
            return loss.new_zeros(())
        (gradient,) = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise ValueError(f"gradnorm: the {name} loss does not pass through the shared tensor")
        return gradient.detach().float().square().sum().sqrt()

    @torch.no_grad()
    def _update(self, loss: Tensor, norms: Tensor, there: Tensor) -> None:
        """Take one step of the balances; all arguments (T,). Tasks that are not there take no step."""
        there = there & loss.isfinite() & norms.isfinite()
        loss, norms, there = _mean_over_processes(loss, norms, there)
        there = there & (norms > 0) & (loss > 0)  # one of several accumulated batches may lack the target
        first = there & self.initial_losses.isnan()
        self.initial_losses.copy_(loss.where(first, self.initial_losses))
        balanced = self.balances * norms
        progress = loss / self.initial_losses
        wanted = _mean(balanced, there) * (progress / _mean(progress, there)) ** self.alpha
        step = self.rate * torch.sign(balanced - wanted)
        log_balances = self.balances.log() - step.where(there & step.isfinite(), 0.0)
        self.balances.copy_(len(self.names) * log_balances.softmax(dim=0))


def build_balancer(spec: BalancingSpec, names: Sequence[str]) -> Balancer:
    """Return the balancer of the named tasks."""
    match spec.method:
        case "fixed":
            return FixedBalancer(names)
        case "uncertainty":
            return UncertaintyBalancer(names)
        case "gradnorm":
            return GradNormBalancer(names, spec.gradnorm_alpha)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return values.where(where, 0.0).sum() / where.sum().clamp(min=1)


def _mean_over_processes(loss: Tensor, norms: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Average loss and norms over the processes where the task was there; no-op for one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return loss, norms, there
    sums = torch.stack([loss.where(there, 0.0), norms.where(there, 0.0), there.to(loss.dtype)])
    torch.distributed.all_reduce(sums)
    count = sums[2].clamp(min=1)
    return sums[0] / count, sums[1] / count, sums[2] > 0
