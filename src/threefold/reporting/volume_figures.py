"""A volume with its true and predicted structures: three planes, and both as surfaces.

Planes are shown as radiologists look at them: the patient's right at the picture's left in axial and coronal
ones, anterior at the left in sagittal ones, letters at the edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from threefold.images.preprocessing import centre_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d import Axes3D

Labels = NDArray[np.uint8]

# Smoothed by half a voxel, a voxel by itself has 0.49 in its middle, and a gap of one voxel in a thick vessel
# 0.21: at this level neither a thin vessel nor a break in one gets lost.
_SMOOTHING, _LEVEL = 0.5, 0.4
# Voxels along the longest side, and faces of a view: beyond them a page takes minutes and shows no more.
_FINEST, _MOST_FACES = 128, 150_000
_ELEVATION, _AZIMUTH = 12, 125  # degrees; 90 is straight from the front, 180 from the left
_LIGHT = np.array([-0.45, 0.65, 0.61])  # from the upper left, RAS+
_AMBIENT = 0.45


@dataclass(frozen=True)
class Surface:
    """Triangles about a structure.

    Attributes:
        vertices: (V, 3) mm towards right, anterior, superior of the map's first voxel's centre.
        faces: (F, 3) indices of vertices, anticlockwise from outside.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]


def surface_of(mask: NDArray[np.bool_], spacing: Sequence[float], *, step: int = 1) -> Surface | None:
    """Return the surface of a structure, lightly smoothed; None where the structure is empty.

    Args:
        mask: (I, J, K).
        spacing: mm per voxel of each axis.
        step: voxels along each side of a block that is drawn as one; at least what a large structure needs.
    """
    from scipy.ndimage import find_objects, gaussian_filter
    from skimage.measure import block_reduce, marching_cubes

    box = find_objects(mask.astype(np.uint8))
    if not box:
        return None
    start = np.array([part.start for part in box[0]])
    inside = mask[box[0]]
    step = max(step, math.ceil(max(inside.shape) / _FINEST))
    reduce: Any = block_reduce
    coarse = reduce(inside, step, np.max) if step > 1 else inside
    # A margin, so that surfaces close.
    smooth = gaussian_filter(np.pad(coarse, 2).astype(np.float32), _SMOOTHING, mode="constant")
    march: Any = marching_cubes
    vertices, faces, _, _ = march(smooth, _LEVEL)
    voxels = (vertices - 2) * step + (step - 1) / 2 + start  # a block's centre is amid its voxels
    # scikit-image orders corners clockwise from outside.
    return Surface(voxels * np.asarray(spacing), faces[:, ::-1].astype(np.int64))


def draw_structures(
    axes: Axes3D,
    labels: Labels,
    spacing: Sequence[float],
    colours: Sequence[tuple[float, float, float]],
    limits: NDArray[np.float64],
) -> int:
    """Draw the surfaces of a label map from the front-left, without axes; return the number of structures.

    Args:
        axes: a 3D panel.
        labels: (I, J, K) RAS+.
        spacing: mm per voxel of each axis.
        colours: RGB (0..1) of labels 1, 2, ...
        limits: (3, 2) mm shown along each axis, the same scale along all.
    """
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    for step in (1, 2, 4, 8):  # coarser where a bad prediction is all surface
        found = [
            (surface, colour)
            for label, colour in enumerate(colours, 1)
            if (surface := surface_of(labels == label, spacing, step=step)) is not None
        ]
        if sum(len(surface.faces) for surface, _ in found) <= _MOST_FACES:
            break
    if found:
        triangles = np.concatenate([surface.vertices[surface.faces] for surface, _ in found])  # (F, 3, 3)
        shaded = np.concatenate([_shade(surface, colour) for surface, colour in found])
        # One collection for all: matplotlib sorts faces by depth within a collection only.
        axes.add_collection3d(
            Poly3DCollection(triangles, facecolors=shaded, edgecolors=shaded, linewidths=0.25)
        )
    axes.set(xlim=limits[0], ylim=limits[1], zlim=limits[2])
    axes.set_box_aspect(np.ptp(limits, axis=1), zoom=1.2)
    axes.set_proj_type("ortho")
    axes.view_init(_ELEVATION, _AZIMUTH)
    axes.set_axis_off()
    return len(found)


def _shade(surface: Surface, colour: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the colour of each face, darker where it turns from the light; (F, 3)."""
    vertices, faces = surface.vertices, surface.faces
    corners: NDArray[Any] = vertices[faces]  # (F, 3, 3)
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    # Normals averaged about each vertex, by area: the surface looks as smooth as it is meant.
    at_vertex = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(at_vertex, faces[:, corner], flat)
    normals = _unit(at_vertex)[faces].sum(axis=1)
    light = _AMBIENT + (1 - _AMBIENT) * np.clip(_unit(normals) @ _LIGHT, 0, 1)
    shaded: NDArray[np.float64] = light[:, None] * np.asarray(colour)
    return shaded


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return scaled


# Neighbours in a label map are often neighbours in the body: they differ in hue and in lightness.
COLOURS = (
    "#1F77D0",  # blue
    "#7FD4F5",  # sky
    "#12A37A",  # green
    "#E3342F",  # red
    "#F6E03A",  # yellow
    "#F28C1B",  # orange
    "#8A4FD0",  # violet
    "#A6E04C",  # lime
    "#F25CC0",  # pink
    "#A0622D",  # brown
    "#F7B8A4",  # salmon
    "#3C4FA0",  # indigo
    "#00C8C8",  # cyan
    "#8C8C00",  # olive
    "#9E1F63",  # plum
    "#C9B6F2",  # lilac
    "#0B6E3B",  # dark green
    "#D9C08A",  # sand
)
"""Colour of labels 1, 2, ...; from the first again where there are more."""

_COLUMN = 3.5  # inches
_OPACITY = 0.75
_MARGIN = 0.15  # of the foreground's longest side
_LEAST_MARGIN = 4.0  # mm
_SCALE_BARS = (1, 2, 5, 10, 20, 50, 100)  # mm


@dataclass(frozen=True)
class Plane:
    """A direction of cutting.

    Attributes:
        name: of the plane.
        axis: RAS+ axis that it is across.
        letters: what the left, right, top and bottom edges of the picture are turned to.
    """

    name: str
    axis: int
    letters: tuple[str, str, str, str]


PLANES = (
    Plane("axial", 2, ("R", "L", "A", "P")),
    Plane("coronal", 1, ("R", "L", "S", "I")),
    Plane("sagittal", 0, ("A", "P", "S", "I")),
)


@dataclass(frozen=True)
class VolumeExample:
    """A case as a page of pictures.

    Attributes:
        title: a line or more above it.
        image: (I, J, K) RAS+, grey values as shown, 0..1.
        truth, predicted: (I, J, K) labels, or None.
        names: of labels 1, 2, ...
        spacing: mm per voxel of each axis.
    """

    title: str
    image: NDArray[np.floating[Any]]
    truth: Labels | None
    predicted: Labels | None
    names: tuple[str, ...]
    spacing: tuple[float, float, float]

    @property
    def maps(self) -> dict[str, Labels]:
        """The maps that are there, by what they are."""
        maps = {"truth": self.truth, "prediction": self.predicted}
        return {name: labels for name, labels in maps.items() if labels is not None}


def cut(volume: NDArray[Any], plane: Plane, index: int) -> NDArray[Any]:
    """Return a plane of a RAS+ volume as it is shown: (rows, columns), top row first."""
    shown: NDArray[Any] = volume.take(index, plane.axis).T[::-1, ::-1]
    return shown


def crop(example: VolumeExample) -> tuple[VolumeExample, tuple[int, int, int]]:
    """Return the cube about the true foreground (else the predicted one, else everything), and its middle.

    The cube's side is the foreground's longest with a margin, at most the image's longest. It lies within the
    image where it can; what is outside is black and without structure.

    Returns:
        The cropped example; the voxel of it that is at the foreground's centre of mass.
    """
    foreground, shape = _foreground(example), np.array(example.image.shape)
    spacing = np.asarray(example.spacing)
    low, high = np.zeros(3, int), shape
    if foreground.any():
        places = np.argwhere(foreground)
        low, high = places.min(axis=0), places.max(axis=0) + 1
    longest = ((high - low) * spacing).max()  # mm
    side = min(longest + 2 * max(_MARGIN * longest, _LEAST_MARGIN), (shape * spacing).max())
    size = np.round(side / spacing).astype(int)
    size = np.maximum(size, 1)
    # About the foreground, moved into the image; about the image along an axis that is too short.
    start = np.clip((low + high - size) // 2, 0, np.maximum(shape - size, 0))
    start = np.where(size > shape, (shape - size) // 2, start)
    centre = centre_of(foreground) or tuple((shape - 1) / 2)
    i, j, k = (round(c) - int(s) for c, s in zip(centre, start, strict=True))
    cropped = replace(
        example,
        image=_box(example.image, start, size),
        truth=None if example.truth is None else _box(example.truth, start, size),
        predicted=None if example.predicted is None else _box(example.predicted, start, size),
    )
    return cropped, (i, j, k)


def volume_figure(example: VolumeExample) -> Figure:
    """Draw a case: three planes through the middle of its structures, and the structures as surfaces.

    Columns: the image, the image with the true structures, with the predicted ones (those that are there).
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown, middle = crop(example)
    columns: dict[str, Labels | None] = {"image": None, **shown.maps}
    rows = len(PLANES) + bool(shown.maps)
    lines = example.title.count("\n") + 1
    figure = Figure(
        figsize=(_COLUMN * len(columns) + 0.2, _COLUMN * rows + 0.3 + 0.25 * lines),
        layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01),
    )
    figure.suptitle(example.title, fontsize=13 if len(columns) > 2 else 10)  # lines of 90 letters fit
    grid = figure.add_gridspec(rows, len(columns))
    for row, plane in enumerate(PLANES):
        for column, (name, labels) in enumerate(columns.items()):
            axes = figure.add_subplot(grid[row, column])
            _draw_plane(axes, shown, plane, middle[plane.axis], labels)
            if row == 0:
                axes.set_title(name, fontsize=12)
            if column == 0:
                axes.set_ylabel(plane.name, fontsize=12)
                _draw_scale(axes, shown, plane)
    if shown.maps:
        _draw_legend(figure.add_subplot(grid[-1, 0]), example)
        limits = _limits(example)
        for column, (name, labels) in enumerate(example.maps.items(), 1):
            panel = figure.add_subplot(grid[-1, column], projection="3d")
            panel.set_title(f"{name}, from front-left", fontsize=12)
            if not draw_structures(panel, labels, example.spacing, _colours(example), limits):
                panel.text2D(0.5, 0.5, "no structure", transform=panel.transAxes, ha="center", fontsize=11)
    return figure


def _foreground(example: VolumeExample) -> NDArray[np.bool_]:
    for labels in example.maps.values():
        if labels.any():
            return labels > 0
    return np.zeros(example.image.shape, np.bool_)


def _box(volume: NDArray[Any], start: NDArray[Any], size: NDArray[Any]) -> NDArray[Any]:
    """Return a box of a volume, 0 where it is outside of it."""
    box = np.zeros(size, volume.dtype)
    low, high = np.maximum(start, 0), np.minimum(start + size, volume.shape)
    source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    target = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    box[target] = volume[source]
    return box


def _limits(example: VolumeExample) -> NDArray[np.float64]:
    """Return the mm along each axis that hold every structure of either map, (3, 2)."""
    union = np.logical_or.reduce([labels > 0 for labels in example.maps.values()])
    places = np.argwhere(union) if union.any() else np.array([[0, 0, 0], union.shape])
    voxels = np.stack([places.min(axis=0) - 1, places.max(axis=0) + 1], axis=1)
    limits: NDArray[np.float64] = voxels * np.asarray(example.spacing)[:, None]
    return limits


def _draw_plane(axes: Axes, shown: VolumeExample, plane: Plane, index: int, labels: Labels | None) -> None:
    # Of the picture's rows and columns: the later and the earlier of the two axes that remain.
    across, down = (size for axis, size in enumerate(shown.spacing) if axis != plane.axis)
    picture = cut(shown.image, plane, index)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=down / across, interpolation="bilinear")
    if labels is not None:
        colours = np.zeros((len(shown.names) + 1, 4))
        colours[1:, :3], colours[1:, 3] = _colours(shown), _OPACITY
        overlay = colours[cut(labels, plane, index)]
        axes.imshow(overlay, aspect=down / across, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.97), (0.5, 0.03))
    sides = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for letter, place, (horizontal, vertical) in zip(plane.letters, places, sides, strict=True):
        axes.text(
            *place,
            letter,
            transform=axes.transAxes,
            ha=horizontal,
            va=vertical,
            fontsize=11,
            **_outlined(),
        )


def _draw_scale(axes: Axes, shown: VolumeExample, plane: Plane) -> None:
    """Draw a bar of a round length, about a quarter of the picture."""
    across = next(size for axis, size in enumerate(shown.spacing) if axis != plane.axis)
    rows, columns = cut(shown.image, plane, 0).shape
    length = max((mm for mm in _SCALE_BARS if mm <= 0.3 * columns * across), default=_SCALE_BARS[0])
    left, y = 0.05 * columns, 0.95 * rows
    bar = [left, left + length / across]
    axes.plot(bar, [y, y], linewidth=2.5, solid_capstyle="butt", **_outlined(width=4.5))
    axes.text(left, y - 0.025 * rows, f"{length} mm", fontsize=9, ha="left", va="bottom", **_outlined())


def _outlined(*, width: float = 2) -> dict[str, Any]:
    """Return the style of what is seen on black and on white; `width` is the outline's, in points."""
    from matplotlib.patheffects import withStroke

    return {"color": "white", "path_effects": [withStroke(linewidth=width, foreground="black")]}


def _draw_legend(axes: Axes, example: VolumeExample) -> None:
    from matplotlib.patches import Patch

    there = sorted({int(label) for labels in example.maps.values() for label in np.unique(labels)} - {0})
    colours = _colours(example)
    handles = [Patch(color=colours[label - 1], label=example.names[label - 1]) for label in there]
    axes.axis("off")
    if handles:
        axes.legend(
            handles=handles,
            loc="center",
            ncols=1 + len(handles) // 13,
            frameon=False,
            fontsize=11 if len(handles) <= 26 else 8,
        )


def _colours(example: VolumeExample) -> Sequence[tuple[float, float, float]]:
    from matplotlib.colors import to_rgb

    return [to_rgb(COLOURS[label % len(COLOURS)]) for label in range(len(example.names))]
