from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from threefold.images.geometry import Image, closest_axes, describe_difference, slice_affine, spacing_of

SHAPE = (100, 90, 30)
AFFINE = np.array([[-0.5, 0, 0, 40.0], [0, 0.5, 0, -20], [0, 0, 5, 0], [0, 0, 0, 1]])


def turned(degrees: float) -> np.ndarray:
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


def test_the_same_grid_has_no_difference() -> None:
    assert describe_difference(SHAPE, AFFINE, SHAPE, AFFINE) is None
    rounded = AFFINE.astype(np.float32).astype(np.float64)
    assert describe_difference(SHAPE, AFFINE, SHAPE, rounded + 1e-5) is None


def test_a_tenth_of_a_voxel_at_a_corner_is_the_limit() -> None:
    for mm, differs in ((0.049, False), (0.051, True)):
        moved = AFFINE.copy()
        moved[2, 3] += mm
        assert (describe_difference(SHAPE, AFFINE, SHAPE, moved) is not None) == differs
    # a small rotation that leaves the first voxel alone still moves the far corner
    assert describe_difference(SHAPE, AFFINE, SHAPE, turned(0.2)) is not None


def test_each_kind_of_difference_is_said() -> None:
    assert (
        describe_difference(SHAPE, AFFINE, (100, 90, 29), AFFINE)
        == "shape 100 x 90 x 29 instead of 100 x 90 x 30"
    )
    moved = AFFINE.copy()
    moved[:3, 3] += (3, 0, -4)
    said = describe_difference(SHAPE, AFFINE, SHAPE, moved)
    assert said == "origin shifted by 3 x 0 x -4 mm (R, A, S); corners up to 5 mm apart"
    said = describe_difference(SHAPE, AFFINE, SHAPE, turned(10))
    assert said is not None
    assert "axes turned by 10.00, 10.00, 0.00 degrees" in said
    said = describe_difference(SHAPE, AFFINE, SHAPE, AFFINE @ np.diag([1, 1, 0.5, 1]))
    assert said is not None
    assert said.startswith("spacing 0.5 x 0.5 x 2.5 mm instead of 0.5 x 0.5 x 5 mm")
    flipped = AFFINE @ np.diag([-1, 1, 1, 1])
    said = describe_difference(SHAPE, AFFINE, SHAPE, flipped)
    assert said is not None
    assert "turned by 180.00, 0.00, 0.00" in said


def test_the_thickness_of_a_slice_is_not_compared() -> None:
    thin = AFFINE @ np.diag([1, 1, 0.1, 1])
    assert describe_difference(SHAPE[:2], AFFINE, SHAPE[:2], thin) is None
    assert describe_difference(SHAPE, AFFINE, SHAPE, thin) is not None
    other = slice_affine(AFFINE, 1)
    said = describe_difference(SHAPE[:2], AFFINE, SHAPE[:2], other)
    assert said == "origin shifted by 0 x 0 x 5 mm (R, A, S); corners up to 5 mm apart"


def test_spacing() -> None:
    image = Image(np.zeros((4, 5)), turned(30), Path("a"))
    assert image.spacing == pytest.approx((0.5, 0.5))
    assert spacing_of(AFFINE, 3) == (0.5, 0.5, 5)


@pytest.mark.parametrize("degrees", [0, 20, 44, -44])
def test_oblique_axes_go_to_the_closest(degrees: float) -> None:
    assert closest_axes(turned(degrees), 3) == ((0, 1, 2), (-1, 1, 1))
    assert closest_axes(turned(degrees)[:, [2, 0, 1, 3]], 3) == ((2, 0, 1), (1, -1, 1))


def test_two_axes_never_go_to_one() -> None:
    # both in-plane axes are closest to R-L by themselves
    affine = np.eye(4)
    affine[:3, 0] = (0.8, 0.6, 0)
    affine[:3, 1] = (0.75, -0.6, 0.2)
    axes, signs = closest_axes(affine, 2)
    assert sorted(axes) == [0, 1]
    assert signs == tuple(int(np.sign(affine[axis, grid])) for grid, axis in enumerate(axes))
