"""Structures as shaded surfaces, seen from the patient's front and left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
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
