"""What a network gives for each task: its heads, and their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Head:
    """What a task needs of a network.

    Attributes:
        kind: pooled: a vector for the image as a whole. dense: a vector for each voxel. restored: an image
            like the input, for each voxel, too.
        outputs: length of the vector; of a restored image its channels.
        unit: of a pooled head that gives a number in a unit: mean and standard deviation of the training
            cases, which the network's own output is multiplied by and added to; None: it gives logits.
    """

    kind: Literal["pooled", "dense", "restored"]
    outputs: int
    unit: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outputs:
    """Outputs of a network for a batch of B images of spatial shape S (2 or 3 axes).

    Attributes:
        heads: by the name of the task: (B, outputs) of a pooled head, logits or numbers; (B, outputs, *S) of
            a dense one, logits with the background first; (B, C, *S) of a restored image, in the units of the
            network's input (0..1). Always the same names for the same network.
        features: (B, F) pooled encoder features, the representation that the tasks share; None: the network
            gives none.
    """

    heads: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Return the outputs with every tensor changed."""
        features = None if self.features is None else change(self.features)
        return Outputs({name: change(head) for name, head in self.heads.items()}, features)
