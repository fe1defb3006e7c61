"""Segmentation: softmax cross-entropy plus soft Dice loss."""

from __future__ import annotations

import torch
from torch import Tensor

from threefold.experiment import SegmentationSpec
from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs
from threefold.tasks.task import CaseLosses, case_losses, head_output

# Added to numerator and denominator, so that a class that a case neither has nor is predicted scores 1.
SMOOTHING = 1e-5


class SegmentationTask:
    """cross_entropy * CE + dice * soft Dice loss, each computed per case.

    With p = softmax(logits) over L labels and y the one-hot target, sums over the N voxels v of a case:

        CE   = -1/N sum_v log p_y(v)
        Dice = 1 - 1/L sum_l (2 sum_v p_l y_l + s) / (sum_v p_l + sum_v y_l + s),   s = 1e-5

    The Dice loss averages over all labels, background included, without squares in the denominator: the
    reading that reproduces the numbers of the aortic-arch paper's implementation (arXiv 2311.07234).
    A label that a case does not have pulls its probability towards 0 everywhere.
    """

    name = "segmentation"

    def __init__(self, spec: SegmentationSpec) -> None:
        """Make the task as the experiment says."""
        self._spec = spec

    def losses(self, outputs: Outputs, batch: Batch) -> CaseLosses:
        """Return the loss of each case from outputs.segmentation (B, L, *S)."""
        logits = head_output(outputs.segmentation, self.name)
        target, present = batch.label_maps(self._spec.target)
        # An absent target may hold anything; it must still be a valid label to be looked up.
        labels = target.flatten(1).long().where(present[:, None], 0)  # (B, N)
        log_probabilities = logits.flatten(2).log_softmax(dim=1)  # (B, L, N)
        cross_entropy = -log_probabilities.gather(1, labels[:, None]).mean(dim=(1, 2))
        dice = soft_dice_loss(log_probabilities.exp(), labels)
        return case_losses(
            self._spec.cross_entropy * cross_entropy + self._spec.dice * dice,
            present,
            {"cross_entropy": cross_entropy, "dice": dice},
        )


def soft_dice_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the soft Dice loss of each case, averaged over all labels.

    Args:
        probabilities: (B, L, N) float32, summing to 1 over L.
        labels: (B, N) int64 in [0, L).

    Returns:
        (B,) loss in [0, 1].
    """
    # No one-hot of L x N: only the true label's probability is summed, once per label.
    of_truth = probabilities.gather(1, labels[:, None]).squeeze(1)  # (B, N)
    is_label = [labels == label for label in range(probabilities.shape[1])]
    overlap = torch.stack([of_truth.where(here, 0.0).sum(1) for here in is_label], dim=1)  # (B, L)
    true_size = torch.stack([here.sum(1) for here in is_label], dim=1)  # (B, L)
    size = probabilities.sum(dim=2) + true_size
    return 1 - ((2 * overlap + SMOOTHING) / (size + SMOOTHING)).mean(dim=1)
