"""Images that are one image: saved again, rescaled, shifted a little, with another window or flipped bits.

Each image becomes a small picture of ranks, which no monotonic change of its grey values alters, and a
perceptual hash of its lowest frequencies. Pairs whose hashes are near are compared by their small
pictures, at the shift at which they agree best. Two slices of one patient may well be alike; what matters are
pairs of different patients, and of different parts of a split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.findings import Finding, Severity
from threefold.cohorts.splits import Split
from threefold.errors import some

Floats = NDArray[np.float32]

SIDE = 64
"""Pixels a side of the small picture."""
_HASHED = 32
_LOWEST = 8
"""Frequencies along each axis that the hash is of."""
_NEAR = 20
"""Bits in which the hashes of candidates may differ, of 63."""
_SHIFT = 4
"""Pixels of the small picture that two images may be shifted against each other."""
ALIKE = {1: 0.95, 3: 0.98}
"""Correlation from which two images are asked about, by their number of views. Of 451 pairs of head-CT slices
of different patients the highest is 0.85, of fetal brains of neighbouring weeks, as volumes, 0.97."""
CERTAIN = 0.995
"""Correlation from which they are taken for one image."""
_STEPS = 64
"""Of an image's range; values within one have the same rank."""
_BACKGROUND = 5
"""Steps that count as one: noise in the background would have ranks of its own."""
_AT_ONCE = 1024


@dataclass(frozen=True)
class Signature:
    """What an image is recognised by.

    Attributes:
        bits: the hash.
        small: (V, SIDE, SIDE) ranks, 0 to 255: one view of a slice, three of a volume.
    """

    bits: int
    small: NDArray[np.uint8]


@dataclass(frozen=True)
class NearDuplicates:
    """Cases that show one image, with the lowest correlation that ties two of them."""

    cases: tuple[Case, ...]
    correlation: float


def signature(array: NDArray[Any]) -> Signature | None:
    """Return what an image is recognised by; None of one that shows nothing.

    Args:
        array: (I, J), or (I, J, K), of which the mean along each axis is taken.
    """
    if min(array.shape) < _LOWEST:
        return None
    planes: list[NDArray[Any]] = [array] if array.ndim == 2 else [array.mean(axis=axis) for axis in range(3)]
    views = [_ranked(_shrunk(np.asarray(plane, np.float32), SIDE)) for plane in planes]
    if max(np.ptp(view) for view in views) == 0:
        return None
    basis = _cosines()
    frequencies = basis @ _shrunk(np.mean(views, axis=0, dtype=np.float32), _HASHED) @ basis.T
    low = frequencies.ravel()[1:]
    bits = int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")
    return Signature(bits, np.rint(np.stack(views) * 255).astype(np.uint8))


def find_near_duplicates(
    cohort: Cohort, signatures: Mapping[str, Signature], split: Split | None
) -> tuple[NearDuplicates, ...]:
    """Return groups of cases that show one image though they are of several patients, or parts of a split.

    Args:
        cohort: its cases.
        signatures: by case id; cases without one are left out.
        split: None: patients alone are kept apart.
    """
    cases = [case for case in cohort.cases if case.case_id in signatures]
    if len(cases) < 2:
        return ()
    apart = _apart(cases, split)
    small = [signatures[case.case_id].small for case in cases]
    vouched = [set(group) for group in cohort.spec.not_duplicates]
    group = list(range(len(cases)))
    weakest: dict[int, float] = {}
    bits = np.array([signatures[case.case_id].bits for case in cases], dtype=np.uint64)
    for first, second, correlation in _correlated(_candidates(bits, apart), small):
        if any({cases[first].case_id, cases[second].case_id} <= several for several in vouched):
            continue
        if correlation < ALIKE[len(small[first])]:
            continue
        a, b = _root(group, first), _root(group, second)
        lowest = min(correlation, weakest.pop(a, 1.0), weakest.pop(b, 1.0))
        group[max(a, b)] = min(a, b)
        weakest[min(a, b)] = lowest
    members: dict[int, list[Case]] = defaultdict(list)
    for index, case in enumerate(cases):
        members[_root(group, index)].append(case)
    return tuple(NearDuplicates(tuple(members[root]), lowest) for root, lowest in sorted(weakest.items()))


def check_near_duplicates(
    found: Sequence[NearDuplicates], identical: Mapping[str, str], split: Split | None
) -> Iterator[Finding]:
    """Refuse one image in different parts of a split; warn of what is much alike, or of different patients.

    Args:
        found: the groups.
        identical: hash of the voxels by case id; groups of identical ones have a finding of their own.
        split: as it was found with.
    """
    for group in found:
        if len({identical.get(case.case_id, case.case_id) for case in group.cases}) == 1:
            continue
        parts = {} if split is None else {case.case_id: split.parts.get(case.case_id) for case in group.cases}
        crosses = len(set(parts.values())) > 1
        named = [
            f"{case.case_id} (patient {case.patient_id}{', ' + str(parts[case.case_id]) if crosses else ''})"
            for case in group.cases
        ]
        severity: Severity = "refuse" if crosses and group.correlation >= CERTAIN else "warn"
        where = "and in different parts of the split" if crosses else "of different patients"
        yield Finding(
            severity,
            "near duplicates",
            f"{len(group.cases)} images are nearly the same (correlation {group.correlation:.3f} and more) "
            f"{where}: {some(named)}. Look at them: where they are one image, or neighbouring slices of one "
            "scan, give them one patient_id or keep one; where they are different patients, name them in "
            "cohort.yaml: `not_duplicates: [[CASE, CASE]]`.",
            tuple(case.case_id for case in group.cases),
        )


def _apart(cases: Sequence[Case], split: Split | None) -> NDArray[np.int64]:
    """Return a number for each case; cases with the same number may be alike."""
    keys = [(case.patient_id, None if split is None else split.parts.get(case.case_id)) for case in cases]
    known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([known[key] for key in keys])


def _candidates(bits: NDArray[np.uint64], apart: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the pairs whose hashes are near, and that must not be alike."""
    for start in range(0, len(bits), _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        differ = np.bitwise_count(bits[block, None] ^ bits[None, start:])
        near = (differ <= _NEAR) & (apart[block, None] != apart[None, start:])
        for first, second in zip(*np.nonzero(near), strict=True):
            if second > first:
                yield start + int(first), start + int(second)


def _correlated(
    pairs: Iterable[tuple[int, int]], small: Sequence[NDArray[np.uint8]]
) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs with Pearson's correlation at the best shift, of the view that is least alike."""
    partners: dict[int, list[int]] = defaultdict(list)
    for first, second in pairs:
        partners[second].append(first)
    for second, firsts in partners.items():
        views = (
            _best_correlations(np.stack([small[first][view] for first in firsts]), small[second][view])
            for view in range(len(small[second]))
        )
        for first, correlation in zip(firsts, np.min(np.stack([*views]), axis=0), strict=True):
            yield first, second, float(correlation)


def _best_correlations(firsts: NDArray[np.uint8], second: NDArray[np.uint8]) -> Floats:
    """Return Pearson's correlation of each view with another at the best shift, by whole and half pixels."""
    inner = slice(_SHIFT, SIDE - _SHIFT)
    fixed = firsts[:, inner, inner].reshape(len(firsts), -1).astype(np.float32)
    fixed -= fixed.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(fixed, axis=1)
    whole = second.astype(np.float32)
    down = (whole[1:] + whole[:-1]) / 2
    shifted = (whole, down, (whole[:, 1:] + whole[:, :-1]) / 2, (down[:, 1:] + down[:, :-1]) / 2)
    side = SIDE - 2 * _SHIFT
    best = np.zeros(len(firsts), np.float32)
    for picture in shifted:  # all partners at once, since the windows cost more than the products
        seen = np.lib.stride_tricks.sliding_window_view(picture, (side, side))
        windows = np.asarray(seen.reshape(-1, side * side), dtype=np.float32)
        spread = lengths[:, None] * windows.std(axis=1) * np.float32(side)
        found = np.divide(fixed @ windows.T, spread, out=np.zeros_like(spread), where=spread > 0)
        best = np.maximum(best, found.max(axis=1))
    return best


def _root(group: list[int], index: int) -> int:
    while group[index] != index:
        group[index] = group[group[index]]
        index = group[index]
    return index


def _shrunk(plane: Floats, side: int) -> Floats:
    """Return the means over (side, side) cells; a voxel that cells share counts in each by its part."""
    rows, columns = (_cells(size, side) for size in plane.shape)
    return np.asarray(rows @ plane @ columns.T, dtype=np.float32)


@lru_cache(maxsize=64)
def _cells(size: int, side: int) -> Floats:
    """Return the weight of each of `size` voxels in the mean of each of `side` cells: (side, size)."""
    edges = np.linspace(0, size, side + 1)
    first = np.arange(size)
    shared = np.minimum(edges[1:, None], first + 1) - np.maximum(edges[:-1, None], first)
    return np.asarray(np.maximum(shared, 0) * (side / size), dtype=np.float32)


def _ranked(plane: Floats) -> Floats:
    """Return the ranks of the values, 0 to 1, those of one step alike."""
    low, high = float(plane.min()), float(plane.max())
    if high == low:
        return np.zeros_like(plane)
    steps = np.floor((plane - low) * ((_STEPS - 1) / (high - low))).astype(np.int64)
    steps = np.maximum(steps, _BACKGROUND)
    counts = np.bincount(steps.ravel(), minlength=_STEPS)
    middle = np.cumsum(counts) - counts / 2
    return np.asarray(middle[steps] / plane.size, dtype=np.float32)


@lru_cache(maxsize=1)
def _cosines() -> Floats:
    """Return the lowest rows of the discrete cosine transform: (_LOWEST, _HASHED)."""
    rows, columns = np.arange(_LOWEST)[:, None], np.arange(_HASHED)[None]
    return np.asarray(np.cos(np.pi * rows * (columns + 0.5) / _HASHED), dtype=np.float32)
