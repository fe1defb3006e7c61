"""Levers for speed and memory: everything here computes what its docstring's plain formula says."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _MoveTokens(torch.autograd.Function):
    """A gather whose gradient is a gather too (PyTorch's own is a scatter-add, many times slower)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, take: Tensor, give: Tensor, blank: Tensor | None) -> Tensor:
        ctx.save_for_backward(give, *(() if blank is None else (blank,)))
        return values.index_select(1, take)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        give, *blank = ctx.saved_tensors
        moved = gradient.index_select(1, give)
        if blank:
            moved = moved.index_fill(1, blank[0], 0)
        return moved, None, None, None


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
    moved: Tensor = _MoveTokens.apply(values, take, give, blank)  # type: ignore[no-untyped-call]
    return moved


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
    query, key, value = split.permute(3, 0, 1, 4, 2, 5)  # each (B, windows, heads, N, d)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    weights = torch.softmax(scores + bias.to(scores.dtype), dim=-1)
    attended: Tensor = (weights @ value).transpose(2, 3)
    return attended.reshape(batch, windows, tokens, width // 3)


def expansion_head(tokens: Tensor, expand: Tensor, gain: Tensor, shift: Tensor, head: Tensor) -> Tensor:
    """Linear layer into P parts a token, LayerNorm of each part, linear head of each part.

    The head and the norm's centring and gain are folded into the linear layer; what is left of the norm is
    one division by the standard deviation.

    Args:
        tokens: (B, L, D).
        expand: (P * C, D) weight of the linear layer, part by part.
        gain, shift: (C,) of the LayerNorm (eps 1e-5).
        head: (K, C) weight.

    Returns:
        (B, L, P, K).
    """
    parts = expand.view(-1, gain.shape[0], expand.shape[1])  # (P, C, D)
    centred = parts - parts.mean(1, keepdim=True)
    folded = torch.einsum("kc,pcd->pkd", head * gain, centred)  # (P, K, D)
    batch, length, _ = tokens.shape
    spread = F.linear(tokens, centred.flatten(0, 1)).view(batch, length, len(parts), -1)  # (B, L, P, C)
    numerator = F.linear(tokens, folded.flatten(0, 1)).view(batch, length, len(parts), -1)  # (B, L, P, K)
    scale = torch.rsqrt(spread.square().mean(-1, keepdim=True) + 1e-5)
    logits: Tensor = numerator * scale + head @ shift
    return logits
