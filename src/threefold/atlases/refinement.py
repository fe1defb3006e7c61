"""Instance refinement: the optimisation of one pair's own field, on coarse to fine grids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from threefold.atlases.spec import PropagationSpec
from threefold.networks.registration_losses import LocalSums, local_correlation, overlap_loss, smoothness
from threefold.networks.warping import integrate, resize_field, shrink, warp

_GRIDS = ((4, 4), (2, 2), (1, 2))
"""By how much images and field are coarser, one grid after the other."""
_SMALLEST = 8
"""Voxels: no axis of a coarse grid gets shorter, where the image's is not."""


@dataclass(frozen=True)
class Pair:
    """An atlas and an image on the image's registration grid, the atlas affinely aligned.

    Attributes:
        fixed: (1, 1, *S) the image, 0..1.
        moving: (1, 1, *S) the atlas, 0..1.
        region: (1, 1, *S) share of the atlas's structures in each voxel; None: masks do not steer.
        mask: (1, 1, *S) the image's mask; None: absent, or masks do not steer.
    """

    fixed: Tensor
    moving: Tensor
    region: Tensor | None = None
    mask: Tensor | None = None


def registration_loss(pair: Pair, displacement: Tensor, field: Tensor, spec: PropagationSpec) -> Tensor:
    """Return minus the local correlation, plus the weighted smoothness and overlap losses.

    Args:
        pair: what is registered.
        displacement: (1, 3, *S), voxels.
        field: what smoothness is asked of: the velocity, or the displacement itself.
        spec: window and weights.
    """
    target = LocalSums.of(pair.fixed, spec.window)
    return loss_to(target, pair, displacement, field, spec)


def loss_to(
    target: LocalSums, pair: Pair, displacement: Tensor, field: Tensor, spec: PropagationSpec
) -> Tensor:
    """As `registration_loss`, the fixed image being summed already."""
    loss = -local_correlation(warp(pair.moving, displacement, outside="border"), target)
    if spec.smoothness_weight:
        loss = loss + spec.smoothness_weight * smoothness(field, spec.smoothness)
    if spec.mask_weight and pair.region is not None and pair.mask is not None:
        loss = loss + spec.mask_weight * overlap_loss(warp(pair.region, displacement), pair.mask)
    return loss


def refine(pair: Pair, start: Tensor | None, spec: PropagationSpec) -> Tensor:
    """Return the displacement that registers a pair best: (1, 3, *S), voxels.

    Adam optimises what is added to the field (to the velocity where `spec.diffeomorphic`), with the images
    at a quarter, at half and at their full resolution, and the field at half of it at most.

    Args:
        pair: what is registered.
        start: (1, 3, *S) the network's prediction; None: no movement.
        spec: steps, learning rate, loss.
    """
    size = tuple(pair.fixed.shape[2:])
    base = torch.zeros(1, 3, *size, device=pair.fixed.device) if start is None else start
    if not spec.refinement_steps:
        return displacement_of(base, spec)
    addition = torch.zeros(1, 3, *_coarser(size, _GRIDS[0][1]), device=pair.fixed.device)
    for image_factor, field_factor in _GRIDS:
        on_field = _coarser(size, field_factor)
        addition = resize_field(addition, on_field)
        coarse = _shrunk(pair, _coarser(size, image_factor))
        addition = _optimise(coarse, resize_field(base, on_field), addition, spec)
    field = resize_field(base, tuple(addition.shape[2:])) + addition
    return resize_field(displacement_of(field, spec), size)


def displacement_of(field: Tensor, spec: PropagationSpec) -> Tensor:
    """Return a field's displacement: integrated where it is a velocity."""
    return integrate(field, spec.integration_steps) if spec.diffeomorphic else field


def _optimise(pair: Pair, base: Tensor, addition: Tensor, spec: PropagationSpec) -> Tensor:
    """Optimise what is added to a field; the field may be coarser than the images that it moves."""
    size = tuple(pair.fixed.shape[2:])
    addition = addition.clone().requires_grad_()
    optimiser = torch.optim.Adam([addition], lr=spec.refinement_learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.1, spec.refinement_steps)
    target = LocalSums.of(pair.fixed, spec.window)
    for _ in range(spec.refinement_steps):
        optimiser.zero_grad()
        field = base + addition
        displacement = resize_field(displacement_of(field, spec), size)
        loss_to(target, pair, displacement, field, spec).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return addition.detach()


def _coarser(size: tuple[int, ...], factor: int) -> tuple[int, ...]:
    return tuple(min(side, max(_SMALLEST, round(side / factor))) for side in size)


def _shrunk(pair: Pair, size: tuple[int, ...]) -> Pair:
    return Pair(
        shrink(pair.fixed, size),
        shrink(pair.moving, size),
        None if pair.region is None else shrink(pair.region, size),
        None if pair.mask is None else shrink(pair.mask, size),
    )
