"""The interface of a network."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from threefold.core.outputs import Outputs


@runtime_checkable
class Network(Protocol):
    """A `torch.nn.Module` from images to one head per task.

    An experiment names the class and its arguments, `network: {kind: my_nets:MyNet, width: 8}`. The following
    arguments are filled in if the class has them and the experiment omits them: `in_channels`; `dimensions`
    or `spatial_dims`, the number of image axes; `heads`, the `Head` of each task by name; `out_channels` or
    `num_classes`, if only one task has a head.

    A module that returns a tensor, a sequence or a mapping instead of `Outputs` is adapted
    (`threefold.networks.foreign`). Three methods are optional: `cam_layer()` (for `explain`, see
    `threefold.networks.cam`), `stage_layers()` (for `probe` and `similarity`, see
    `threefold.networks.stages`) and `shared_parameter()` (for gradnorm: the name of the last parameter shared
    by all tasks).
    """

    def __call__(self, image: Tensor) -> Outputs:
        """Return the output of each task's head for a (B, C, *S) float32 image in 0..1."""
        ...
