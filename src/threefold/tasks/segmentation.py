"""Segmentation: softmax cross-entropy plus soft Dice loss, and losses of topology."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from threefold.core.batch import Batch
from threefold.core.outputs import Head, Outputs
from threefold.core.targets import LabelsTarget
from threefold.evaluation import overlap
from threefold.experiment import SegmentationSpec
from threefold.tasks.label_sums import LabelSums, SharedSums
from threefold.tasks.task import Task, TaskContext
from threefold.tasks.topology import cl_dice_loss, homology_loss


class SegmentationTask(Task):
    """cross_entropy * CE + dice * soft Dice loss, each computed per case.

    With p = softmax(logits) over L labels and y the one-hot target, sums over the N voxels v of a case:

        CE   = -1/N sum_v log p_y(v)
        Dice = 1 - 1/L sum_l (2 sum_v p_l y_l + s) / (sum_v p_l + sum_v y_l + s),   s = 1e-5

    The Dice loss averages over all labels, background included, without squares in the denominator: the
    reading that reproduces the numbers of the aortic-arch paper's implementation (arXiv 2311.07234).
    A label that a case does not have pulls its probability towards 0 everywhere. With dice_over foreground or
    batch it is over the foreground labels that a case, or the batch, has.

    Where the experiment asks for them, cl_dice times the soft centreline Dice loss and homology times the
    persistent-homology loss are added (see `threefold.tasks.topology`).
    """

    metrics = SegmentationSpec.metrics

    def __init__(self, context: TaskContext, spec: SegmentationSpec, sums: SharedSums | None = None) -> None:
        """Make the task.

        Args:
            context: gives the target, of kind mask or labels.
            spec: what the experiment says.
            sums: of the softmax, where a region task shares them.
        """
        super().__init__(context)
        assert self.target is not None
        self._spec = spec
        self._sums = sums or SharedSums(self.name, self.target)

    @property
    def head(self) -> Head:
        """Return one output per label, the background first."""
        known = self.context.known
        return Head("dense", 1 + (len(known.names) if isinstance(known, LabelsTarget) else 1))

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the loss of each case (B,), from logits (B, L, *S)."""
        sums, _ = self._sums.of(outputs, batch)
        terms = {"cross_entropy": sums.cross_entropy, "dice": self._dice(sums, batch)}
        terms.update(self._topology(outputs, batch))
        return torch.stack([getattr(self._spec, name) * term for name, term in terms.items()]).sum(dim=0)

    def answer(self, output: Tensor) -> Tensor:
        """Return the labels' probabilities (B, L, *S) float32."""
        return output.float().softmax(dim=1)

    def record(self, outputs: Outputs, batch: Batch) -> list[float]:
        """Return each case's mean Dice over its foreground labels; NaN if it has none."""
        assert self.target is not None
        return dices(self.output(outputs), batch.targets[self.target].values)

    def measure(self, records: Sequence[float]) -> dict[str, float]:
        """Return the mean Dice of the cases that have a foreground."""
        found = [value for value in records if not math.isnan(value)]
        return {"dice": float(np.mean(found)) if found else math.nan}

    def _dice(self, sums: LabelSums, batch: Batch) -> Tensor:
        if self._spec.dice_over == "case":
            return sums.dice_loss()
        return sums.foreground_dice_loss(self.present(batch), together=self._spec.dice_over == "batch")

    def _topology(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of topology (B,) that the experiment asks for, by name; 0 for absent targets."""
        spec, found = self._spec, {}
        asked: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...] = (
            ("cl_dice", cl_dice_loss),
            ("homology", homology_loss),
        )
        wanted = [(name, loss) for name, loss in asked if getattr(spec, name) > 0]
        if wanted:
            assert self.target is not None
            probabilities = self.output(outputs).softmax(dim=1)
            of = batch.targets[self.target]
            target, present = of.values, of.present
            none = probabilities.new_zeros(())
            for name, loss in wanted:
                cases = zip(probabilities, target, present.tolist(), strict=True)
                found[name] = torch.stack([loss(p, y) if there else none for p, y, there in cases])
        return found


def dices(logits: Tensor, target: Tensor) -> list[float]:
    """Return the mean Dice of each case over its foreground labels; NaN if it has none.

    Args:
        logits: (B, L, *S).
        target: (B, *S) labels.
    """
    predicted = logits.argmax(dim=1).flatten(1)  # (B, N)
    truth = target.flatten(1).long()  # (B, N)
    columns = []
    for label in range(1, logits.shape[1]):
        is_true, is_predicted = truth == label, predicted == label
        counts = (is_true.sum(1), is_predicted.sum(1), (is_true & is_predicted).sum(1))
        columns.append(overlap.dice(*(count.cpu().numpy() for count in counts)))
    per_label = np.stack(columns, axis=1)  # (B, L - 1), NaN where the case lacks the label
    found = [[value for value in row if not math.isnan(value)] for row in per_label.tolist()]
    return [float(np.mean(row)) if row else math.nan for row in found]
