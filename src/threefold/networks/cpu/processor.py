"""What this processor multiplies fast: found out once, and what every fast path is chosen by.

The choice is a table, not a measurement, so that the same machine gives the same bits in every process:

| oneDNN's vectors          | float32 products  | bfloat16 products                      |
| ------------------------- | ----------------- | -------------------------------------- |
| AVX512, AMX               | oneDNN            | oneDNN                                 |
| AVX2 with VNNI-2          | PyTorch's BLAS    | oneDNN                                 |
| AVX2, less, or not x86    | PyTorch's BLAS    | oneDNN where it has them, else float32 |

With AVX2 alone both libraries reach the same speed in large products, and oneDNN loses by ordering the
weights anew at each call and by its own GELU (docs/results/speed/instruction-sets.md). PyTorch's bfloat16
products take 2 to 40 times as long there as those in float32, and oneDNN has none.

oneDNN heeds ONEDNN_MAX_CPU_ISA, and so do these values, which are read when the process first needs them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)
# oneDNN refuses bfloat16 where this is false.
HAS_BFLOAT16: bool = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
# The flags say what the processor has; where ONEDNN_MAX_CPU_ISA holds AVX512 back, oneDNN has no bfloat16.
HAS_AVX512: bool = HAS_BFLOAT16 and torch.cpu._is_avx512_supported()
_FAST_TYPES = (torch.float32, torch.bfloat16)


def applies(values: Tensor) -> bool:
    """Whether the fast paths compute these values, and are any good for their type."""
    return (
        _is_ordinary(values)
        and values.dtype in _FAST_TYPES
        and computes(compute_type(values))
        and values.numel() > 0
    )


def computes(dtype: torch.dtype) -> bool:
    """Whether the fast paths are any good for this type: oneDNN is there, in use, and computes in it."""
    supported = HAS_BFLOAT16 if dtype == torch.bfloat16 else dtype == torch.float32
    return _HAS_ONEDNN and supported and bool(torch.backends.mkldnn.enabled)


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether matrices of a type that `computes` are multiplied by oneDNN, and not by PyTorch's BLAS."""
    return dtype == torch.bfloat16 or HAS_AVX512


def compute_type(values: Tensor) -> torch.dtype:
    """Return the type that these values are multiplied in: autocast's, or their own."""
    device = values.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values.dtype


def avoids_bfloat16(values: Tensor) -> bool:
    """Whether these values are computed in float32, although autocast asks for bfloat16.

    So they are on processors that multiply no bfloat16: PyTorch's own products take 2 to 40 times as long
    there as those in float32.
    """
    return (
        _is_ordinary(values)
        and values.dtype == torch.float32
        and compute_type(values) == torch.bfloat16
        and not HAS_BFLOAT16
    )


def precision(values: Tensor) -> AbstractContextManager[None]:
    """Return the context that these values are computed in."""
    return full_precision() if avoids_bfloat16(values) else nullcontext()


def full_precision() -> AbstractContextManager[None]:
    """Return the context without autocast."""
    off: AbstractContextManager[None] = torch.autocast("cpu", enabled=False)
    return off


def differentiating(*tensors: Tensor | None) -> bool:
    """Whether a result of these tensors will be asked for a gradient."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _is_ordinary(values: Tensor) -> bool:
    """Whether values are numbers in the processor's memory, and not what a graph is traced by.

    What is made of a traced tensor must not be kept, and a graph holds plain operations only.
    """
    return (
        type(values) is Tensor
        and values.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
    )
