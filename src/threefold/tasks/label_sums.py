"""What overlap and cross-entropy losses need of a softmax: sums over the voxels, in one pass, with exact
gradients.

With logits z of L labels, p = softmax(z) and N voxels v, written by the odds of the foreground,

    e_l = exp(z_l - max_k>0 z_k),  s = sum_k>0 e_k,  o = log sum_k>0 exp z_k - z_0,
    p_0 = sigmoid(-o),  f = sigmoid(o),  p_l = f e_l / s,  log p_l = log p_0 + z_l - z_0,

every probability keeps its relative precision however sure the network is: log f needs no log of a sum of
small numbers. Neither one-hot tensors nor log-probabilities of all labels are made. The gradient of all sums
together is one more pass: it is p_l times a number per label and one per voxel, plus terms of the true label
alone. Both passes go through the voxels in parts that stay in the processor's cache.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from threefold.core.batch import Batch, Target
from threefold.core.outputs import Outputs

# Added to numerator and denominator, so that a label that a case neither has nor is predicted scores 1.
SMOOTHING = 1e-5
_PART = 32768  # voxels; with 12 labels of 4 bytes they fit into a second-level cache


@dataclass(frozen=True)
class LabelSums:
    """Sums over the N voxels of each case, for L labels.

    Attributes:
        cross_entropy: (B,) mean over the voxels of -log p of the true label.
        overlap: (B, L) sum of p_l over the voxels of label l.
        size: (B, L) sum of p_l over all voxels.
        true_size: (B, L) voxels of label l, without gradient.
    """

    cross_entropy: Tensor
    overlap: Tensor
    size: Tensor
    true_size: Tensor

    def dice_loss(self) -> Tensor:
        """Return (B,) 1 - the mean over labels of (2 overlap + s) / (size + true_size + s), s = 1e-5."""
        return 1 - _dice(self.overlap, self.size + self.true_size).mean(dim=1)

    def foreground_dice_loss(self, present: Tensor, *, together: bool) -> Tensor:
        """Return (B,) 1 - the mean of the same over the foreground labels that are there; 0 where none is.

        Args:
            present: (B,) bool, cases that have a target.
            together: take the sums over all present cases, whose losses are then the same; else over each.
        """
        counted = present[:, None].to(self.overlap)
        sums = [(one * counted)[:, 1:] for one in (self.overlap, self.size + self.true_size, self.true_size)]
        if together:
            sums = [one.sum(dim=0, keepdim=True) for one in sums]
        overlap, sizes, true = sums
        there = true > 0
        missed = ((1 - _dice(overlap, sizes)) * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        return missed.expand(len(present))


def _dice(overlap: Tensor, sizes: Tensor) -> Tensor:
    return (2 * overlap + SMOOTHING) / (sizes + SMOOTHING)


def softmax_sums(
    logits: Tensor, labels: Tensor, inside: Tensor | None = None
) -> tuple[LabelSums, LabelSums | None]:
    """Return the sums of softmax(logits), and those of the binary [p_0, 1 - p_0], both from one pass.

    Args:
        logits: (B, L, *S) float; L at least 2, label 0 is the background.
        labels: (B, *S) true labels in [0, L), uint8 or another integer type.
        inside: (B, *S) true foreground, 0 or 1, that [p_0, 1 - p_0] is held against; None: it isn't.

    Raises:
        IndexError: if a label is L or more.
    """
    count = logits.shape[1]
    true = [_Foreground.of(case, count) for case in labels.flatten(1)]
    binary = None if inside is None else [_Foreground.of(case, 2) for case in inside.flatten(1)]
    ce, overlap, size, *rest = _SoftmaxSums.apply(logits.flatten(2), true, binary)  # type: ignore[no-untyped-call]
    of_labels = LabelSums(ce, overlap, size, torch.stack([case.sizes for case in true]).to(logits))
    if binary is None:
        return of_labels, None
    ce, overlap, size = rest
    return of_labels, LabelSums(ce, overlap, size, torch.stack([case.sizes for case in binary]).to(logits))


class SharedSums:
    """`softmax_sums` for tasks that read the same head: computed when the first asks, given to the second."""

    def __init__(self, head: str, target: str, region: str | None = None) -> None:
        """Hold a head's labels against a target, and its foreground against the mask that `region` names."""
        self._head, self._target, self._region = head, target, region
        self._kept: tuple[tuple[Any, ...], tuple[LabelSums, LabelSums | None]] | None = None

    def of(self, outputs: Outputs, batch: Batch) -> tuple[LabelSums, LabelSums | None]:
        """Return the sums of the head for a batch; those of a target that is absent mean nothing.

        Raises:
            ValueError: the network has no such head.
        """
        if self._head not in outputs.heads:
            raise ValueError(
                f"the {self._head} task needs a network with a head for it, this network has none"
            )
        logits = outputs.heads[self._head].float()
        key = (weakref.ref(outputs), weakref.ref(batch), torch.is_grad_enabled())
        kept, self._kept = self._kept, None
        if kept is not None and _same(kept[0], key):
            return kept[1]
        sums = softmax_sums(
            logits,
            _or_zero(batch.targets[self._target]),
            None if self._region is None else _or_zero(batch.targets[self._region]),
        )
        if self._region:
            self._kept = key, sums
        return sums


def _same(kept: tuple[Any, ...], asked: tuple[Any, ...]) -> bool:
    return all(a() is b() for a, b in zip(kept[:2], asked[:2], strict=True)) and kept[2] == asked[2]


def _or_zero(target: Target) -> Tensor:
    """An absent target may hold anything; it must still be a label that can be looked up."""
    return target.values * target.present.view(-1, *[1] * (target.values.ndim - 1))


@dataclass(frozen=True)
class _Foreground:
    """The voxels of a case that are not background: few, so that they are listed and not marked.

    Attributes:
        where: (n,) int64 their places in (N,).
        which: (n,) int64 their labels.
        sizes: (L,) voxels of each label, background included.
    """

    where: Tensor
    which: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, labels: Tensor, count: int) -> Self:
        """List the foreground of (N,) labels in [0, count)."""
        where = labels.nonzero().squeeze(1)
        which = labels[where].long()
        sizes = torch.bincount(which, minlength=count)
        if len(sizes) > count:
            raise IndexError(f"labels go up to {len(sizes) - 1}, but the head has {count} outputs")
        sizes[0] = len(labels) - len(where)
        return cls(where, which, sizes)


class _SoftmaxSums(torch.autograd.Function):
    """(B, L, N) logits to cross_entropy (B,), overlap (B, L), size (B, L), and the same of [p_0, f]."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, true: list[_Foreground], binary: list[_Foreground] | None
    ) -> tuple[Tensor, ...]:
        cases, count, voxels = logits.shape
        grown = logits.new_empty(cases, count - 1, voxels)  # e
        known = logits.new_empty(cases, 3, voxels)  # 1 / s, p_0, f
        columns = []
        for case in range(cases):
            odds, sizes, entropy = _exponentials(logits[case], grown[case], known[case])
            columns.append(_case_sums(logits[case], true[case], grown[case], known[case], sizes, entropy))
            if binary is not None:
                columns[-1] += _region_sums(odds, binary[case], known[case], sizes, entropy)
        ctx.save_for_backward(grown, known)
        ctx.true, ctx.binary, ctx.in_rows = true, binary, _in_rows(logits)
        return tuple(torch.stack(column).to(logits.dtype) for column in zip(*columns, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        grown, known = ctx.saved_tensors
        cases, voxels, count = len(grown), grown.shape[2], grown.shape[1] + 1
        if ctx.in_rows:
            result = grown.new_empty(cases, count, voxels)
        else:
            result = grown.new_empty(cases, voxels, count).transpose(1, 2)
        for case in range(cases):
            of_case = [gradient[case] for gradient in gradients]
            region = None
            if ctx.binary is not None:
                region = _region_gradient(known[case], ctx.binary[case], of_case[3:])
            _case_gradient(result[case], ctx.true[case], grown[case], known[case], of_case[:3], region)
        return result, None, None


def _in_rows(values: Tensor) -> bool:
    """Whether a label's values lie next to each other in memory, and not a voxel's (channels-last)."""
    return values.stride(-1) == 1


def _parts(values: Tensor) -> list[slice]:
    """Slices of the voxels (last axis); on a GPU there is one."""
    voxels = values.shape[-1]
    step = voxels if values.is_cuda else _PART * torch.get_num_threads()
    return [slice(start, start + step) for start in range(0, voxels, max(step, 1))]


def _exponentials(logits: Tensor, grown: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fill e (L - 1, N) and [1 / s, p_0, f] (3, N) of a case's logits (L, N).

    Returns:
        o (N,), sum_v p_l (L,) and sum_v -log p_0 (), the sums in float64.
    """
    odds = logits.new_empty(logits.shape[1])
    sizes = logits.new_zeros(len(logits), dtype=torch.float64)
    entropy = logits.new_zeros((), dtype=torch.float64)
    for part in _parts(logits):
        z, e, o = logits[:, part], grown[:, part], odds[part]
        if not _in_rows(logits):
            z = z.contiguous()
        share, background, foreground = known[:, part].unbind()
        largest = z[1:].amax(dim=0)
        torch.sub(z[1:], largest, out=e).exp_()
        total = e.sum(dim=0)
        torch.reciprocal(total, out=share)
        torch.sub(total.log_().add_(largest), z[0], out=o)
        torch.sigmoid(o, out=foreground)
        torch.sigmoid(o.neg(), out=background)
        sizes[0] += background.sum()
        sizes[1:] += torch.mv(e, foreground * share)
        entropy += F.softplus(o, threshold=40).sum()
    return odds, sizes, entropy


def _case_sums(
    logits: Tensor, true: _Foreground, grown: Tensor, known: Tensor, sizes: Tensor, entropy: Tensor
) -> list[Tensor]:
    """Return cross-entropy (), overlap (L) and size (L) of a case, float64."""
    where, which = true.where, true.which
    share, background, foreground = known[:, where].double()
    gain = logits[which, where] - logits[0, where]  # log p_l = log p_0 + z_l - z_0
    overlap = torch.zeros_like(sizes)
    overlap.index_add_(0, which, grown[which - 1, where] * share * foreground)
    overlap[0] = sizes[0] - background.sum()
    return [(entropy - gain.sum(dtype=torch.float64)) / logits.shape[1], overlap, sizes]


def _region_sums(
    odds: Tensor, true: _Foreground, known: Tensor, sizes: Tensor, entropy: Tensor
) -> list[Tensor]:
    """Return cross-entropy (), overlap (2) and size (2) of [p_0, f], float64."""
    _, background, foreground = known[:, true.where].sum(dim=1, dtype=torch.float64)
    gain = odds[true.where].sum(dtype=torch.float64)  # log f = log p_0 + o
    return [
        (entropy - gain) / len(odds),
        torch.stack([sizes[0] - background, foreground]),
        torch.stack([sizes[0], sizes[1:].sum()]),
    ]


def _region_gradient(known: Tensor, true: _Foreground, gradients: list[Tensor]) -> Tensor:
    """Return (N,) R: the gradient of the binary sums by z_0 is R, by the foreground's z_l is -R e_l / s."""
    entropy, overlap, size = gradients
    _, background, foreground = known
    c, difference = entropy / known.shape[1], size[0] - size[1]
    result: Tensor = (background * (difference + overlap[0])).sub_(c).mul_(foreground)
    background, foreground = background[true.where], foreground[true.where]
    result[true.where] = background * (foreground * (difference - overlap[1]) + c)
    return result


def _case_gradient(
    result: Tensor,
    true: _Foreground,
    grown: Tensor,
    known: Tensor,
    gradients: list[Tensor],
    region: Tensor | None,
) -> None:
    """Fill (L, N) with the gradient by a case's logits.

    With G = d/d size, H = d/d overlap, c = d/d cross_entropy / N and u = sum_k p_k (G_k + H_k [k true]):

        d/dz_l = p_l (G_l - u + c) + [l true] (p_l H_l - c), and the region's.
    """
    entropy, overlap, size = gradients
    where, which = true.where, true.which
    c = entropy / known.shape[1]
    of_truth = known[1] * overlap[0]  # p_l H_l of the true label: first as if all were background
    of_truth[where] = grown[which - 1, where] * known[0, where] * known[2, where] * overlap[which]
    for part in _parts(grown):
        e, y = grown[:, part], of_truth[part]
        share, background, foreground = known[:, part].unbind()
        weight = foreground * share
        mean = torch.mv(e.T, size[1:]).mul_(weight).addcmul_(background, size[0]).add_(y).sub_(c)  # u - c
        first = (size[0] - mean).mul_(background).add_(y).sub_(c)
        rest = mean.mul_(weight).neg_()
        if region is not None:
            first += region[part]
            rest.addcmul_(region[part], share, value=-1)
        result[0, part] = first
        if _in_rows(result):
            torch.addcmul(rest, weight, size[1:, None], out=result[1:, part]).mul_(e)
        else:
            result[1:, part] = torch.addcmul(rest, weight, size[1:, None]).mul_(e)
    adjustment = of_truth[where] - c
    result[0, where] -= adjustment
    result[which, where] += adjustment
