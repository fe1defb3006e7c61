"""VoxelMorph, warps, fields and losses, against MONAI, scipy and what can be said by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates, uniform_filter
from torch import Tensor, nn

from threefold.networks import warping
from threefold.networks.registration import VoxelMorph, VoxelMorphUnet
from threefold.networks.registration_losses import (
    LocalSums,
    bending,
    diffusion,
    local_correlation,
    overlap_loss,
    window_sums,
)
from threefold.networks.warping import integrate, jacobian_determinant, resize_field, sample, shrink, warp


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smooth_field(size: tuple[int, ...], length: float, seed: int = 0) -> Tensor:
    coarse = random(1, 3, 4, 4, 4, seed=seed) * 2 - 1
    return length * nn.functional.interpolate(coarse, size=size, mode="trilinear", align_corners=True)


def monai_twin(channels: tuple[int, ...], final: tuple[int, ...], steps: int) -> tuple[nn.Module, VoxelMorph]:
    """Return MONAI's network and ours, with the same random weights, float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.nets import VoxelMorph as Published
        from monai.networks.nets import VoxelMorphUNet as PublishedUnet

        torch.manual_seed(0)
        theirs = Published(PublishedUnet(3, 2, 32, channels, final), integration_steps=steps).double()
    ours = VoxelMorph(VoxelMorphUnet(channels, final), steps).double()
    unet = ours.unet
    layers = [*unet.down, unet.bottom, *reversed(unet.up), *unet.final, unet.out]
    published = [module for module in theirs.modules() if isinstance(module, nn.Conv3d)]
    for mine, other in zip(layers, published, strict=True):
        mine.load_state_dict(other.state_dict())
    with torch.no_grad():  # so that the fields move by voxels
        for conv in (unet.out, published[-1]):
            conv.weight.mul_(100)
    return theirs, ours


@pytest.mark.parametrize(
    ("channels", "final", "steps"),
    [
        ((16, 32, 32, 32, 32, 32), (16, 16), 7),
        ((16, 32, 32, 32, 32, 32), (16, 16), 0),
        ((4, 6, 8, 10), (5,), 3),
        ((4, 6), (), 0),
    ],
)
def test_voxelmorph_equals_monai(channels: tuple[int, ...], final: tuple[int, ...], steps: int) -> None:
    theirs, ours = monai_twin(channels, final, steps)
    moving, fixed = random(2, 1, 16, 24, 8), random(2, 1, 16, 24, 8, seed=1)
    warped, displacement = theirs(moving, fixed)
    found = ours(moving, fixed)
    assert displacement.abs().max() > 0.5
    torch.testing.assert_close(found.displacement, displacement, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.warped, warped, rtol=0, atol=1e-10)
    assert (found.velocity is None) == (steps == 0)
    theirs_gradient = torch.autograd.grad(warped.square().sum(), next(iter(theirs.parameters())))[0]
    ours_gradient = torch.autograd.grad(found.warped.square().sum(), ours.unet.down[0].weight)[0]
    torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=1e-8, atol=1e-10)


def test_any_size_is_padded_inside() -> None:
    unet = VoxelMorphUnet((4, 6, 8, 10), (5,)).double()
    nn.init.normal_(unet.out.weight, std=0.1)
    pair = random(1, 2, 9, 12, 7)
    padded = nn.functional.pad(pair, (0, 1, 0, 0, 0, 3))
    assert unet(pair).shape == (1, 3, 9, 12, 7)
    torch.testing.assert_close(unet(pair), unet(padded)[:, :, :9, :, :7])


def test_a_new_network_hardly_moves_anything() -> None:
    moving, fixed = random(1, 1, 16, 16, 16).float(), random(1, 1, 16, 16, 16, seed=1).float()
    found = VoxelMorph(VoxelMorphUnet())(moving, fixed)
    assert found.displacement.abs().max() < 1e-3


@pytest.mark.parametrize("window", [3, 5, 7, 9, 11, 17])
def test_window_sums_equal_scipy(window: int) -> None:
    values = random(2, 3, 12, 9, 14)
    expected = uniform_filter(values.numpy(), (0, 0, window, window, window), mode="constant") * window**3
    np.testing.assert_allclose(window_sums(values, window), expected, atol=1e-9)


@pytest.mark.parametrize("window", [5, 9])
def test_local_correlation_equals_monai(window: int) -> None:
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    target = random(2, 1, 12, 15, 11)
    target[:, :, :6] = 0.25  # a flat part, whose deviations are cut at their least
    values = (random(2, 1, 12, 15, 11, seed=1) + target).requires_grad_()
    expected = -LocalNormalizedCrossCorrelationLoss(kernel_size=window)(values, target)
    found = local_correlation(values, LocalSums.of(target, window))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(one, values)[0] for one in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-14)


def test_local_correlation_ignores_brightness_and_contrast() -> None:
    values = random(1, 1, 12, 12, 12)
    inner = LocalSums.of(values, 5)
    # not 1 exactly: outside the volume is 0, which a changed brightness is not
    assert local_correlation(values, inner) == pytest.approx(1, abs=1e-6)
    assert local_correlation(3 * values, inner) == pytest.approx(1, abs=1e-6)
    assert local_correlation(random(1, 1, 12, 12, 12, seed=5), inner) < 0.3
    assert local_correlation(torch.zeros_like(values), inner) == 0


def test_local_correlation_of_flat_volumes_has_a_gradient_of_zero() -> None:
    values = torch.full((1, 1, 8, 8, 8), 0.5, dtype=torch.float64, requires_grad=True)
    local_correlation(values, LocalSums.of(torch.zeros_like(values), 3)).backward()
    assert torch.equal(values.grad, torch.zeros_like(values))  # type: ignore[arg-type]


def test_bending_equals_monai_and_lets_affine_fields_pass() -> None:
    from monai.losses import BendingEnergyLoss

    field = random(2, 3, 7, 8, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI indexes in a way that PyTorch gives up
        expected = BendingEnergyLoss()(field)
    torch.testing.assert_close(bending(field), expected, rtol=1e-12, atol=0)
    places = torch.stack(torch.meshgrid(*[torch.arange(6.0, dtype=torch.float64)] * 3, indexing="ij"))
    affine = torch.einsum("xc,cijk->xijk", random(3, 3), places)[None]
    assert bending(affine) < 1e-20
    assert diffusion(affine) == pytest.approx(float(random(3, 3).square().sum() / 3))


def test_diffusion_equals_differences_by_hand() -> None:
    field = random(1, 3, 4, 5, 6)
    expected = sum(np.square(np.diff(field.numpy(), axis=axis)).mean() for axis in (2, 3, 4))
    assert float(diffusion(field)) == pytest.approx(expected)


def test_overlap_loss_is_one_minus_dice_and_can_be_followed() -> None:
    mask = torch.zeros(2, 1, 6, 6, 6)
    mask[:, :, 2:4] = 1
    assert overlap_loss(mask, mask) == 0
    assert overlap_loss(mask.roll(1, 2), mask) == 0.5
    assert overlap_loss(torch.zeros_like(mask), torch.zeros_like(mask)) == 1
    field = torch.zeros(2, 3, 6, 6, 6, requires_grad=True)
    overlap_loss(warp(mask.roll(1, 2), field), mask).backward()
    assert field.grad is not None
    # moving the region back by a voxel means looking one voxel further: the field has to grow
    assert (field.grad[:, 0] <= 0).all()
    assert (field.grad[:, 0] < 0).any()


def test_warp_looks_up_where_the_field_points() -> None:
    values, field = random(2, 3, 7, 8, 9), smooth_field((7, 8, 9), 2.0).expand(2, -1, -1, -1, -1)
    places = np.stack(np.meshgrid(*map(np.arange, (7, 8, 9)), indexing="ij")) + field[0].numpy()
    for order, number in (("linear", 1), ("nearest", 0)):
        for outside, mode in (("zeros", "grid-constant"), ("border", "nearest")):
            found = warp(values, field, order=order, outside=outside)  # type: ignore[arg-type]
            expected = map_coordinates(values[1, 2].numpy(), places, order=number, mode=mode)
            np.testing.assert_allclose(found[1, 2], expected, atol=1e-9)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_volume_are_warped_as_the_whole(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, field = random(2, 3, 8, 5, 6), smooth_field((8, 5, 6), 2.0).expand(2, -1, -1, -1, -1)
    results = []
    for count in (1, parts):
        monkeypatch.setattr(warping, "_parts", lambda batch, side, count=count: count)
        entries = [values.clone().requires_grad_(), field.clone().requires_grad_()]
        warped = warp(*entries)
        results.append([warped, *torch.autograd.grad(warped.square().sum(), entries)])
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole)


def test_parts_divide_the_first_axis() -> None:
    assert all(side % warping._parts(1, side) == 0 for side in range(1, 40))
    assert warping._parts(1, 7) == 1 or torch.get_num_threads() >= 7


def test_a_constant_velocity_moves_by_itself() -> None:
    velocity = torch.zeros(1, 3, 8, 24, 8, dtype=torch.float64)
    velocity[:, 1] = 2.0
    # what lies within its reach of the border sees the zeros beyond
    torch.testing.assert_close(integrate(velocity)[:, :, :, :12], velocity[:, :, :, :12])


def test_integration_is_inverted_by_the_opposite_velocity() -> None:
    wave = torch.sin(torch.linspace(0, torch.pi, 24, dtype=torch.float64))
    bump = torch.einsum("i,j,k->ijk", wave, wave, wave)  # 0 at the border
    velocity = torch.stack((2 * bump, -3 * bump, bump * bump))[None]
    there, back = integrate(velocity), integrate(-velocity)
    assert there.abs().max() > 2.5
    assert (there + warp(back, there)).abs().max() < 0.05
    assert jacobian_determinant(there).min() > 0
    # three times the velocity, taken as a displacement, folds where it is steep
    assert jacobian_determinant(3 * velocity).min() <= 0
    assert jacobian_determinant(integrate(3 * velocity)).min() > 0


def test_jacobian_determinant_of_a_linear_field_and_of_any() -> None:
    places = torch.stack(torch.meshgrid(*[torch.arange(5.0, dtype=torch.float64)] * 3, indexing="ij"))
    matrix = random(3, 3) - 0.5
    field = torch.einsum("xc,cijk->xijk", matrix, places)[None]
    expected = torch.linalg.det(torch.eye(3, dtype=torch.float64) + matrix)
    torch.testing.assert_close(jacobian_determinant(field), expected.expand(1, 5, 5, 5))
    field = random(1, 3, 5, 6, 7) * 2
    rows = [np.gradient(field[0, axis].numpy()) for axis in range(3)]
    matrices = np.moveaxis(np.array(rows), (0, 1), (-2, -1)) + np.eye(3)
    np.testing.assert_allclose(jacobian_determinant(field)[0], np.linalg.det(matrices), atol=1e-12)
    assert (np.linalg.det(matrices) <= 0).any()


def test_fields_keep_their_meaning_on_other_grids() -> None:
    field = torch.ones(1, 3, 8, 6, 4, dtype=torch.float64)
    smaller = resize_field(field, (4, 3, 4))
    assert smaller.shape == (1, 3, 4, 3, 4)
    assert smaller[0, :, 0, 0, 0].tolist() == [0.5, 0.5, 1.0]
    torch.testing.assert_close(resize_field(smaller, (8, 6, 4)), field)
    # a straight rise stays one, away from the border
    rise = torch.arange(16.0, dtype=torch.float64).view(1, 1, 16, 1, 1).expand(1, 3, 16, 16, 16)
    again = resize_field(resize_field(rise, (8, 8, 8)), (16, 16, 16))
    torch.testing.assert_close(again[:, :, 1:-1], rise[:, :, 1:-1])
    torch.testing.assert_close(shrink(rise, (8, 8, 8)), nn.functional.avg_pool3d(rise, 2))


def test_sampling_follows_the_order_of_axes() -> None:
    values = random(1, 1, 3, 4, 5)
    corner = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64).view(1, 1, 1, 1, 3)
    assert sample(values, corner).item() == pytest.approx(values[0, 0, 0, 0, 4].item())
