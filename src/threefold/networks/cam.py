"""Where in a network a class activation map is taken from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from threefold.errors import RunError
from threefold.networks.windows import Tokens, window_order

Layout = Literal["channels first", "channels last", "windows"]


@dataclass(frozen=True)
class CamLayer:
    """The layer whose output shows where in the image a network saw what it decided by.

    The layer's grid begins at the image's near corner. A voxel of it is a square or cube of as many of the
    image's pixels: `stride`, or a smaller power of two where the network spares a small grid.

    Attributes:
        module: name of the submodule, as `get_submodule` takes it.
        layout: axis order of its output. channels first: (B, C, *S). channels last: (B, *S, C). windows:
            (B, slots, C) tokens in the order of a Swin block. Read in another layout a map looks plausible
            and is wrong.
        stride: pixels of the image along the side of a voxel of the output, at most; a power of two.
        window, shifted: windows: tokens along a window's side, and whether the block shifts its windows.
    """

    module: str
    layout: Layout
    stride: int
    window: int = 0
    shifted: bool = False

    def within(self, parent: str) -> CamLayer:
        """Return the layer as the network names it that holds this one under a name."""
        return replace(self, module=f"{parent}.{self.module}")

    def features(self, output: Tensor, size: Sequence[int]) -> Tensor:
        """Return the layer's output, or its gradient, as (B, C, *S).

        Args:
            output: of the layer.
            size: of the network's input.

        Raises:
            RunError: windows: there are not as many tokens as the image has.
        """
        if self.layout == "channels first":
            return output
        if self.layout == "windows":
            rows, columns = (-(-side // self.stride) for side in size)
            order = window_order((rows, columns), self.window, shifted=self.shifted)
            if output.ndim != 3 or output.shape[1] != order.slots:
                raise RunError(
                    f"the layer '{self.module}' gives {tuple(output.shape)} for an image of {tuple(size)}; "
                    f"expected {order.slots} tokens, a stride of {self.stride}. The network declares another "
                    "layout or layer than it has."
                )
            output = Tokens(output, order).raster()
        return output.movedim(-1, 1)


@runtime_checkable
class HasCamLayer(Protocol):
    """A network that declares its layer."""

    def cam_layer(self) -> CamLayer:
        """Return the layer that a class activation map is taken from."""
        ...
