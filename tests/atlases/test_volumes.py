"""Grids in mm: what is prepared, aligned and carried over lies where it should."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from threefold.atlases import volumes
from threefold.atlases.affine import align
from threefold.atlases.volumes import carry_labels, prepare, prepare_map, resample
from threefold.cohorts.cohort import CohortSpec, IntensitySpec
from threefold.images.geometry import Image

SPEC = CohortSpec(name="x", modality="mri", dimensions=3, structures=("core", "rod", "cap"))
SIZE = (32, 32, 32)


def image_of(body: Any) -> Image:
    return Image(body.image(), body.affine, Path("body"))


@pytest.mark.parametrize("name", ["one", "two", "three"])
@pytest.mark.parametrize(("size", "spacing"), [((32, 32, 32), None), ((17, 20, 18), None), (SIZE, 2.0)])
def test_prepared_voxels_know_their_place(
    name: str, size: tuple[int, int, int], spacing: float | None, bodies: SimpleNamespace
) -> None:
    body = bodies.of[name]
    direction = np.array([0.3, -0.5, 0.8])
    ramp = body.points() @ direction  # what a voxel holds is where it lies
    low, high = float(ramp.min()), float(ramp.max())
    spec = SPEC.model_copy(update={"intensity": IntensitySpec(window=(low, high))})
    volume = prepare(Image(ramp.astype(np.float32), body.affine, Path("x")), size, spacing, spec)
    index = np.stack(np.meshgrid(*map(np.arange, volume.size), indexing="ij"), -1)
    points = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    inner = (slice(1, -1),) * 3
    found = volume.values[0, 0].numpy() * (high - low) + low
    np.testing.assert_allclose(found[inner], (points @ direction)[inner], atol=0.2)  # mm
    # along RAS+ as closely as the file's axes allow
    assert (np.diag(volume.affine)[:3] > 0).all()
    steps = np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(steps, spacing or steps.max(), rtol=0.1)
    assert all(n <= most for n, most in zip(volume.size, size, strict=True)) or spacing is not None


def test_a_background_is_cropped_away_and_label_maps_follow(bodies: SimpleNamespace) -> None:
    body = bodies.Body(size=(40, 44, 36), flip=True)
    labels = body.labels()
    array = np.where(labels > 0, body.image(), 0)
    image = Image(array.astype(np.float32), body.affine, Path("x"))
    volume = prepare(image, (64, 64, 64), None, SPEC)
    assert volume.size < (40, 44, 36)
    carried = prepare_map(Image(labels, body.affine, Path("y")), volume)
    assert carried.shape == volume.size
    assert (carried > 0).sum() == (labels > 0).sum()
    assert ((volume.values[0, 0].numpy() > 0) <= (carried > 0)).all()


def test_an_image_without_background_is_kept_whole(bodies: SimpleNamespace) -> None:
    volume = prepare(image_of(bodies.atlas), (64, 64, 64), None, SPEC)
    assert volume.size == bodies.atlas.size


def test_resampling_through_mm_equals_scipy(bodies: SimpleNamespace) -> None:
    one, two = bodies.of["one"], bodies.of["two"]
    values = torch.from_numpy(one.image())[None, None].double()
    found = resample(values, one.affine, two.size, two.affine)
    places = np.linalg.inv(one.affine) @ two.affine
    index = np.stack(np.meshgrid(*map(np.arange, two.size), indexing="ij"))
    points = np.einsum("xc,cijk->xijk", places[:3, :3], index) + places[:3, 3, None, None, None]
    expected = map_coordinates(one.image().astype(float), points, order=1, mode="grid-constant")
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)


def test_labels_on_the_atlas_s_own_grid_come_back_as_they_are(bodies: SimpleNamespace) -> None:
    labels = bodies.atlas.labels()
    still = torch.zeros(1, 3, 8, 8, 8)
    grid = bodies.atlas.affine @ np.diag([3.5, 3.5, 3.5, 1])
    carried = carry_labels(
        labels, bodies.atlas.affine, still, grid, np.eye(4), labels.shape, bodies.atlas.affine
    )
    assert np.array_equal(carried, labels)


@pytest.mark.parametrize("slab", [2**22, 2000])
def test_labels_are_carried_through_field_alignment_and_both_grids_in_one_step(
    slab: int, bodies: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "_SLAB", slab)
    labels, target = bodies.atlas.labels(), bodies.of["two"]
    alignment = np.eye(4)
    alignment[:3, :3] = [[0.9, 0.1, 0], [-0.1, 1.1, 0.05], [0, 0, 1]]
    alignment[:3, 3] = (18, -4, 1)
    grid = prepare(image_of(target), (16, 16, 16), None, SPEC)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 3, 3, 3, generator=generator) * 3 - 1.5
    field = torch.nn.functional.interpolate(coarse, size=grid.size, mode="trilinear", align_corners=True)
    carried = carry_labels(
        labels, bodies.atlas.affine, field, grid.affine, alignment, target.size, target.affine
    )
    # the same by hand, point by point: image voxel -> grid voxel -> moved -> mm -> atlas mm -> atlas voxel
    index = np.stack(np.meshgrid(*map(np.arange, target.size), indexing="ij")).reshape(3, -1)

    def through(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
        return matrix[:3, :3] @ points + matrix[:3, 3:]

    on_grid = through(np.linalg.inv(grid.affine) @ target.affine, index)
    moves = [map_coordinates(one.numpy(), on_grid, order=1, mode="nearest") for one in field[0].double()]
    in_atlas = through(
        np.linalg.inv(bodies.atlas.affine) @ alignment @ grid.affine, on_grid + np.array(moves)
    )
    expected = map_coordinates(labels, in_atlas, order=0, mode="grid-constant").reshape(target.size)
    assert carried.any()
    assert (carried != expected).mean() < 1e-3  # where a place lies between two voxels, rounding decides


@pytest.mark.parametrize("name", ["one", "two"])
def test_affine_alignment_finds_the_way(name: str, bodies: SimpleNamespace) -> None:
    bent = bodies.of[name]
    body = bodies.Body(bent.turn, bent.scale, bent.shift, 0.0, bent.flip, bent.tilt, bent.size)
    fixed, moving = (prepare(image_of(one), SIZE, None, SPEC) for one in (body, bodies.atlas))
    points = np.array([[x, y, z] for x in (-8, 8) for y in (-9, 9) for z in (-7, 7)]) + body.shift

    def miss(matrix: np.ndarray) -> float:
        moved = points @ matrix[:3, :3].T + matrix[:3, 3]
        return float(np.linalg.norm(moved - body.to_atlas(points), axis=1).max())

    start, end = (align(fixed, moving, steps).matrix for steps in (0, 60))
    assert miss(end) < 0.5  # mm, voxels being 1.2 mm
    assert miss(end) < 0.5 * miss(start)


def test_alignment_of_an_empty_image_is_still_a_matrix(bodies: SimpleNamespace) -> None:
    flat = Image(np.full(bodies.atlas.size, 7, np.float32), bodies.atlas.affine, Path("flat"))
    fixed, moving = prepare(flat, SIZE, None, SPEC), prepare(image_of(bodies.atlas), SIZE, None, SPEC)
    assert np.isfinite(align(fixed, moving, 5).matrix).all()
