"""The figure of a study: each claim's difference, its interval and its pairs of runs, coloured by verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from threefold.evaluation.comparison import ClaimRow
from threefold.evaluation.metrics import title
from threefold.reporting.study_tables import LATE, cohorts_of, groups_of
from threefold.reporting.table import LEAK_MARK

_COLOURS = {
    "supported": "#1b7837",
    "contradicted": "#b2182b",
    "undecided": "#777777",
    "not estimable": "#bbbbbb",
    "unfinished": "#e08214",
}


def claim_figure(rows: Sequence[ClaimRow]) -> Figure:
    """Draw the differences of the claims, one panel a metric, in the study's order."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    counts = [sum(row.metric == metric for row in rows) for metric in metrics]
    figure = Figure(figsize=(10, 1.0 + 0.9 * len(metrics) + 0.5 * len(rows)), layout="constrained")
    panels = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=[n + 1 for n in counts])[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        shown = [row for row in rows if row.metric == metric]
        for place, row in enumerate(shown):
            effect, colour = row.effect, _COLOURS[row.verdict]
            axes.plot([effect.estimate.low, effect.estimate.high], [place, place], color=colour, linewidth=2)
            axes.plot(effect.estimate.value, place, "o", color=colour, markersize=6)
            axes.plot(effect.each, np.full(len(effect.each), place), "|", color="black", markersize=7)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(np.arange(len(shown)), [_label(row) for row in shown], fontsize=8)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel(f"difference in {title(metric)}", fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", linewidth=0.3)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    verdicts = {row.verdict for row in rows}
    handles = [
        panels[0].plot([], [], "o-", color=colour, label=name)[0]
        for name, colour in _COLOURS.items()
        if name in verdicts
    ]
    handles += panels[0].plot([], [], "|", color="black", markersize=7, label="a pair of runs")
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def _label(row: ClaimRow) -> str:
    words = "\n".join(textwrap.wrap(f"{row.claim} ({LATE})" if row.is_late else row.claim, 60))
    mark = f"{LEAK_MARK} " if row.leaks else ""
    return f"{mark}{words}\n{row.variant} against {row.baseline}; {cohorts_of(row)}, {groups_of(row)}"
