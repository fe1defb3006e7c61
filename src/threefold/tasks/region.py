"""The union of all structures, trained on a binary mask."""

from __future__ import annotations

from torch import Tensor

from threefold.core.batch import Batch
from threefold.core.outputs import Outputs
from threefold.experiment import RegionSpec
from threefold.tasks.label_sums import SharedSums
from threefold.tasks.task import Task, TaskContext


class RegionTask(Task):
    """cross_entropy * CE + dice * soft Dice loss of [p(background), 1 - p(background)], per case.

    The foreground's probability is the sum of all structures' (arXiv 2311.07234): a mask that was drawn
    without telling vessels apart teaches where vessels are, and leaves open which.
    """

    def __init__(self, context: TaskContext, spec: RegionSpec, sums: SharedSums) -> None:
        """Make the task.

        Args:
            context: gives the target, of kind mask.
            spec: what the experiment says.
            sums: of the softmax, which the segmentation task shares; they name its head.
        """
        super().__init__(context)
        self._spec, self._sums = spec, sums

    @property
    def head(self) -> None:
        """Return None: the head is the segmentation task's."""
        return None

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the loss of each case (B,), from the segmentation's logits (B, L, *S) and the mask."""
        _, sums = self._sums.of(outputs, batch)
        assert sums is not None
        return self._spec.cross_entropy * sums.cross_entropy + self._spec.dice * sums.dice_loss()
