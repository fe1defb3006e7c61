"""Heads of a network under the names that recipes give their tasks."""

from __future__ import annotations

from collections.abc import Iterable

from threefold.core.outputs import Head


def named_heads(
    *, classes: int | None = None, labels: int | None = None, restored: int | None = None
) -> dict[str, Head]:
    """Return the heads classification, segmentation and reconstruction, each where its outputs are given."""
    heads = {
        "classification": None if classes is None else Head("pooled", classes),
        "segmentation": None if labels is None else Head("dense", labels),
        "reconstruction": None if restored is None else Head("restored", restored),
    }
    return {name: head for name, head in heads.items() if head is not None}


def parts_of(names: Iterable[str]) -> set[str]:
    """Return the parts of a network that weights belong to: the first word of each name, of heads two."""
    return {".".join(name.split(".")[: 2 if name.startswith("heads.") else 1]) for name in names}
