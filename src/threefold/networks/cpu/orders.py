"""Orders of a grid's tokens: raster, windows, shifted windows, patch merging, patch expanding.

Swin's cyclic shift, window partition, patch merging and patch expanding only move tokens about, and what
comes between them (norms, linear layers, the MLP, attention inside a window) does not care where a token
came from. So tokens are kept in the order that the next layer wants and moved once, by one gather.

A grid that the window does not divide is padded to windows: the padding's slots repeat token 0, are masked
from the others' attention and dropped by the next gather, so what they hold is never seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, wraps
from typing import Literal, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from threefold.networks.cpu.gradients import MoveTokens
from threefold.networks.windows import Grid, shift_of

P = ParamSpec("P")
T = TypeVar("T")
Kind = Literal["raster", "windows", "merged", "expanded"]
OrderKey = tuple[Grid, Kind, int, Grid]


@dataclass(frozen=True)
class Order:
    """An order of the H*W tokens of a grid.

    Attributes:
        grid: (H, W).
        kind: raster: row by row. windows: window by window, each row by row. merged: 2x2 block by 2x2
            block, in the order of the published patch merging (down first). expanded: tokens of the grid
            of half the size, each with its 2x2 tokens (right first), as patch expanding makes them.
        window: windows: tokens along a window's side.
        shift: windows: how far the windows are shifted down and right, cyclically.
    """

    grid: Grid
    kind: Kind = "raster"
    window: int = 0
    shift: Grid = (0, 0)

    @property
    def key(self) -> OrderKey:
        """The fields, as plain values."""
        return self.grid, self.kind, self.window, self.shift

    @property
    def slots(self) -> int:
        """Number of slots: H*W, or more where windows are padded."""
        height, width = self.grid
        if self.kind != "windows":
            return height * width
        return _round_up(height, self.window) * _round_up(width, self.window)

    @property
    def padded(self) -> bool:
        """Whether there are more slots than tokens."""
        height, width = self.grid
        return self.slots != height * width

    @property
    def trivial(self) -> bool:
        """Whether the order is the raster order."""
        return self.kind == "raster" or (self.kind == "windows" and self.grid == (self.window, self.window))

    @cached_property
    def source(self) -> Tensor:
        """(slots,) raster index of the token in each slot; -1 in the slots of the padding."""
        height, width = self.grid
        raster = torch.arange(height * width).view(height, width)
        if self.kind == "windows":
            return self._into_windows(raster).flatten()
        blocks = raster.view(height // 2, 2, width // 2, 2) if self.kind != "raster" else raster
        if self.kind == "merged":
            return blocks.permute(0, 2, 3, 1).flatten()  # (H/2, W/2, right, down)
        if self.kind == "expanded":
            return blocks.permute(0, 2, 1, 3).flatten()  # (H/2, W/2, down, right)
        return blocks.flatten()

    @cached_property
    def slot(self) -> Tensor:
        """(H*W,) slot of each token, by raster index."""
        slots = torch.empty(self.grid[0] * self.grid[1], dtype=torch.int64)
        kept = self.source >= 0
        slots[self.source[kept]] = torch.arange(self.slots)[kept]
        return slots

    def attention_mask(self) -> Tensor | None:
        """What a token may not attend to: tokens that the cyclic shift brought next to it, and padding.

        Returns:
            (windows, N, N) float32, 0 or -inf, to be added to the scores; None where all may be seen.
        """
        if self.shift == (0, 0) and not self.padded:
            return None
        height, width = self.grid
        # A region a side of the seam and axis: tokens of one region are neighbours in the image.
        rows = (torch.arange(height) < self.shift[0]).long()
        columns = (torch.arange(width) < self.shift[1]).long()
        regions = self._into_windows(rows[:, None] * 2 + columns[None, :])  # (windows, N), padding is -1
        apart = regions[:, :, None] != regions[:, None, :]
        return torch.zeros(apart.shape).masked_fill_(apart, float("-inf"))

    def _into_windows(self, plane: Tensor) -> Tensor:
        """Pad a (H, W) plane with -1 to whole windows, shift it and cut it: (windows, N)."""
        side = self.window
        below, right = (-length % side for length in self.grid)
        padded = F.pad(plane, (0, right, 0, below), value=-1)
        shifted = torch.roll(padded, (-self.shift[0], -self.shift[1]), dims=(0, 1))
        height, width = shifted.shape
        windows = shifted.view(height // side, side, width // side, side).transpose(1, 2)
        return windows.reshape(-1, side * side)  # (windows, N)


def window_order(grid: Grid, window: int, *, shifted: bool) -> Order:
    """Return the order of a block's windows."""
    return Order(grid, "windows", window, shift_of(grid, window, shifted=shifted))


@dataclass(frozen=True)
class Tokens:
    """Tokens in some order.

    Attributes:
        values: (B, order.slots, C).
        order: where each comes from.
    """

    values: Tensor
    order: Order

    def to(self, order: Order) -> Tokens:
        """Return the tokens in another order of the same grid, moved by one gather."""
        if order == self.order or (order.trivial and self.order.trivial):
            return Tokens(self.values, order)
        moves = _moves(self.order.key, order.key)
        return Tokens(MoveTokens.apply(self.values, *moves), order)  # type: ignore[no-untyped-call]

    def raster(self) -> Tensor:
        """Return (B, H, W, C)."""
        values = self.to(Order(self.order.grid)).values
        return values.view(values.shape[0], *self.order.grid, values.shape[2])  # (B, H, W, C)


def _kept(make: Callable[P, T]) -> Callable[P, T]:
    """Keep each result of a function of constants.

    The tensors are made outside of inference mode, because they may be used in training later.
    """
    lookup = cache(torch.inference_mode(False)(make))

    @wraps(make)
    def constant(*arguments: P.args, **options: P.kwargs) -> T:
        return lookup(*arguments, **options)  # type: ignore[arg-type]

    return constant


@_kept
def _moves(old_key: OrderKey, new_key: OrderKey) -> tuple[Tensor, Tensor, Tensor | None]:
    """Indices of a move: what each new slot takes, where each old slot's gradient is, old padding."""
    old, new = Order(*old_key), Order(*new_key)
    take = old.slot[new.source.clamp(min=0)]
    give = new.slot[old.source.clamp(min=0)]
    return take, give, torch.nonzero(old.source < 0).flatten() if old.padded else None


@_kept
def attention_mask(key: OrderKey) -> Tensor | None:
    """Return the attention mask of the order with this key."""
    return Order(*key).attention_mask()


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
