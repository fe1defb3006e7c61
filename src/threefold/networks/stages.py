"""The stages of a network's encoder, and the pooled features that each of them gives."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from threefold.networks.grids import pool


@runtime_checkable
class Staged(Protocol):
    """A network whose encoder has stages.

    Networks of one kind give the same names, so that stages of two networks can be matched by name; so do a
    network and the part of a larger network that has its form.
    """

    def stage_layers(self) -> dict[str, str]:
        """Return the submodule of each stage by the stage's name, in the order in which they run.

        A submodule's output is (B, C, *S), or (B, *S, C) where the submodule has `channels_last = True`.
        """


def pooled(output: Tensor, *, channels_last: bool = False) -> Tensor:
    """Return the mean of a stage's output over the image, (B, C)."""
    if channels_last:
        return output.mean(dim=tuple(range(1, output.ndim - 1)))
    return pool(output)
