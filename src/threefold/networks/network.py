"""What a network has to be."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from threefold.core.outputs import Outputs


@runtime_checkable
class Network(Protocol):
    """A `torch.nn.Module` from images to a head for each task.

    An experiment names its class, `network: {kind: my_nets:MyNet, width: 8}`, with the class's own arguments.
    Those of these names are filled in where the class has them and the experiment leaves them out:
    `in_channels`; `dimensions` or `spatial_dims`, the axes of the image; `heads`, the `Head` of each task by
    name; `out_channels` or `num_classes`, where one task has a head.

    A module that returns a tensor, a sequence or a mapping in place of `Outputs` is adapted
    (`threefold.networks.foreign`). Three methods are asked for only by what needs them: `cam_layer()`
    (`explain`, see `threefold.networks.cam`), `stage_layers()` (`probe` and `similarity`, see
    `threefold.networks.stages`) and `shared_parameter()` (gradnorm: the name of the last parameter that
    every task's gradient passes through).
    """

    def __call__(self, image: Tensor) -> Outputs:
        """(B, C, *S) float32 image, 0..1, to the output of each task's head."""
        ...
