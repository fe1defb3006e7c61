"""Orders of tokens, against moves done the plain way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.networks.cpu.orders import Order, Tokens, window_order
from threefold.networks.windows import partition, shift_of, unrelated

sides = st.integers(1, 17)


def _raster(height: int, width: int, channels: int = 3) -> Tokens:
    values = torch.arange(2 * height * width * channels, dtype=torch.float64)
    return Tokens(values.view(2, height * width, channels), Order((height, width)))


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, window=st.integers(1, 8), shifted=st.booleans())
def test_windows_and_back(height: int, width: int, window: int, shifted: bool) -> None:
    tokens = _raster(height, width)
    order = window_order((height, width), window, shifted=shifted)
    moved = tokens.to(order)
    assert moved.values.shape[1] % window**2 == 0
    assert torch.equal(moved.to(tokens.order).values, tokens.values)
    other = window_order((height, width), window, shifted=not shifted)
    assert torch.equal(moved.to(other).raster(), tokens.raster())


def test_shifted_windows_are_roll_and_partition() -> None:
    tokens = _raster(14, 21)
    moved = tokens.to(window_order((14, 21), 7, shifted=True))
    rolled = torch.roll(tokens.raster(), (-3, -3), dims=(1, 2))
    windows = rolled.view(2, 2, 7, 3, 7, 3).transpose(2, 3).reshape(2, 6 * 49, 3)
    assert torch.equal(moved.values, windows)
    assert torch.equal(moved.values, partition(tokens.raster(), 7, (3, 3)).flatten(1, 2))


def test_merged_is_the_published_concatenation() -> None:
    tokens = _raster(4, 6)
    image = tokens.raster()
    expected = torch.cat(
        [image[:, 0::2, 0::2], image[:, 1::2, 0::2], image[:, 0::2, 1::2], image[:, 1::2, 1::2]], dim=-1
    )
    merged = tokens.to(Order((4, 6), "merged")).values.view(2, 2, 3, 12)
    assert torch.equal(merged, expected)


def test_expanded_is_a_pixel_shuffle() -> None:
    coarse = torch.randn(2, 3, 5, 4 * 6)  # each token: 2x2 parts of 6 channels
    tokens = Tokens(coarse.view(2, 60, 6), Order((6, 10), "expanded"))
    expected = coarse.view(2, 3, 5, 2, 2, 6).permute(0, 1, 3, 2, 4, 5).reshape(2, 6, 10, 6)
    assert torch.equal(tokens.raster(), expected)


@pytest.mark.parametrize("grid", [(14, 14), (9, 16), (3, 5), (1, 8)])
@pytest.mark.parametrize("shifted", [False, True])
def test_the_mask_is_the_plain_one(grid: tuple[int, int], shifted: bool) -> None:
    mask = window_order(grid, 7, shifted=shifted).attention_mask()
    apart = unrelated(grid, 7, shift_of(grid, 7, shifted=shifted), torch.device("cpu"))
    assert (mask is None) == (apart is None)
    if mask is not None and apart is not None:
        assert torch.equal(mask, torch.zeros(apart.shape).masked_fill(apart, float("-inf")))


def test_gradient_of_a_move_with_padding() -> None:
    order = window_order((5, 9), 4, shifted=True)
    values = torch.randn(2, 45, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 45, 3, dtype=torch.float64)
    there_and_back = Tokens(values, Order((5, 9))).to(order).to(Order((5, 9))).values
    (gradient,) = torch.autograd.grad((there_and_back * weight).sum(), values)
    torch.testing.assert_close(gradient, weight, rtol=0, atol=0)


def test_indices_made_while_inferring_serve_training() -> None:
    grid = (10, 12)  # of no other test: the indices are kept
    with torch.inference_mode():
        Tokens(torch.randn(1, 120, 2), Order(grid)).to(window_order(grid, 5, shifted=True))
    values = torch.randn(1, 120, 2, requires_grad=True)
    Tokens(values, Order(grid)).to(window_order(grid, 5, shifted=True)).values.sum().backward()
    assert values.grad is not None
