"""The binary region: the structures' probabilities together against the mask."""

from __future__ import annotations

from threefold.experiment import RegionSpec
from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs
from threefold.tasks.label_sums import SharedSums
from threefold.tasks.task import CaseLosses, case_losses


class RegionTask:
    """cross_entropy * CE + dice * soft Dice loss of [p(background), 1 - p(background)], per case.

    The foreground's probability is the sum of all structures' (arXiv 2311.07234): a mask that was drawn
    without telling vessels apart teaches where vessels are, and leaves open which.
    """

    name = "region"

    def __init__(self, spec: RegionSpec, sums: SharedSums | None = None) -> None:
        """Make the task.

        Args:
            spec: what the experiment says.
            sums: of the softmax, which the segmentation task shares.
        """
        self._spec = spec
        self._sums = sums or SharedSums("structures", region=True)

    def losses(self, outputs: Outputs, batch: Batch) -> CaseLosses:
        """Return the loss of each case from outputs.segmentation (B, L, *S) and its mask."""
        _, sums = self._sums.of(outputs, batch, self.name)
        assert sums is not None
        values = self._spec.cross_entropy * sums.cross_entropy + self._spec.dice * sums.dice_loss()
        return case_losses(values, batch.has_mask)
