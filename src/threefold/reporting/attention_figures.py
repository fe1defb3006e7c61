"""Pictures of attention over images, with the outline of the lesion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from threefold.reporting.volume_figures import PLANES, cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Array = NDArray[Any]
_LESION = "#56B4E9"
_STRONGEST = 0.75
"""Opacity where the map is highest; where it is zero the image is seen as it is."""


@dataclass(frozen=True)
class AttentionPicture:
    """A slice with the attention to it.

    Attributes:
        title: a short line or two above it.
        image: (H, W) grey values 0..1, top row first.
        attention: (H, W) not negative.
        lesion: (H, W), or None.
    """

    title: str
    image: NDArray[np.floating[Any]]
    attention: NDArray[np.floating[Any]]
    lesion: NDArray[np.bool_] | None


def plane_of(lesion: NDArray[np.bool_] | None, shape: tuple[int, ...]) -> Callable[[_Array], _Array]:
    """Return what takes the plane to show out of an array on the network's grid, (H, W) as drawn.

    A slice is shown whole; of a volume (RAS+) the axial plane with most of the lesion, else the middle one.

    Args:
        lesion: (*S), or None.
        shape: S.
    """
    if len(shape) == 2:
        return lambda array: array
    areas = np.zeros(shape[2]) if lesion is None else lesion.sum(axis=(0, 1))
    level = int(areas.argmax()) if areas.any() else shape[2] // 2
    return lambda array: cut(array, PLANES[0], level)


def attention_figure(rows: Mapping[str, Sequence[AttentionPicture]]) -> Figure | None:
    """Draw attention over images, a line for each title; None without a picture."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    shown = {name: pictures for name, pictures in rows.items() if pictures}
    if not shown:
        return None
    columns = max(map(len, shown.values()))
    figure = Figure(
        figsize=(2.3 * columns + 0.4, 2.75 * len(shown) + 0.5),
        layout=ConstrainedLayoutEngine(h_pad=0.08, compress=True),
    )
    panels = figure.subplots(len(shown), columns, squeeze=False)
    for axes in panels.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for line, (name, pictures) in zip(panels, shown.items(), strict=True):
        for axes, picture in zip(line, pictures, strict=False):
            _draw(axes, picture)
        line[0].text(
            -0.06, 0.5, name, transform=line[0].transAxes, rotation=90, va="center", ha="right", fontsize=9
        )
    figure.legend(
        [Line2D([], [], color=_LESION), Line2D([], [], color="#ED6925", linewidth=5)],
        ["lesion", "attention (Grad-CAM of the class decided for; each map by its own maximum)"],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )
    return figure


def _draw(axes: Axes, picture: AttentionPicture) -> None:
    axes.imshow(picture.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    highest = picture.attention.max()
    strength = picture.attention / highest if highest > 0 else picture.attention
    axes.imshow(
        strength, cmap="inferno", vmin=0, vmax=1, alpha=_STRONGEST * strength, interpolation="nearest"
    )
    if picture.lesion is not None and picture.lesion.any() and not picture.lesion.all():
        axes.contour(picture.lesion.astype(float), levels=[0.5], colors=[_LESION], linewidths=1.1)
    axes.set_title(picture.title, fontsize=7.5)
