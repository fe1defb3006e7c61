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
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs
from threefold.tasks.task import head_output

# Added to numerator and denominator, so that a label that a case neither has nor is predicted scores 1.
SMOOTHING = 1e-5
_PART = 16384  # voxels; times 12 labels and 4 bytes they fit into a second-level cache


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
        scores = (2 * self.overlap + SMOOTHING) / (self.size + self.true_size + SMOOTHING)
        return 1 - scores.mean(dim=1)


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
    true = _true_sizes(labels, logits.shape[1]).to(logits)
    outside = None if inside is None else inside.flatten(1)
    ce, overlap, size, *binary = _SoftmaxSums.apply(logits.flatten(2), labels.flatten(1), outside)  # type: ignore[no-untyped-call]
    of_labels = LabelSums(ce, overlap, size, true)
    if inside is None:
        return of_labels, None
    ce, overlap, size = binary
    return of_labels, LabelSums(ce, overlap, size, _true_sizes(inside, 2).to(logits))


class SharedSums:
    """`softmax_sums` for tasks that read the same head: computed when the first asks, given to the second."""

    def __init__(self, target: Literal["mask", "structures"], *, region: bool = False) -> None:
        """Hold a head's labels against a target, and with `region` its foreground against the mask."""
        self._target: Literal["mask", "structures"] = target
        self._region = region
        self._kept: tuple[tuple[Any, ...], tuple[LabelSums, LabelSums | None]] | None = None

    def of(self, outputs: Outputs, batch: Batch, task: str) -> tuple[LabelSums, LabelSums | None]:
        """Return the sums of outputs.segmentation for a batch; those of a target that is absent mean nothing.

        Args:
            outputs, batch: as of a task's losses.
            task: its name, for errors.
        """
        logits = head_output(outputs.segmentation, task)
        key = (weakref.ref(outputs), weakref.ref(batch), torch.is_grad_enabled())
        kept, self._kept = self._kept, None
        if kept is not None and _same(kept[0], key):
            return kept[1]
        sums = softmax_sums(
            logits,
            _or_zero(*batch.label_maps(self._target)),
            _or_zero(batch.mask, batch.has_mask) if self._region else None,
        )
        if self._region:
            self._kept = key, sums
        return sums


def _same(kept: tuple[Any, ...], asked: tuple[Any, ...]) -> bool:
    return all(a() is b() for a, b in zip(kept[:2], asked[:2], strict=True)) and kept[2] == asked[2]


def _or_zero(labels: Tensor, present: Tensor) -> Tensor:
    """An absent target may hold anything; it must still be a label that can be looked up."""
    return labels * present.view(-1, *[1] * (labels.ndim - 1))


def _true_sizes(labels: Tensor, count: int) -> Tensor:
    """(B, *S) to (B, L) voxels of each label."""
    largest = int(labels.max())
    if largest >= count:
        raise IndexError(f"labels go up to {largest}, but the head has {count} outputs")
    return torch.stack([torch.bincount(case.flatten(), minlength=count) for case in labels])


class _SoftmaxSums(torch.autograd.Function):
    """(B, L, N) logits to cross_entropy (B,), overlap (B, L), size (B, L), and the same of [p_0, f]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, inside: Tensor | None) -> tuple[Tensor, ...]:
        count, voxels = logits.shape[1:]
        grown = logits.new_empty(len(logits), count - 1, voxels)  # e
        share = logits.new_empty(len(logits), voxels)  # 1 / s
        odds = torch.empty_like(share)
        columns = []
        for case in range(len(logits)):
            sizes = _exponentials(logits[case], grown[case], share[case], odds[case])
            columns.append(
                _case_sums(logits[case], labels[case], grown[case], share[case], odds[case], sizes)
            )
            if inside is not None:
                columns[-1] += _region_sums(odds[case], inside[case])
        ctx.save_for_backward(labels, *([] if inside is None else [inside]), grown, share, odds)
        return tuple(torch.stack(column).to(logits.dtype) for column in zip(*columns, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        labels, *rest = ctx.saved_tensors  # type: ignore[attr-defined]
        grown, share, odds = rest[-3:]
        result = grown.new_empty(grown.shape[0], grown.shape[1] + 1, grown.shape[2])
        for case in range(len(grown)):
            of_case = [gradient[case] for gradient in gradients]
            background, foreground = torch.sigmoid(-odds[case]), torch.sigmoid(odds[case])
            region = None
            if len(rest) == 4:
                region = _region_gradient(background, foreground, rest[0][case], of_case[3:])
            _case_gradient(
                result[case],
                (labels[case], grown[case], share[case], background, foreground),
                of_case[:3],
                region,
            )
        return result, None, None


def _parts(values: Tensor) -> list[slice]:
    """Slices of the voxels (last axis); on a GPU there is one."""
    voxels = values.shape[-1]
    step = voxels if values.is_cuda else _PART * torch.get_num_threads()
    return [slice(start, start + step) for start in range(0, voxels, max(step, 1))]


def _exponentials(logits: Tensor, grown: Tensor, share: Tensor, odds: Tensor) -> Tensor:
    """Fill e (L - 1, N), 1 / s (N) and o (N) of a case's logits (L, N); return sum_v p_l (L - 1), float64."""
    sizes = logits.new_zeros(len(grown), dtype=torch.float64)
    for part in _parts(logits):
        z, e = logits[1:, part], grown[:, part]
        largest = z.amax(dim=0)
        torch.sub(z, largest, out=e).exp_()
        total = e.sum(dim=0)
        torch.reciprocal(total, out=share[part])
        o = torch.sub(total.log_().add_(largest), logits[0, part], out=odds[part])
        sizes += e @ (torch.sigmoid(o) * share[part])
    return sizes


def _case_sums(
    logits: Tensor, labels: Tensor, grown: Tensor, share: Tensor, odds: Tensor, sizes: Tensor
) -> list[Tensor]:
    """Return cross-entropy (), overlap (L) and size (L) of a case, float64."""
    count, voxels = logits.shape
    where, which = _foreground(labels)
    background = torch.sigmoid(-odds)
    # log p_l = log p_0 + (z_l - z_0)
    gain = (
        logits.reshape(-1)[which * voxels + where] - logits[0, where] if len(where) else logits.new_zeros(0)
    )
    entropy = gain.sum(dtype=torch.float64) + F.logsigmoid(-odds).sum(dtype=torch.float64)
    of_truth = grown.view(-1)[(which - 1) * voxels + where] * share[where] * torch.sigmoid(odds[where])
    overlap = of_truth.new_zeros(count, dtype=torch.float64).index_add_(0, which, of_truth.double())
    outside = background.sum(dtype=torch.float64)
    overlap[0] = outside - background[where].sum(dtype=torch.float64)
    return [-entropy / voxels, overlap, torch.cat([outside[None], sizes])]


def _region_sums(odds: Tensor, inside: Tensor) -> list[Tensor]:
    """Return cross-entropy (), overlap (2) and size (2) of [p_0, f], float64."""
    where = inside.nonzero().squeeze(1)
    chosen = odds[where]
    entropy = F.logsigmoid(-odds).sum(dtype=torch.float64) + chosen.sum(dtype=torch.float64)
    outside = torch.sigmoid(-odds).sum(dtype=torch.float64)
    foreground = torch.sigmoid(odds).sum(dtype=torch.float64)
    overlap = torch.stack(
        [
            outside - torch.sigmoid(-chosen).sum(dtype=torch.float64),
            torch.sigmoid(chosen).sum(dtype=torch.float64),
        ]
    )
    return [-entropy / len(odds), overlap, torch.stack([outside, foreground])]


def _foreground(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the voxels that are not background, and their labels, both int64."""
    where = labels.nonzero().squeeze(1)
    return where, labels[where].long()


def _region_gradient(
    background: Tensor, foreground: Tensor, inside: Tensor, gradients: list[Tensor]
) -> Tensor:
    """Return (N,) R: the gradient of the binary sums by z_0 is R, by the foreground's z_l is -R e_l / s."""
    entropy, overlap, size = gradients
    here = inside != 0
    by_background = torch.where(here, size[0] - size[1] - overlap[1], size[0] - size[1] + overlap[0])
    by_entropy = torch.where(here, background, -foreground) * (entropy / len(inside))
    return by_background.mul_(background).mul_(foreground).add_(by_entropy)


def _case_gradient(
    result: Tensor,
    known: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    gradients: list[Tensor],
    region: Tensor | None,
) -> None:
    """Fill (L, N) with the gradient by a case's logits.

    With G = d/d size, H = d/d overlap, c = d/d cross_entropy / N and u = sum_k p_k (G_k + H_k [k true]):

        d/dz_l = p_l (G_l - u + c) + [l true] (p_l H_l - c), and the region's.
    """
    labels, grown, share, background, foreground = known
    entropy, overlap, size = gradients
    voxels = len(labels)
    c = entropy / voxels
    where, which = _foreground(labels)
    of_truth = grown.view(-1)[(which - 1) * voxels + where] * (share * foreground)[where]
    true = torch.where(labels == 0, background * overlap[0], 0.0)  # p_y H_y
    true[where] = of_truth * overlap[which]
    for part in _parts(grown):
        e, p_0 = grown[:, part], background[part]
        weight = foreground[part] * share[part]
        mean = torch.mv(e.T, size[1:]).mul_(weight).addcmul_(p_0, size[0]).add_(true[part])  # u
        mean.sub_(c)
        first = (size[0] - mean).mul_(p_0)
        rest = mean.mul_(weight).neg_()
        if region is not None:
            first += region[part]
            rest.addcmul_(region[part], share[part], value=-1)
        result[0, part] = first
        torch.addcmul(rest, weight, size[1:, None], out=result[1:, part])
        result[1:, part] *= e
    adjustment = true.sub_(c)
    result[0] += torch.where(labels == 0, adjustment, 0.0)
    result.view(-1)[which * voxels + where] += adjustment[where]
