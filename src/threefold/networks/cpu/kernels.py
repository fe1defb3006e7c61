"""Linear layers, MLP, window attention and last expansion of the Swin networks, fast on CPUs.

Every function computes the plain formula of its docstring, of values that `processor.applies` to:

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

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from threefold.networks.cpu.gradients import (
    Linear,
    Mlp,
    PartVariance,
    WindowAttention,
    chunk_rows,
    product,
    product_sum,
)
from threefold.networks.cpu.processor import compute_type, differentiating, onednn_multiplies

_EPSILON = 1e-5  # of LayerNorm
_cast_weights: WeakIdKeyDictionary = WeakIdKeyDictionary()
# Fused optimisers change weights without counting it in the tensors' versions.
register_optimizer_step_post_hook(lambda *_: _cast_weights.clear())


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
    if not onednn_multiplies(compute_type(values)):
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
    if not onednn_multiplies(compute_type(values)):
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
    if differentiating(qkv, bias):
        mixed: Tensor = WindowAttention.apply(split, bias)  # type: ignore[no-untyped-call]
        return mixed.view(batch, windows, tokens, width // 3)
    out = qkv.new_empty(batch, windows, tokens, heads, width // 3 // heads)
    for case, result in zip(split, out, strict=True):  # case by case, so that the bias is not repeated
        query, key, value = case.permute(2, 0, 3, 1, 4)  # each (windows, heads, N, d)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        result.copy_(attended.transpose(1, 2))
    return out.view(batch, windows, tokens, width // 3)


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
    dtype = compute_type(tokens)
    rows, centred = tokens.to(dtype).flatten(0, 1), centred.to(dtype)
    variance: Tensor = PartVariance.apply(rows, centred, len(parts))  # type: ignore[no-untyped-call]
    scale = torch.rsqrt(variance.view(*shape[:3], 1) + _EPSILON)
    logits: Tensor = numerator * scale + head @ shift
    return logits


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
