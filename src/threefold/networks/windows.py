"""Windows of tokens: the cyclic shift and window partition of Swin (Liu et al. 2021, section 3.2, figure 4).

A grid that the window does not divide is padded with zeros, below and to the right. The padding's tokens are
masked from the others' attention and dropped again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]  # (H, W): tokens along the image's rows and columns


def shift_of(grid: Grid, window: int, *, shifted: bool) -> Grid:
    """Return how far a block's windows are shifted down and right; a side with room for one never is."""
    rows, columns = (window // 2 if shifted and side > window else 0 for side in grid)
    return rows, columns


def partition(tokens: Tensor, window: int, shift: Grid = (0, 0)) -> Tensor:
    """Cut a grid into windows: (B, H, W, C) to (B, windows, N, C), N = window^2.

    Args:
        tokens: (B, H, W, C).
        window: tokens along a window's side.
        shift: how far the windows lie down and right of the grid's corner, cyclically.
    """
    batch, height, width, channels = tokens.shape
    below, right = -height % window, -width % window
    if below or right:
        tokens = F.pad(tokens, (0, 0, 0, right, 0, below))
    if any(shift):
        tokens = torch.roll(tokens, (-shift[0], -shift[1]), dims=(1, 2))
    rows, columns = (height + below) // window, (width + right) // window
    windows = tokens.view(batch, rows, window, columns, window, channels).transpose(2, 3)
    return windows.reshape(batch, rows * columns, window**2, channels)


def join(windows: Tensor, grid: Grid, window: int, shift: Grid = (0, 0)) -> Tensor:
    """Put windows together again: what `partition` cut, (B, windows, N, C) to (B, H, W, C)."""
    rows, columns = (-(-side // window) for side in grid)
    batch, _, _, channels = windows.shape
    planes = windows.view(batch, rows, columns, window, window, channels).transpose(2, 3)
    tokens = planes.reshape(batch, rows * window, columns * window, channels)
    if any(shift):
        tokens = torch.roll(tokens, shift, dims=(1, 2))
    return tokens[:, : grid[0], : grid[1]]


def unrelated(grid: Grid, window: int, shift: Grid, device: torch.device) -> Tensor | None:
    """Tell which tokens of a window may not attend to each other.

    These are tokens that the cyclic shift brought next to each other, and tokens and padding.

    Returns:
        (windows, N, N) bool; None where all may.
    """
    height, width = grid
    if not any(shift) and height % window == 0 and width % window == 0:
        return None
    # A region a side of the seam and axis: tokens of one region are neighbours in the image; padding is 0.
    rows = (torch.arange(height, device=device) < shift[0]).long()
    columns = (torch.arange(width, device=device) < shift[1]).long()
    regions = 1 + 2 * rows[:, None] + columns[None, :]
    regions = partition(regions[None, :, :, None], window, shift)[0, :, :, 0]  # (windows, N)
    return regions[:, :, None] != regions[:, None, :]
