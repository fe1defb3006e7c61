"""Numbers of a mask's shape, against shapes of which they are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from threefold.networks.mask_shape import shape_features

SIDE = 96
HARMONICS = 6


def _star(
    lobes: int, *, depth: float = 0.2, turn: float = 0.0, centre: tuple[float, float] = (0.5, 0.5)
) -> Tensor:
    """(1, 1, SIDE, SIDE): radius 0.25 (1 + depth cos(lobes (angle - turn)))."""
    middles = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE
    y, x = middles[:, None] - centre[0], middles[None] - centre[1]
    outline = 0.25 * (1 + depth * torch.cos(lobes * (torch.atan2(y, x) - turn)))
    return (0.5 + (outline - torch.hypot(x, y)) * SIDE).clamp(0, 1)[None, None]


def _numbers(mask: Tensor) -> Tensor:
    return shape_features(mask, HARMONICS)[0, 0]


@pytest.mark.parametrize("lobes", [3, 5])
def test_a_lobed_outline_is_its_harmonic(lobes: int) -> None:
    harmonics = _numbers(_star(lobes, depth=0.15))[4:]
    assert harmonics[lobes - 1] == pytest.approx(0.15, rel=0.05)
    others = torch.cat((harmonics[: lobes - 1], harmonics[lobes:]))
    assert others.max() < 0.02


def test_size_spread_and_largest_probability_of_a_disc() -> None:
    share, largest, shortest, longest = _numbers(0.8 * _star(3, depth=0.0))[:4].tolist()
    assert share == pytest.approx(math.log(0.8 * math.pi * 0.25**2), abs=0.01)
    assert largest == pytest.approx(0.8)
    assert shortest == pytest.approx(0.125, rel=0.02)  # half the radius
    assert longest == pytest.approx(0.125, rel=0.02)


def test_moving_and_turning_change_nothing() -> None:
    here = _numbers(_star(5))
    torch.testing.assert_close(_numbers(_star(5, centre=(0.4, 0.6))), here, rtol=0.01, atol=0.01)
    torch.testing.assert_close(_numbers(_star(5, turn=0.3)), here, rtol=0.01, atol=0.01)


def test_the_axes_of_a_box() -> None:
    mask = torch.zeros(1, 1, 8, 16, 32, dtype=torch.float64)
    mask[:, :, 2:6, 4:12, 8:24] = 1
    found = shape_features(mask, 0)[0, 0]
    sides = torch.tensor([4, 8, 16], dtype=torch.float64) / 32
    torch.testing.assert_close(found[2:], sides / math.sqrt(12), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "mask", [torch.zeros(2, 1, 9, 9), torch.ones(2, 1, 9, 9), torch.full((2, 1, 9, 9), 0.5)]
)
def test_any_mask_has_finite_numbers_and_gradients(mask: Tensor) -> None:
    mask.requires_grad_()
    found = shape_features(mask, HARMONICS)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert mask.grad is not None
    assert torch.isfinite(mask.grad).all()
