"""Dividing groups into parts of given sizes so that each part looks like the whole."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Stratum = tuple[Hashable, ...]
P = TypeVar("P", bound=str)


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Return whole numbers that add up to `total`, near `shares` of it (largest remainder).

    A share above zero gets at least one while there are enough to give every such share one.

    Args:
        total: what there is to give.
        shares: not negative, adding up to 1.
    """
    counts = [int(total * share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - total * shares[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    wanting = [i for i, share in enumerate(shares) if share > 0]
    if total >= len(wanting):
        for i in wanting:
            if counts[i] == 0:
                counts[counts.index(max(counts))] -= 1
                counts[i] = 1
    return counts


def assign(groups: Mapping[str, Sequence[Stratum]], sizes: Mapping[P, int], seed: int) -> dict[str, P]:
    """Give every group a part, so that each stratum is shared out like the whole.

    One group after the other goes to the part that is furthest behind its share, summed over the strata
    that the group belongs to and the whole (iterative stratification in the spirit of Sechidis et al.
    2011, with sizes kept exactly). Rare combinations come first, while every part is still open. Among equal
    groups the order is drawn from `seed` by a hash of their names, so that it depends neither on the order
    in which they are given nor on a version of a random generator.

    Args:
        groups: the strata of each group, by the group's name.
        sizes: number of groups of each part, adding up to the number of groups.
        seed: of the draw.

    Returns:
        The part of each group.
    """
    total = sum(sizes.values())
    if total != len(groups):
        raise ValueError(f"parts of {total} groups asked for, {len(groups)} groups given")
    alike = Counter(tuple(strata) for strata in groups.values())
    order = sorted(
        groups,
        key=lambda name: (alike[tuple(groups[name])], repr(tuple(groups[name])), _draw(seed, name)),
    )
    seen: Counter[Stratum] = Counter()
    given: Counter[tuple[P, Stratum]] = Counter()
    left = dict(sizes)
    parts: dict[str, P] = {}
    for name in order:
        strata = [(), *groups[name]]
        seen.update(strata)
        part = max(
            (part for part in sizes if left[part]),
            # Rounded, so that the same sum in another order is the same number.
            key=lambda part: (
                round(sum(sizes[part] / total * seen[s] - given[part, s] for s in strata), 9),
                sizes[part],
            ),
        )
        given.update((part, s) for s in strata)
        left[part] -= 1
        parts[name] = part
    return parts


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
