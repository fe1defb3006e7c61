"""What this processor multiplies fast: found out once, and what every CPU fast path is chosen by.

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

import torch

_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)
# oneDNN refuses bfloat16 where this is false.
HAS_BFLOAT16: bool = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
# The flags say what the processor has; where ONEDNN_MAX_CPU_ISA holds AVX512 back, oneDNN has no bfloat16.
HAS_AVX512: bool = HAS_BFLOAT16 and torch.cpu._is_avx512_supported()


def computes(dtype: torch.dtype) -> bool:
    """Whether the fast paths are any good for this type: oneDNN is there, in use, and computes in it."""
    supported = HAS_BFLOAT16 if dtype == torch.bfloat16 else dtype == torch.float32
    return _HAS_ONEDNN and supported and bool(torch.backends.mkldnn.enabled)


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether matrices of a type that `computes` are multiplied by oneDNN, and not by PyTorch's BLAS."""
    return dtype == torch.bfloat16 or HAS_AVX512
