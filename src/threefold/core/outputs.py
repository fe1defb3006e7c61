"""The heads of a network and their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Head:
    """The output that a task needs from a network.

    Attributes:
        kind: pooled: one vector per image. dense: one vector per voxel. restored: an image like the input.
        outputs: length of the vector, or channels of a restored image.
        unit: for a pooled head that predicts a number: mean and standard deviation of the training cases,
            used to rescale the network's output. None: logits.
    """

    kind: Literal["pooled", "dense", "restored"]
    outputs: int
    unit: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outputs:
    """Outputs of a network for a batch of B images of spatial shape S (2 or 3 axes).

    Attributes:
        heads: by task name: pooled (B, outputs), logits or numbers; dense (B, outputs, *S), logits with the
            background first; restored (B, C, *S), in the units of the network's input (0..1). A network
            always returns the same names.
        features: (B, F) pooled encoder features, the representation shared by the tasks; None: not provided.
    """

    heads: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Return the outputs with every tensor changed."""
        features = None if self.features is None else change(self.features)
        return Outputs({name: change(head) for name, head in self.heads.items()}, features)
