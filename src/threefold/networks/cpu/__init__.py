"""The networks' speed on CPUs: fast paths that are swapped in for plain modules, and out again.

`cpu_kernels` is all that the rest of the program knows of this room.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from threefold.networks.cpu import attention_unet, densenet, registration, swin

_FAST: tuple[type[nn.Module], ...] = (
    attention_unet.ConvUnit,
    attention_unet.DecoderLevel,
    attention_unet.Head2d,
    attention_unet.Head3d,
    densenet.DenseBlock,
    densenet.DenseFeatures,
    registration.VoxelMorphUnet,
    swin.DecoderStage,
    swin.FinalExpanding,
    swin.JointSwin,
    swin.SwinDecoder,
    swin.SwinEncoder,
    swin.SwinStage,
    swin.SwinUnet,
)
# Each is derived from the class that it computes the same as, and adds nothing but how.
_FAST_BY_PLAIN: dict[type, type[nn.Module]] = {fast.__mro__[1]: fast for fast in _FAST}


@contextmanager
def cpu_kernels(network: nn.Module) -> Iterator[None]:
    """Run a network by the fast paths of this processor within the context.

    Modules of the classes that have a fast path are given its class, which has the same weights and computes
    the same up to rounding (dropout draws other numbers); when the context ends, they are plain again. Within
    it, what a fast path does not apply to goes the plain way, call by call: values that are elsewhere than on
    a CPU, of a type that it does not multiply fast, or traced for an export or a compiled graph.

    The network stays plain where it is on another device or compiled, and with THREEFOLD_CPU_KERNELS=0.

    Args:
        network: any; modules of other classes are left as they are.
    """
    swapped = []
    if _gains(network):
        for module in network.modules():
            fast = _FAST_BY_PLAIN.get(type(module))
            if fast is not None:
                module.__class__ = fast
                swapped.append(module)
    try:
        yield
    finally:
        for module in swapped:
            module.__class__ = type(module).__mro__[1]


def _gains(network: nn.Module) -> bool:
    if os.environ.get("THREEFOLD_CPU_KERNELS") == "0":
        return False
    weight = next(network.parameters(), None)
    on_cpu = weight is None or weight.device.type == "cpu"
    return on_cpu and not any(_is_compiled(module) for module in network.modules())


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled in place, or is what `torch.compile` made of another."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules
