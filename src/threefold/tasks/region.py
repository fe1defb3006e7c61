"""The binary region: the structures' probabilities together against the mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from threefold.experiment import RegionSpec
from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs
from threefold.tasks.segmentation import soft_dice_loss
from threefold.tasks.task import CaseLosses, case_losses, head_output


class RegionTask:
    """cross_entropy * CE + dice * soft Dice loss of [p(background), 1 - p(background)], per case.

    The foreground's probability is the sum of all structures' (arXiv 2311.07234): a mask that was drawn
    without telling vessels apart teaches where vessels are, and leaves open which.
    """

    name = "region"

    def __init__(self, spec: RegionSpec) -> None:
        """Make the task as the experiment says."""
        self._spec = spec

    def losses(self, outputs: Outputs, batch: Batch) -> CaseLosses:
        """Return the loss of each case from outputs.segmentation (B, L, *S) and its mask."""
        logits = head_output(outputs.segmentation, self.name).flatten(2)  # (B, L, N)
        inside = batch.mask.flatten(1).long().where(batch.has_mask[:, None], 0)  # (B, N)
        # log p(foreground) - log p(background): finite however sure the network is
        odds = logits[:, 1:].logsumexp(dim=1) - logits[:, 0]  # (B, N)
        foreground = F.logsigmoid(odds)
        log_probabilities = torch.stack([F.logsigmoid(-odds), foreground], dim=1)  # (B, 2, N)
        cross_entropy = -log_probabilities.gather(1, inside[:, None]).mean(dim=(1, 2))
        dice = soft_dice_loss(log_probabilities.exp(), inside)
        return case_losses(
            self._spec.cross_entropy * cross_entropy + self._spec.dice * dice,
            batch.has_mask,
            {"cross_entropy": cross_entropy, "dice": dice},
        )
