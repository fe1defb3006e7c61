"""Saved transforms: by ITK's own definitions they carry the labels as the propagation did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy.ndimage import map_coordinates

from threefold.atlases.propagation import propagate
from threefold.atlases.spec import PropagationSpec
from threefold.images.reading import read_label_map

QUICK = PropagationSpec(
    size=(20, 20, 20), affine_steps=12, epochs=0, refinement_steps=6, save_transforms=True
)
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_affine(path: Path) -> np.ndarray:
    """Return (4, 4) of an ITK transform file: y = matrix (x - centre) + centre + translation."""
    lines = dict(line.split(": ") for line in path.read_text().splitlines() if not line.startswith("#"))
    assert lines["Transform"] == "AffineTransform_double_3_3"
    numbers = np.array(lines["Parameters"].split(), float)
    centre = np.array(lines["FixedParameters"].split(), float)
    matrix = np.eye(4)
    matrix[:3, :3] = numbers[:9].reshape(3, 3)
    matrix[:3, 3] = numbers[9:] + centre - matrix[:3, :3] @ centre
    return matrix


def test_saved_transforms_carry_labels_as_the_propagation_did(make_cohort: Any, tmp_path: Path) -> None:
    cohort, out = make_cohort(), tmp_path / "out"
    made = propagate(cohort, out, QUICK)
    case = made.cases[1]  # tilted and flipped in its file
    affine = read_affine(out / "transforms" / "two" / "mean_affine.txt")
    stored: Any = nibabel.load(out / "transforms" / "two" / "mean_field.nii.gz")
    assert stored.header.get_intent()[0] == "vector"
    field = np.asarray(stored.dataobj)
    assert field.shape[3:] == (1, 3)
    image, atlas = (
        read_label_map(case.structures),
        read_label_map(made.folder / made.spec.atlases[0].structures),
    )
    index = np.stack(np.meshgrid(*map(np.arange, image.array.shape), indexing="ij"), -1).reshape(-1, 3)
    points = index @ (TO_LPS @ image.affine)[:3, :3].T + (TO_LPS @ image.affine)[:3, 3]
    to_field = np.linalg.inv(TO_LPS @ stored.affine)
    places = (points @ to_field[:3, :3].T + to_field[:3, 3]).T
    moved = points + np.stack(
        [map_coordinates(field[..., 0, k], places, order=1, mode="nearest") for k in range(3)], 1
    )
    there = moved @ affine[:3, :3].T + affine[:3, 3]
    to_atlas = np.linalg.inv(TO_LPS @ atlas.affine)
    on_atlas = (there @ to_atlas[:3, :3].T + to_atlas[:3, 3]).T
    carried = map_coordinates(np.asarray(atlas.array, np.uint8), on_atlas, order=0)
    same = carried == np.asarray(image.array).reshape(-1)
    assert same.mean() > 0.999  # but for rounding at edges of voxels
    assert (carried > 0).sum() > 500


def test_a_renewed_propagation_keeps_the_transforms(make_cohort: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    propagate(make_cohort(), out, QUICK)
    before = (out / "transforms" / "two" / "mean_field.nii.gz").read_bytes()
    changed = make_cohort(rows={"three": {"site": "another"}})
    said: list[str] = []
    propagate(changed, out, QUICK, say=said.append)
    assert said[0] == "reused from before: 3 alignments, 3 registrations"
    assert (out / "transforms" / "two" / "mean_field.nii.gz").read_bytes() == before
