"""A small cohort whose truth is a formula: an atlas, and cases that are the atlas moved and bent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from threefold.cohorts.cohort import AtlasSpec, Cohort, CohortSpec, write_cohort
from threefold.core.targets import MaskSpec
from threefold.images.writing import write_nifti

SIZE = (26, 30, 24)
STRUCTURES = ("core", "rod", "cap")
CENTRES = np.array([[0.0, 0, 0], [-9, 2, 4], [7, -9, -3], [4, 10, -2], [-4, -6, -8], [8, 5, 8]])
WIDTHS = np.array([7.0, 4, 4, 5, 4, 4])
HEIGHTS = np.array([1.0, 0.6, -0.5, 0.7, 0.8, -0.4])


def brightness(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 0..255 at (..., 3) mm."""
    away = np.linalg.norm(points[..., None, :] - CENTRES, axis=-1) / WIDTHS
    return 60 + 90 * (HEIGHTS * np.exp(-np.square(away))).sum(-1)


def structures(points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the label at (..., 3) mm."""
    labels = np.zeros(points.shape[:-1], np.uint8)
    labels[np.linalg.norm(points - CENTRES[3], axis=-1) < 4] = 3
    labels[np.linalg.norm(points - CENTRES[1], axis=-1) < 4] = 2
    labels[np.linalg.norm(points, axis=-1) < 6.5] = 1
    return labels


@dataclass(frozen=True)
class Body:
    """How a case differs from the atlas, and how its file lies.

    Attributes:
        turn: degrees about the third axis.
        scale: of all axes.
        shift: mm.
        bend: mm, of a smooth wave.
        affine: (4, 4) of the file.
        size: of the file.
    """

    turn: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    bend: float = 0.0
    flip: bool = False
    tilt: float = 0.0
    size: tuple[int, int, int] = SIZE

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) voxels to mm: 1.2 mm, tilted about the second axis, the first one perhaps flipped."""
        angle = np.radians(self.tilt)
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        linear = 1.2 * turn @ np.diag([-1.0 if self.flip else 1.0, 1, 1])
        affine = np.eye(4)
        affine[:3, :3] = linear
        affine[:3, 3] = np.asarray(self.shift) - linear @ (np.asarray(self.size) - 1) / 2
        return affine

    def to_atlas(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (..., 3) mm of the case to mm of the atlas."""
        angle = np.radians(self.turn)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        straight = (points - np.asarray(self.shift)) @ turn.T / self.scale
        return straight + self.bend * np.sin(2 * np.pi * straight[..., [1, 2, 0]] / 30)

    def points(self) -> NDArray[np.float64]:
        """(*size, 3) mm of the voxels."""
        index = np.stack(np.meshgrid(*map(np.arange, self.size), indexing="ij"), -1)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def image(self) -> NDArray[np.float32]:
        return brightness(self.to_atlas(self.points())).astype(np.float32)

    def labels(self) -> NDArray[np.uint8]:
        return structures(self.to_atlas(self.points()))


ATLAS = Body()
BODIES = {
    "one": Body(turn=8, scale=1.1, shift=(3, -2, 4), bend=1.2),
    "two": Body(turn=-6, scale=0.95, shift=(-20, 5, 0), bend=-1.2, flip=True, tilt=20),
    "three": Body(scale=1.05, shift=(0, 3, -2), bend=1.0, size=(30, 26, 28)),
}


def write_body(folder: Path, name: str, body: Body) -> dict[str, str]:
    """Write a body's image, true label map and mask; return their paths by column."""
    labels = body.labels()
    paths = {}
    for column, array in (("image", body.image()), ("reference", labels), ("mask", (labels > 0) * 1)):
        (folder / column).mkdir(parents=True, exist_ok=True)
        write_nifti(folder / column / f"{name}.nii.gz", array.astype(array.dtype), body.affine)
        paths[column] = f"{column}/{name}.nii.gz"
    return paths


MakeCohort = Callable[..., Cohort]


@pytest.fixture
def make_cohort(tmp_path: Path) -> MakeCohort:
    """Return a function that writes a cohort of BODIES with one atlas; keywords change cohort.yaml."""

    def make(folder: str = "cohort", rows: dict[str, dict[str, Any]] | None = None, **spec: Any) -> Cohort:
        where = tmp_path / folder
        atlas = write_body(where / "atlases", "atlas", ATLAS)
        meaning: dict[str, Any] = {
            "name": "bodies",
            "modality": "mri",
            "dimensions": 3,
            "classes": ("A", "B"),
            "mask": MaskSpec(name="all"),
            "structures": STRUCTURES,
            "atlases": (
                AtlasSpec(
                    name="mean",
                    image=f"atlases/{atlas['image']}",
                    structures=f"atlases/{atlas['reference']}",
                ),
            ),
            **spec,
        }
        table = []
        for name, body in BODIES.items():
            row = {"case_id": name, "patient_id": name, "site": "s", "label": "A"}
            row |= write_body(where, name, body)
            changes = (rows or {}).get(name, {})
            table.append({**row, **changes})
        return write_cohort(where, CohortSpec(**meaning), table)

    return make


@pytest.fixture(scope="session")
def bodies() -> SimpleNamespace:
    """Return `atlas`, the cases `of` by name, and the class `Body`."""
    return SimpleNamespace(atlas=ATLAS, of=BODIES, Body=Body)
