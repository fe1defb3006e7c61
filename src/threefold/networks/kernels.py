"""Levers for speed and memory on CPUs; the networks themselves know none of them.

Every function computes the plain formula of its docstring. Elsewhere than on a CPU, in types that this one
does not multiply fast (`processor`), under `torch.compile` or with THREEFOLD_PLAIN_KERNELS=1 it runs that
formula as it stands; else:

- linear layers run in the library that is fast on this processor; in oneDNN with GELU and the residual sum in
  the same pass when no gradient is needed;
- the backward pass of the MLP computes GELU anew; weight gradients are multiplied narrow operand first;
- attention copies its queries, keys and values once;
- large intermediate tensors (the MLP's hidden units, the last expansion) exist only in chunks, which stay in
  the cache and, freed and taken again, cost no page faults;
- attention without gradients never holds the scores of all windows;
- weights are cast to bfloat16 once, not at each call, when no gradient is needed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from threefold.networks import processor
from threefold.networks.gradients import (
    Linear,
    Mlp,
    MoveTokens,
    PartVariance,
    WindowAttention,
    chunk_rows,
    product,
    product_sum,
)

_EPSILON = 1e-5  # of LayerNorm
_FAST_TYPES = (torch.float32, torch.bfloat16)
_PLAIN = os.environ.get("THREEFOLD_PLAIN_KERNELS") == "1"
_cast_weights: WeakIdKeyDictionary = WeakIdKeyDictionary()
# Fused optimisers change weights without counting it in the tensors' versions.
register_optimizer_step_post_hook(lambda *_: _cast_weights.clear())


def tune_allocation() -> bool:
    """Keep freed memory in the process instead of returning it to the system, on Linux with glibc.

    Otherwise each large tensor is mapped anew and every page of it faults: 1.1 to 1.6 times the time of a
    training step, for 5 to 46 % less memory. To be called once, before the first large tensor.
    THREEFOLD_DEFAULT_ALLOCATION=1 leaves the system's own settings.

    Returns:
        Whether the settings were made.
    """
    if os.environ.get("THREEFOLD_DEFAULT_ALLOCATION") == "1" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 512 * 2**20))
    accepted = [mallopt(parameter, value) for parameter, value in settings]
    return accepted == [1, 1, 1]


def move_tokens(values: Tensor, take: Tensor, give: Tensor, blank: Tensor | None) -> Tensor:
    """Return values[:, take].

    Args:
        values: (B, S, C).
        take: (T,) the slot that each new slot takes.
        give: (S,) the new slot that holds each old one: where its gradient is.
        blank: old slots that no one looks at (padding): their gradient is zero.

    Returns:
        (B, T, C). The gradient of a new slot that is not in `give` is dropped: such a slot must be unseen.
    """
    moved: Tensor = MoveTokens.apply(values, take, give, blank)  # type: ignore[no-untyped-call]
    return moved


def linear(
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Return residual + scale * (values @ weight^T + bias).

    Args:
        values: (B, L, D).
        weight, bias: (E, D) and (E,).
        residual: (B, L, E), or None for 0.
        scale: (B, 1, 1), or None for 1.

    Returns:
        (B, L, E).
    """
    if not _multiplies_in_onednn(values):
        return _add(F.linear(values, weight, bias), residual, scale)
    dtype = compute_type(values)
    values, weight = values.to(dtype), cast_weight(weight, dtype)
    bias = None if bias is None else cast_weight(bias, dtype)
    if differentiating(values, weight, bias, residual, scale):
        branch: Tensor = Linear.apply(values, weight, bias)  # type: ignore[no-untyped-call]
        return _add(branch, residual, scale)
    if residual is not None and scale is None:
        return product_sum(values, weight, bias, residual.to(dtype))
    return _add(product(values, weight, bias), residual, scale)


def mlp(
    values: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    residual: Tensor,
    scale: Tensor | None,
) -> Tensor:
    """Return residual + scale * (GELU(values @ w1^T + b1) @ w2^T + b2).

    Args:
        values, residual: (B, L, D).
        first: w1 (H, D) and b1 (H,).
        second: w2 (D, H) and b2 (D,).
        scale: (B, 1, 1), or None for 1.

    Returns:
        (B, L, D).
    """
    if not _multiplies_in_onednn(values):
        return _add(F.linear(F.gelu(F.linear(values, *first)), *second), residual, scale)
    dtype = compute_type(values)
    values = values.to(dtype)
    weight1, bias1, weight2, bias2 = (cast_weight(tensor, dtype) for tensor in (*first, *second))
    if differentiating(values, weight1, bias1, weight2, bias2, residual, scale):
        branch: Tensor = Mlp.apply(values, weight1, bias1, weight2, bias2)  # type: ignore[no-untyped-call]
        return _add(branch, residual, scale)
    residual = residual.to(dtype)
    out = torch.empty_like(residual)
    rows = values.flatten(0, 1), residual.flatten(0, 1), out.flatten(0, 1)  # (B * L, D)
    for value, rest, result in zip(
        *(torch.split(tensor, chunk_rows(weight1.shape[0])) for tensor in rows), strict=True
    ):
        hidden = torch.ops.mkldnn._linear_pointwise(value, weight1, bias1, "gelu", [], "none")
        result.copy_(product_sum(hidden, weight2, bias2, rest))
    return out if scale is None else torch.lerp(residual, out, scale.to(dtype))


def window_attention(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Softmax(q k^T / sqrt(d) + bias) v inside each window.

    Args:
        qkv: (B, windows, N, 3 * C), the queries, keys and values of all heads.
        bias: (1 or windows, heads, N, N).
        heads: number of heads; d = C / heads.

    Returns:
        (B, windows, N, C).
    """
    batch, windows, tokens, width = qkv.shape
    split = qkv.view(batch, windows, tokens, 3, heads, width // 3 // heads)
    bias = bias.to(qkv.dtype)
    if has_levers(qkv) and differentiating(qkv, bias):
        mixed: Tensor = WindowAttention.apply(split, bias)  # type: ignore[no-untyped-call]
        return mixed.view(batch, windows, tokens, width // 3)
    if has_levers(qkv):
        out = qkv.new_empty(batch, windows, tokens, heads, width // 3 // heads)
        for case, result in zip(split, out, strict=True):  # case by case, so that the bias is not repeated
            query, key, value = case.permute(2, 0, 3, 1, 4)  # each (windows, heads, N, d)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            result.copy_(attended.transpose(1, 2))
        return out.view(batch, windows, tokens, width // 3)
    query, key, value = split.permute(3, 0, 1, 4, 2, 5)  # each (B, windows, heads, N, d)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    weights = torch.softmax(scores + bias, dim=-1)
    gathered: Tensor = (weights @ value).transpose(2, 3)
    return gathered.reshape(batch, windows, tokens, width // 3)


def expansion_head(tokens: Tensor, expand: Tensor, gain: Tensor, shift: Tensor, head: Tensor) -> Tensor:
    """Linear layer into P parts a token, LayerNorm of each part, linear head of each part.

    The head and the norm's centring and gain are folded into the linear layer; what is left of the norm is
    one division by the standard deviation. So the P * C values of a token are needed for that only.

    Args:
        tokens: (B, L, D).
        expand: (P * C, D) weight of the linear layer, part by part.
        gain, shift: (C,) of the LayerNorm (eps 1e-5).
        head: (K, C) weight.

    Returns:
        (B, L, P, K).
    """
    parts = expand.view(-1, gain.shape[0], expand.shape[1])  # (P, C, D)
    with torch.autocast(tokens.device.type, enabled=False):
        centred = (parts - parts.mean(1, keepdim=True)).flatten(0, 1)  # (P * C, D)
        folded = torch.einsum("kc,pcd->pkd", head * gain, centred.view_as(parts)).flatten(0, 1)  # (P * K, D)
    batch, length, _ = tokens.shape
    shape = (batch, length, len(parts), head.shape[0])
    numerator = F.linear(tokens, folded).view(shape)
    if has_levers(tokens):
        dtype = compute_type(tokens)
        rows, centred = tokens.to(dtype).flatten(0, 1), centred.to(dtype)
        variance: Tensor = PartVariance.apply(rows, centred, len(parts))  # type: ignore[no-untyped-call]
    else:
        spread = F.linear(tokens, centred).view(batch * length, len(parts), gain.shape[0])
        variance = spread.square().mean(-1)
    scale = torch.rsqrt(variance.view(*shape[:3], 1) + _EPSILON)
    logits: Tensor = numerator * scale + head @ shift
    return logits


def has_levers(values: Tensor) -> bool:
    """Whether the levers apply to these values."""
    return (
        not _PLAIN
        and values.device.type == "cpu"
        and values.dtype in _FAST_TYPES
        and not torch.compiler.is_compiling()
        and processor.computes(compute_type(values))
        and values.numel() > 0
    )


def _multiplies_in_onednn(values: Tensor) -> bool:
    return has_levers(values) and processor.onednn_multiplies(compute_type(values))


def avoids_bfloat16(values: Tensor) -> bool:
    """Whether a network computes these values in float32, although autocast asks for bfloat16.

    So it does on processors that multiply no bfloat16: PyTorch's own products take 2 to 40 times as long
    there as those in float32.
    """
    return (
        values.device.type == "cpu"
        and values.dtype == torch.float32
        and compute_type(values) == torch.bfloat16
        and not processor.HAS_BFLOAT16
    )


def precision(image: Tensor) -> AbstractContextManager[None]:
    """Return the context that a network computes an image in."""
    return full_precision() if avoids_bfloat16(image) else nullcontext()


def full_precision() -> AbstractContextManager[None]:
    """Return the context without autocast."""
    off: AbstractContextManager[None] = torch.autocast("cpu", enabled=False)
    return off


def compute_type(values: Tensor) -> torch.dtype:
    """Return the type that these values are multiplied in: autocast's, or their own."""
    device = values.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values.dtype


def differentiating(*tensors: Tensor | None) -> bool:
    """Whether a result of these tensors will be asked for a gradient."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def cast_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a weight; without gradients the result is kept until the weight changes.

    Changes are seen by the tensor's address and version, which every operation in place counts up (copying a
    state dict in, plain optimisers, processes sharing weights), and by optimiser steps of any kind. Writing
    to `weight.data` is not seen.
    """
    if weight.dtype == dtype:
        return weight
    if torch.is_grad_enabled():
        return weight.to(dtype)
    state = (weight.data_ptr(), weight._version, dtype)
    kept = _cast_weights.get(weight)  # type: ignore[no-untyped-call]
    if kept is None or kept[0] != state:
        kept = _cast_weights[weight] = (state, weight.to(dtype))
    cast: Tensor = kept[1]
    return cast


def _add(branch: Tensor, residual: Tensor | None, scale: Tensor | None) -> Tensor:
    if residual is None:
        return branch if scale is None else branch * scale
    return residual + branch if scale is None else torch.addcmul(residual, branch, scale.to(branch.dtype))
