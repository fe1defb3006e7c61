"""How alike runs see the same cases: a table and a figure, a row a pair of runs, a column a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from threefold.evaluation.estimate import Estimate
from threefold.experiment import EvaluationSpec
from threefold.reporting.table import Number, Table, interval_legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pairs = Mapping[tuple[str, str], Mapping[str, Estimate]]
"""Stages, by pair of runs."""
POOLED = "features"
"""The name of the classifier's input, next to the names of the stages."""


def similarity_table(pairs: Pairs, spec: EvaluationSpec) -> Table:
    """Return the similarity of each stage of each pair of runs."""
    stages = _stages(pairs)
    return Table(
        "Similarity of the features (linear CKA)",
        ("runs", *stages),
        tuple(
            (" and ".join(pair), *(_cell(found.get(stage)) for stage in stages))
            for pair, found in pairs.items()
        ),
        (
            interval_legend(spec),
            "Unbiased linear CKA of the features pooled over the image: 1 for features that are equal up to "
            f"rotation and scale, about 0 for unrelated ones. {POOLED}: the classifier's input.",
        ),
    )


def similarity_figure(pairs: Pairs) -> Figure:
    """Draw the similarity of each stage of each pair as a heat map with numbers and intervals."""
    from matplotlib.figure import Figure

    stages, names = _stages(pairs), [f"{first}\nand {second}" for first, second in pairs]
    found = [[of_pair.get(stage) for stage in stages] for of_pair in pairs.values()]
    values = np.array([[np.nan if one is None else one.value for one in row] for row in found])
    longest = max(len(line) for name in names for line in name.split("\n"))
    figure = Figure(
        figsize=(1.6 + 0.075 * longest + 1.1 * len(stages), 1.4 + 0.5 * len(names)), layout="constrained"
    )
    axes = figure.subplots()
    shown = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        one = found[row][column]
        text = "no such\nstage" if one is None else "not\nestimable" if math.isnan(value) else _short(one)
        colour = "black" if math.isnan(value) or value > 0.55 else "white"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(stages)), stages, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("Linear CKA, unbiased", fontsize=10)
    figure.colorbar(shown, ax=axes)
    return figure


def _stages(pairs: Pairs) -> list[str]:
    """Return every stage in order: what the classifier reads is the last."""
    names = dict.fromkeys(stage for found in pairs.values() for stage in found)
    return [*(name for name in names if name != POOLED), *(name for name in names if name == POOLED)]


def _cell(one: Estimate | None) -> str:
    if one is None:
        return "no such stage in both"
    count = f"n={one.n}/{one.patients}"
    if math.isnan(one.value):
        return f"{one.note} {count}"
    shown = f"[{one.note}]" if math.isnan(one.low) else f"[{one.low:.3f}, {one.high:.3f}]"
    return Number(one, f"{one.value:.3f}", shown, count)


def _short(one: Estimate) -> str:
    return f"{one.value:.2f}" if math.isnan(one.low) else f"{one.value:.2f}\n[{one.low:.2f}, {one.high:.2f}]"
