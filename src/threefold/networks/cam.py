"""Where in a network a class activation map is taken from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

Layout = Literal["channels first", "channels last"]


@dataclass(frozen=True)
class CamLayer:
    """The layer whose output shows where in the image a network saw what it decided by.

    The layer's grid begins at the image's near corner. A voxel of it is a square or cube of as many of the
    image's pixels: `stride`, or a smaller power of two where the network spares a small grid.

    Attributes:
        module: name of the submodule, as `get_submodule` takes it.
        layout: axis order of its output. channels first: (B, C, *S). channels last: (B, *S, C). Read in the
            other layout a map looks plausible and is wrong.
        stride: pixels of the image along the side of a voxel of the output, at most; a power of two.
    """

    module: str
    layout: Layout
    stride: int

    def within(self, parent: str) -> CamLayer:
        """Return the layer as the network names it that holds this one under a name."""
        return replace(self, module=f"{parent}.{self.module}")

    def features(self, output: Tensor) -> Tensor:
        """Return the layer's output, or its gradient, as (B, C, *S)."""
        return output if self.layout == "channels first" else output.movedim(-1, 1)


@runtime_checkable
class HasCamLayer(Protocol):
    """A network that declares its layer."""

    def cam_layer(self) -> CamLayer:
        """Return the layer that a class activation map is taken from."""
        ...
