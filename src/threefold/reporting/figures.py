"""Figures: ROC and calibration by site group, the shift between sites, loss curves, examples.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; groups differ in line style too.
Every function returns a matplotlib `Figure` of its own (no global state, no window); `save` writes it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.evaluation.classification import auc
from threefold.evaluation.curves import reliability_curve, roc_curve
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation
from threefold.evaluation.groups import Group, case_units, groups_of, natural_order
from threefold.evaluation.metrics import metric_of, shown_in
from threefold.evaluation.predictions import Predictions
from threefold.experiment import EvaluationSpec
from threefold.reporting.tables import title_of
from threefold.run import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":")
_TRUTH, _PREDICTED = "#56B4E9", "#E69F00"
_LEAK_TITLE = " (split leaks patients)"


@dataclass(frozen=True)
class Example:
    """A case as a picture.

    Attributes:
        title: a short line or two above it.
        image: (H, W) grey values as shown, 0..1, top row first.
        truth, predicted: (H, W) masks, or None.
    """

    title: str
    image: NDArray[np.floating[Any]]
    truth: NDArray[np.bool_] | None
    predicted: NDArray[np.bool_] | None


def save(figure: Figure, path: Path) -> Path:
    """Write a figure (PNG, 150 dots an inch) in one step; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
    return path


def agreement_figure(table: pd.DataFrame, rows: Sequence[Estimate], unit: str) -> Figure | None:
    """Draw predicted minus true against their mean (Bland and Altman 1986), test cases by site group.

    Args:
        table: of one task: part, site_group, truth and predicted.
        rows: its numbers; bias and limits of all cases are drawn with their intervals.
        unit: of the numbers; empty where they have none.

    Returns:
        None where no test case has a known number.
    """
    numbers = table.assign(
        truth=pd.to_numeric(table["truth"], errors="coerce"),
        predicted=pd.to_numeric(table["predicted"], errors="coerce"),
    )
    known = numbers[(numbers["part"] == "test") & numbers["truth"].notna() & numbers["predicted"].notna()]
    if known.empty:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Agreement: bias and limits, with their intervals", fontsize=11)
    _tidy(axes)
    for index, name in enumerate(natural_order({*known["site_group"]})):
        cases = known[known["site_group"] == name]
        mean, error = (cases["predicted"] + cases["truth"]) / 2, cases["predicted"] - cases["truth"]
        style = _style(index)
        axes.plot(
            mean,
            error,
            "o",
            color=style["color"],
            alpha=0.6,
            markersize=4,
            label=f"{name or 'all'}, n={len(cases)}",
        )
    for row in rows:
        if row.group_kind == "all" and row.metric in ("bias", "lower_limit", "upper_limit"):
            if math.isnan(row.value):
                continue
            axes.axhline(
                row.value, color="black", linewidth=1, linestyle="-" if row.metric == "bias" else "--"
            )
            if row.interval is not None:
                axes.axhspan(row.low, row.high, color="black", alpha=0.08, linewidth=0)
    words = f" ({unit})" if unit else ""
    axes.set_xlabel(f"mean of predicted and true{words}")
    axes.set_ylabel(f"predicted minus true{words}")
    axes.legend(fontsize=8)
    return figure


def roc_figure(predictions: Predictions, spec: EvaluationSpec) -> Figure | None:
    """Draw the ROC curve of the test cases of each site group, with its band; None without a curve.

    Two classes only; a group with one class is listed as not estimable.
    """
    if predictions.positive is None:
        return None
    figure, axes = _square(f"ROC by site group{_LEAK_TITLE if predictions.leaks else ''}")
    drawn = False
    for index, group in enumerate(_site_groups(predictions)):
        positive, scores, patients = _diagnosis(group, predictions)
        curve = roc_curve(positive, scores, patients, spec)
        label = f"{group.name}: {_count(positive, patients)}"
        if curve is None:
            axes.plot([], [], " ", label=f"{label}, not estimable (one class)")
            continue
        drawn = True
        style = _style(index)
        axes.fill_between(curve.grid, curve.low, curve.high, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(
            curve.false_positive_rate,
            curve.true_positive_rate,
            label=f"{label}\nAUC {auc(positive, scores):.3f}",
            **style,
        )
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel("1 − specificity (share of negative cases called positive)")
    axes.set_ylabel("Sensitivity (share of positive cases found)")
    _legend_below(axes, _band_title("band", spec))
    return figure if drawn else None


def calibration_figure(predictions: Predictions, spec: EvaluationSpec) -> Figure | None:
    """Draw observed frequency against predicted probability for each site group; None without a curve.

    Two classes only.
    """
    if predictions.positive is None:
        return None
    figure, axes = _square(f"Calibration by site group{_LEAK_TITLE if predictions.leaks else ''}")
    drawn = False
    for index, group in enumerate(_site_groups(predictions)):
        positive, scores, patients = _diagnosis(group, predictions)
        curve = reliability_curve(positive, scores, patients, spec)
        if curve is None:
            continue
        drawn = True
        style = _style(index)
        axes.vlines(curve.probability, curve.low, curve.high, color=style["color"], alpha=0.4, linewidth=1.5)
        axes.plot(
            curve.probability,
            curve.observed,
            marker="os^D"[index % 4],
            markersize=5,
            label=f"{group.name}: {_count(positive, patients)}",
            **style,
        )
    if not drawn:
        return None
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlabel(f"Predicted probability of {predictions.positive} (mean of a bin of equally many cases)")
    axes.set_ylabel(f"Share of the bin's cases that are {predictions.positive}")
    _legend_below(axes, _band_title("lines", spec))
    return figure


def confusion_figure(predictions: Predictions, *, threshold: float | None = None) -> Figure | None:
    """Draw how many test cases of each class were taken for which; None without a labelled one.

    Cells hold the count and its share of the row, whose colour they have.

    Args:
        predictions: the table.
        threshold: of two classes, the positive one's probability from which on a case is called positive;
            None, and with more classes: the most probable class is taken, the first of equals.
    """
    counts = confusion_counts(predictions, threshold=threshold)
    if not counts.sum():
        return None
    from matplotlib.figure import Figure

    names, totals = predictions.classes, counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    side = 2.6 + 0.8 * len(names)
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(
            column,
            row,
            f"{count}\n{shares[row, column]:.0%}" if totals[row] else "0",
            ha="center",
            va="center",
            fontsize=10,
            color="white" if shares[row, column] > 0.55 else "black",
        )
    axes.set_title(f"Test cases by class{_LEAK_TITLE if predictions.leaks else ''}", fontsize=11)
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, names)) > 8 else {}
    axes.set_xticks(range(len(names)), names, **slanted)
    axes.set_yticks(range(len(names)), [f"{n}\nn={t}" for n, t in zip(names, totals, strict=True)])
    axes.set_xlabel("Predicted")
    axes.set_ylabel("Truth")
    axes.tick_params(length=0)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="Share of the true class")
    return figure


def confusion_counts(predictions: Predictions, *, threshold: float | None = None) -> NDArray[np.int64]:
    """Return the labelled test cases by true class (rows) and predicted class (columns), (K, K).

    Args:
        predictions, threshold: as for `confusion_figure`.
    """
    rows, count = predictions.part("test"), len(predictions.classes)
    units = case_units(rows[rows["label"] != ""], predictions)
    counts = np.zeros((count, count), np.int64)
    if not (count and len(units)):
        return counts
    decided = units.probabilities.argmax(axis=1)
    positive = predictions.positive_index
    if threshold is not None and positive is not None:
        decided = np.where(units.probabilities[:, positive] >= threshold, positive, 1 - positive)
    np.add.at(counts, (units.labels, decided), 1)
    return counts


def shift_figure(evaluation: Evaluation) -> Figure | None:
    """Draw metrics per site with their intervals, site groups apart by colour; None without two sites."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = [r for r in evaluation.rows if r.level == "case" and r.group_kind == "site" and not r.class_name]
    sites = list(dict.fromkeys(row.group for row in rows))
    metrics = [m for m in shown_in("drawn") if any(r.metric == m and not math.isnan(r.value) for r in rows)]
    if len(sites) < 2 or not metrics:
        return None
    figure = Figure(figsize=(1.2 + 2.6 * len(metrics), 1.6 + 0.3 * len(sites)), layout="constrained")
    figure.suptitle(f"Test cases by site{_LEAK_TITLE if evaluation.leaks else ''}", fontsize=11)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    heights = {site: -index for index, site in enumerate(sites)}
    groups = natural_order({*evaluation.site_groups.values()})
    colours = {
        site: PALETTE[groups.index(evaluation.site_groups[site]) % len(PALETTE)]
        if site in evaluation.site_groups
        else PALETTE[-1]
        for site in sites
    }
    for axes, metric in zip(panels, metrics, strict=True):
        for row in (row for row in rows if row.metric == metric):
            y = heights[row.group]
            if math.isnan(row.value):
                axes.text(0.02, y, "not estimable", fontsize=7, color="0.4", va="center")
                continue
            if not math.isnan(row.low):
                axes.hlines(y, row.low, row.high, color=colours[row.group], linewidth=1.5)
            marker = "D" if math.isnan(row.low) else "o"
            axes.plot(row.value, y, marker, color=colours[row.group], markersize=4.5)
        overall = evaluation.find(metric)
        if overall is not None and not math.isnan(overall.value):
            axes.axvline(overall.value, color="0.6", linewidth=0.8, zorder=0)
        axes.set_title(title_of(metric, ""), fontsize=9)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 0.5, 1])
        _tidy(axes)
    if groups:
        marks = [Line2D([], [], color=PALETTE[i % len(PALETTE)], marker="o") for i in range(len(groups))]
        figure.legend(marks, groups, loc="outside upper right", ncols=len(groups), frameon=False, fontsize=8)
    counts = {row.group: f"{row.group}\nn={row.n}/{row.patients}" for row in reversed(rows)}
    panels[0].set_yticks(list(heights.values()), [counts[site] for site in heights], fontsize=7)
    panels[0].set_ylim(-len(sites) + 0.5, 0.5)
    figure.supxlabel(
        f"line: {evaluation.spec.confidence:.0%} interval; grey: all test cases; n: cases/patients"
        " (of the first metric)",
        fontsize=8,
    )
    return figure


def loss_figure(history: pd.DataFrame) -> Figure | None:
    """Draw the losses and the validation metrics of a run by epoch; None where there is no finished epoch.

    Args:
        history: metrics.csv, with column `epoch` and columns train_<loss> and validation_<loss or metric>.
    """
    from matplotlib.figure import Figure

    losses = [n for n in history.columns if n.startswith(("train_loss", "validation_loss"))]
    scores = [f"validation_{m}" for m in ("auc", "average_precision", "dice")]
    scores = [name for name in scores if name in history and history[name].notna().any()]
    losses = [name for name in losses if history[name].notna().any()]
    if history.empty or not losses:
        return None
    tasks = list(dict.fromkeys(name.split("_", 1)[1] for name in losses))
    figure = Figure(figsize=(10 if scores else 5.5, 4.6), layout="constrained")
    panels = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for name in losses:
        part, quantity = name.split("_", 1)
        panels[0].plot(
            *_measured(history, name),
            "-" if part == "train" else "--",
            color=PALETTE[tasks.index(quantity) % len(PALETTE)],
            marker="." if len(history) < 20 else None,
            label=f"{_loss_title(quantity)}, {part}",
        )
    panels[0].set_ylabel("Loss (mean over cases with the target)")
    if (history[losses].fillna(1) > 0).all(axis=None):
        panels[0].set_yscale("log")
    for index, name in enumerate(scores):
        title = metric_of(name.removeprefix("validation_")).title
        marker = "." if len(history) < 20 else None
        panels[1].plot(*_measured(history, name), label=title, marker=marker, **_style(index))
    if scores:
        panels[1].set_ylabel("Validation metric")
        panels[1].set_ylim(0, 1.02)
    for axes in panels:
        axes.set_xlabel("Epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=8)
        _tidy(axes)
    return figure


def examples_figure(examples: Mapping[str, Sequence[Example]]) -> Figure | None:
    """Draw cases with the outlines of their true and predicted masks; None without a case.

    Args:
        examples: by row title (a site group), the pictures of the row.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    rows = {name: cases for name, cases in examples.items() if cases}
    if not rows:
        return None
    columns = max(len(cases) for cases in rows.values())
    lines = max(case.title.count("\n") + 1 for cases in rows.values() for case in cases)
    height = (2.6 + 0.15 * lines) * len(rows) + 0.5
    figure = Figure(
        figsize=(2.6 * columns + 0.4, height), layout=ConstrainedLayoutEngine(h_pad=0.08, compress=True)
    )
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for axes in panels.ravel():
        # Not set_axis_off, with which the layout would cut titles off.
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for line, (name, cases) in zip(panels, rows.items(), strict=True):
        for axes, case in zip(line, cases, strict=False):
            axes.imshow(case.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            for mask, colour in ((case.truth, _TRUTH), (case.predicted, _PREDICTED)):
                if mask is not None and mask.any() and not mask.all():
                    axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.1)
            axes.set_title(case.title, fontsize=7.5)
        line[0].text(
            -0.06, 0.5, name, transform=line[0].transAxes, rotation=90, va="center", ha="right", fontsize=9
        )
    handles = [Line2D([], [], color=_TRUTH), Line2D([], [], color=_PREDICTED)]
    figure.legend(
        handles,
        ["true mask", "predicted mask"],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )
    return figure


def _site_groups(predictions: Predictions) -> tuple[Group, ...]:
    groups = groups_of(predictions.part("test"))
    named = tuple(group for group in groups if group.kind == "site group")
    return named or groups[:1]


def _diagnosis(
    group: Group, predictions: Predictions
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    cases = case_units(group.rows, predictions)
    labelled = cases.where(cases.labels >= 0)
    index = predictions.positive_index
    return labelled.labels == index, labelled.probabilities[:, index or 0], labelled.patients


def _count(positive: NDArray[np.bool_], patients: NDArray[np.int64]) -> str:
    return f"{len(positive)} cases, {len(np.unique(patients))} patients, {int(positive.sum())} positive"


def _band_title(what: str, spec: EvaluationSpec) -> str:
    return f"{what}: {spec.confidence:.0%} interval, patients resampled"


def _legend_below(axes: Axes, title: str) -> None:
    """Put the legend below the axes: inside, a curve of a poor group would run through it."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.11),
        frameon=False,
        fontsize=8,
        title=title,
        title_fontsize=8,
    )


def _measured(history: pd.DataFrame, name: str) -> tuple[pd.Series[float], pd.Series[float]]:
    """Return the epochs that measured a quantity and its values: a line is not to break at the others."""
    there = history[name].notna()
    return history.loc[there, "epoch"], history.loc[there, name]


def _loss_title(quantity: str) -> str:
    return quantity.removeprefix("loss_") if quantity != "loss" else "weighted sum"


def _style(index: int) -> dict[str, Any]:
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": _LINES[index % len(_LINES)]}


def _square(title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    axes.set_aspect("equal")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
