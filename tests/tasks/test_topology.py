"""Losses of topology: soft clDice against MONAI's, persistent homology on shapes whose bars are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from threefold.core.batch import Batch, Target
from threefold.core.outputs import Outputs
from threefold.errors import UsageError
from threefold.tasks import topology
from threefold.tasks.topology import cl_dice_loss, homology_loss, require_gudhi, soft_skeleton

from .makers import batch_of, case_losses, segmentation


def tubes(shape: tuple[int, ...] = (14, 12, 20)) -> Tensor:
    """Labels 1 (a straight tube) and 2 (one that bends); 3 is absent."""
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[2:5, 2:5, 2:18] = 1
    labels[8:12, 3:6, 4:15] = 2
    labels[8:12, 3:10, 12:15] = 2
    return labels


def probabilities_of(labels: Tensor, seed: int = 0, *, count: int = 4, blur: bool = True) -> Tensor:
    """Probabilities (L, *S) in float64 that follow the labels, and are 0 in empty boxes around them."""
    generator = torch.Generator().manual_seed(seed)
    truth = F.one_hot(labels.long(), count).movedim(-1, 0).double()
    if not blur:
        return truth
    near = F.max_pool3d(truth[1:], 3, 1, 1)
    noise = torch.rand(near.shape, generator=generator, dtype=torch.float64)
    foreground = near * (0.1 + 0.8 * noise) * (0.3 + 0.7 * truth[1:])
    return torch.cat([1 - foreground.sum(0, keepdim=True), foreground]).requires_grad_()


def monai_cl_dice(probability: Tensor, truth: Tensor) -> Tensor:
    from monai.losses.cldice import SoftclDiceLoss

    loss: Tensor = SoftclDiceLoss(iter_=3, smooth=1e-12)(probability[None, None], truth[None, None])
    return loss


def test_soft_cl_dice_is_monais_of_each_structure_alone() -> None:
    labels = tubes()
    p = probabilities_of(labels)
    expected = torch.stack([monai_cl_dice(p[k], (labels == k).double()) for k in (1, 2, 3)]).mean()
    found = cl_dice_loss(p, labels)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, p)
    (expected_gradient,) = torch.autograd.grad(expected, p)
    # Where voxels are equally small (0, here) either may be the smallest.
    torch.testing.assert_close(gradient[p > 0], expected_gradient[p > 0])
    assert gradient[p > 0].abs().sum() > 0


@pytest.mark.parametrize("shape", [(9, 8, 7), (11, 9), (1, 6, 6)])
def test_the_soft_skeleton_is_monais(shape: tuple[int, ...]) -> None:
    from monai.losses.cldice import soft_skel

    values = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = soft_skel(values[None, None], 3)[0, 0]
    torch.testing.assert_close(soft_skeleton(values, 3), expected)


def test_soft_cl_dice_punishes_a_gap_more_than_a_thin_wall() -> None:
    labels = torch.zeros(9, 9, 24, dtype=torch.uint8)
    labels[2:7, 2:7, 2:22] = 1
    whole = probabilities_of(labels, count=2, blur=False)
    thin, gap = whole.clone(), whole.clone()
    thin[:, 2, 2:7, 2:22] = torch.tensor([1.0, 0.0], dtype=torch.float64)[:, None, None]  # 100 voxels
    gap[:, 2:7, 2:7, 10:14] = torch.tensor([1.0, 0.0], dtype=torch.float64)[:, None, None, None]  # 100 voxels
    losses = [cl_dice_loss(p, labels).item() for p in (whole, thin, gap)]
    assert losses[0] == pytest.approx(0)
    assert losses[2] > 2 * losses[1]


def test_what_is_far_from_a_structure_does_not_count_below_a_probability_of_0_05() -> None:
    labels = tubes((14, 12, 40))
    p = probabilities_of(labels).detach()
    far = p.clone()
    far[1, :, :, 30:] = 0.04
    far[0, :, :, 30:] -= 0.04
    assert cl_dice_loss(far, labels).item() == pytest.approx(cl_dice_loss(p, labels).item())
    assert homology_loss(far, labels).item() == pytest.approx(homology_loss(p, labels).item())
    far[1, 6, 6, 30:] += 0.2
    assert cl_dice_loss(far, labels).item() > cl_dice_loss(p, labels).item() + 1e-3


def field(values: Any) -> Tensor:
    """Return (2, *S) probabilities of one structure."""
    p = torch.tensor(np.asarray(values, np.float64))
    return torch.stack([1 - p, p]).requires_grad_()


def ring(value: float) -> Tensor:
    """Return (7, 7, 3): a ring of 0.9 in the plane, one voxel of which is `value`."""
    p = torch.zeros(7, 7, 3, dtype=torch.float64)
    p[1:6, 1:6, 1] = 0.9
    p[2:5, 2:5, 1] = 0.0
    p[1, 3, 1] = value
    return p


def test_a_ring_that_is_no_ring_in_truth_is_opened_at_its_weakest_voxel() -> None:
    truth = torch.zeros(7, 7, 3, dtype=torch.uint8)
    truth[1:6, 1:6, 1] = 1
    truth[2:5, 2:5, 1] = 0
    truth[1, 3, 1] = 0  # open
    p = field(ring(0.6))
    loss = homology_loss(p, truth)
    # One component lasts from 0.9 to 0, as it should to 1; a tunnel from 0.6 to 0 ought not to be.
    assert loss.item() == pytest.approx((1 - 0.9) ** 2 + 0.6**2)
    (gradient,) = torch.autograd.grad(loss, p)
    assert gradient[1, 1, 3, 1] == pytest.approx(2 * 0.6)
    assert (gradient[1] != 0).sum() <= 3  # the weakest voxel, the component's birth, the tunnel's death


def test_a_ring_that_is_one_in_truth_is_closed_at_its_weakest_voxel() -> None:
    truth = (ring(0.9) > 0.5).to(torch.uint8)
    p = field(ring(0.3))
    loss = homology_loss(p, truth)
    assert loss.item() == pytest.approx((1 - 0.9) ** 2 + (1 - 0.3) ** 2)
    (gradient,) = torch.autograd.grad(loss, p)
    assert gradient[1, 1, 3, 1] == pytest.approx(-2 * 0.7)


def test_a_structure_in_two_pieces_is_joined_and_an_island_removed() -> None:
    values = torch.zeros(5, 5, 14, dtype=torch.float64)
    values[2, 2, 1:12] = 0.8
    values[2, 2, 6] = 0.2
    one = torch.zeros(5, 5, 14, dtype=torch.uint8)
    one[2, 2, 1:12] = 1
    p = field(values)
    loss = homology_loss(p, one)
    assert loss.item() == pytest.approx(0.2**2 + (0.8 - 0.2) ** 2)
    (gradient,) = torch.autograd.grad(loss, p)
    assert gradient[1, 2, 2, 6] < 0  # the gap's probability has to rise
    two = one.clone()
    two[2, 2, 6] = 0
    assert homology_loss(p, two).item() == pytest.approx(0.2**2 + 0.2**2 + 0.2**2)
    # A feature that the probability has at no level costs as much as it can.
    empty = field(np.full((5, 5, 14), 0.06))
    assert homology_loss(empty, two).item() == pytest.approx((1 - 0.06) ** 2 + 1)


def test_homology_in_the_plane_and_of_an_absent_structure() -> None:
    values = torch.zeros(7, 7, dtype=torch.float64)
    values[1:6, 1:6] = 0.7
    values[2:5, 2:5] = 0.1
    truth = torch.zeros(7, 7, dtype=torch.uint8)
    assert homology_loss(field(values), truth).item() == pytest.approx(0.7**2 + 0.6**2)
    assert homology_loss(field(torch.zeros(7, 7)), truth).item() == 0


def make_batch(labels: Tensor) -> Batch:
    structures = Target(torch.stack([labels, labels]), torch.tensor([True, False]))
    return batch_of(torch.zeros(2, 1, *labels.shape), structures=structures)


def test_the_segmentation_task_adds_them_for_the_cases_that_have_structures() -> None:
    labels = tubes()
    generator = torch.Generator().manual_seed(2)
    logits = 5 * F.one_hot(labels.long(), 4).movedim(-1, 0).float()
    logits = (logits + torch.randn(2, *logits.shape, generator=generator) / 2).requires_grad_()
    outputs, batch = Outputs({"segmentation": logits}), make_batch(labels)
    asked, plain = (
        segmentation(4, target="structures", cl_dice=0.7, homology=0.2),
        segmentation(4, target="structures"),
    )
    with_topology, without = (case_losses(task, outputs, batch) for task in (asked, plain))
    p = logits[0].softmax(0)
    expected = without[0] + 0.7 * cl_dice_loss(p, labels) + 0.2 * homology_loss(p, labels)
    torch.testing.assert_close(with_topology, torch.stack([expected, torch.zeros(())]))
    (gradient,) = torch.autograd.grad(with_topology.sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[1].abs().sum() == 0


def test_descending_the_homology_loss_mends_the_topology() -> None:
    truth = torch.zeros(6, 6, 16, dtype=torch.uint8)
    truth[2:4, 2:4, 1:15] = 1
    logits = 4 * (2 * truth.float() - 1)
    logits[2:4, 2:4, 7:9] = -1.0  # a gap
    logits.requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.2)
    for _ in range(40):
        optimiser.zero_grad()
        p = torch.stack([-logits, logits]).softmax(0)
        homology_loss(p, truth).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert int(topology.betti_numbers((logits.detach() > 0).numpy().astype(np.uint8), 1)[0, 0]) == 1


def test_without_gudhi_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_gudhi()
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'threefold\[topology\]'"):
        require_gudhi()
