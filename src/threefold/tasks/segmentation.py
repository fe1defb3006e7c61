"""Segmentation: softmax cross-entropy plus soft Dice loss, and losses of topology."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from threefold.experiment import SegmentationSpec
from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs
from threefold.tasks.label_sums import SharedSums
from threefold.tasks.task import CaseLosses, case_losses, head_output
from threefold.tasks.topology import cl_dice_loss, homology_loss


class SegmentationTask:
    """cross_entropy * CE + dice * soft Dice loss, each computed per case.

    With p = softmax(logits) over L labels and y the one-hot target, sums over the N voxels v of a case:

        CE   = -1/N sum_v log p_y(v)
        Dice = 1 - 1/L sum_l (2 sum_v p_l y_l + s) / (sum_v p_l + sum_v y_l + s),   s = 1e-5

    The Dice loss averages over all labels, background included, without squares in the denominator: the
    reading that reproduces the numbers of the aortic-arch paper's implementation (arXiv 2311.07234).
    A label that a case does not have pulls its probability towards 0 everywhere.

    Where the experiment asks for them, cl_dice times the soft centreline Dice loss and homology times the
    persistent-homology loss are added (see `threefold.tasks.topology`).
    """

    name = "segmentation"

    def __init__(self, spec: SegmentationSpec, sums: SharedSums | None = None) -> None:
        """Make the task.

        Args:
            spec: what the experiment says.
            sums: of the softmax, where a region task shares them.
        """
        self._spec = spec
        self._sums = sums or SharedSums(spec.target)

    def losses(self, outputs: Outputs, batch: Batch) -> CaseLosses:
        """Return the loss of each case from outputs.segmentation (B, L, *S)."""
        present = batch.label_maps(self._spec.target)[1]
        sums, _ = self._sums.of(outputs, batch, self.name)
        terms = {"cross_entropy": sums.cross_entropy, "dice": sums.dice_loss()}
        terms.update(self._topology(outputs, batch))
        values = torch.stack([getattr(self._spec, name) * term for name, term in terms.items()]).sum(dim=0)
        return case_losses(values, present)

    def _topology(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of topology (B,) that the experiment asks for, by name; 0 for absent targets."""
        spec, found = self._spec, {}
        asked: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...] = (
            ("cl_dice", cl_dice_loss),
            ("homology", homology_loss),
        )
        wanted = [(name, loss) for name, loss in asked if getattr(spec, name) > 0]
        if wanted:
            probabilities = head_output(outputs.segmentation, self.name).softmax(dim=1)
            target, present = batch.label_maps(spec.target)
            none = probabilities.new_zeros(())
            for name, loss in wanted:
                cases = zip(probabilities, target, present.tolist(), strict=True)
                found[name] = torch.stack([loss(p, y) if there else none for p, y, there in cases])
        return found
