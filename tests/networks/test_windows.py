"""The window partition, against what it is by definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.networks.swin import relative_position_index
from threefold.networks.windows import join, partition, shift_of, unrelated

sides = st.integers(1, 17)


def _plane(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.arange(1, 1 + 2 * height * width * channels).view(2, height, width, channels)


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, window=st.integers(1, 8), shifted=st.booleans())
def test_windows_and_back(height: int, width: int, window: int, shifted: bool) -> None:
    plane, grid = _plane(height, width), (height, width)
    shift = shift_of(grid, window, shifted=shifted)
    windows = partition(plane, window, shift)
    assert windows.shape[2] == window**2
    assert torch.equal(join(windows, grid, window, shift), plane)


def test_a_window_is_a_square_of_the_rolled_plane() -> None:
    plane = _plane(14, 21)
    windows = partition(plane, 7, (3, 3))
    rolled = torch.roll(plane, (-3, -3), dims=(1, 2))
    assert torch.equal(windows[:, 4], rolled[:, 7:, 7:14].flatten(1, 2))  # second row, second column


@pytest.mark.parametrize("grid", [(14, 14), (9, 16), (3, 5), (1, 8)])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_token_attends_to_its_neighbours_only(grid: tuple[int, int], shifted: bool) -> None:
    """Tokens of a window see each other exactly if they are as far apart in the image as in the window."""
    shift = shift_of(grid, 7, shifted=shifted)
    apart = unrelated(grid, 7, shift, torch.device("cpu"))
    places = torch.arange(grid[0] * grid[1]).view(1, *grid, 1)
    sources = partition(places + 1, 7, shift)[0, :, :, 0] - 1  # -1: padding
    window_places = torch.stack((torch.arange(49) // 7, torch.arange(49) % 7), dim=-1)
    near_in_window = window_places[:, None] - window_places[None]  # (49, 49, 2)
    for number, window in enumerate(sources):
        found = torch.stack((window // grid[1], window % grid[1]), dim=-1)
        near_in_image = found[:, None] - found[None]
        real = (window >= 0)[:, None] & (window >= 0)[None]
        seen = torch.ones(49, 49, dtype=torch.bool) if apart is None else ~apart[number]
        assert torch.equal(seen[real], (near_in_image == near_in_window).all(-1)[real])
        assert not seen[(window >= 0)[:, None] & (window < 0)[None]].any()
        assert seen.any(dim=1).all()  # no empty row, which would be NaN after the softmax


def test_relative_positions() -> None:
    index = relative_position_index(3).view(9, 9)
    for first in range(9):
        for second in range(9):
            rows, columns = first // 3 - second // 3, first % 3 - second % 3
            assert index[first, second] == (rows + 2) * 5 + columns + 2
