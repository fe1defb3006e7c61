"""The heads of a network: modules by the task's name, and where older weights of them go."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from threefold.core.outputs import Head


@runtime_checkable
class Renamed(Protocol):
    """A network whose weights had other names in earlier versions."""

    def former_names(self) -> Mapping[str, str]:
        """Return how names of weights began in earlier versions, and begin now."""


class NumberHead(nn.Linear):
    """Numbers in their own unit: mean + deviation * (linear map of the features)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, outputs: int, mean: float, deviation: float) -> None:
        super().__init__(width, outputs)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) to (B, outputs), float32 or float64."""
        found = super().forward(features)
        # In bfloat16, of three digits, a number far from 0 would be rounded.
        return self.mean + self.deviation * found.to(torch.promote_types(found.dtype, torch.float32))


def pooled_head(width: int, head: Head) -> nn.Linear:
    """Return the layer that gives a pooled head of (B, width) features."""
    if head.unit is None:
        return nn.Linear(width, head.outputs)
    return NumberHead(width, head.outputs, *head.unit)


def apply_pooled(heads: nn.ModuleDict, kinds: Mapping[str, Head], features: Tensor) -> dict[str, Tensor]:
    """Return the outputs of the pooled heads of (B, F) features, in the type of each head's weights."""
    found = {}
    for name, head in kinds.items():
        if head.kind == "pooled":
            layer = heads[name]
            assert isinstance(layer, nn.Linear)
            found[name] = layer(features.to(layer.weight.dtype))
    return found


def first_of(kinds: Mapping[str, Head], kind: str) -> str | None:
    """Return the name of the first head of a kind."""
    return next((name for name, head in kinds.items() if head.kind == kind), None)


def today(name: str, names: Collection[str], former: Mapping[str, str]) -> str:
    """Return what a weight of a run is named now.

    Args:
        name: of the weight.
        names: of all weights beside it.
        former: what a name began with in earlier versions, and begins with now.
    """
    if any(".heads." in f".{one}" for one in names):
        return name
    old = next((one for one in former if name.startswith(one)), None)
    return name if old is None else former[old] + name.removeprefix(old)
