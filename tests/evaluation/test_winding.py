"""Winding around a line against flooding the background, and on loops drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label

from threefold.evaluation.winding import Line, holes_along_body, mask_line, widened, winds_around

MM = np.array([0.5, 1.5, 2.0])
UP = np.array([0.0, 0.0, 1.0])


def upright(place: tuple[float, float]) -> Line:
    return Line(np.array([0.0, 100.0]), np.array([place, place], dtype=float))


@pytest.mark.parametrize("seed", range(12))
def test_a_slab_winds_around_the_pixels_that_a_flood_does_not_reach(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slab = np.pad(rng.random((8, 9)) < 0.55, 1)
    pools, _ = label(~slab)  # 4-connected: what 8-connected loops hold back
    mask = np.pad(slab[:, :, None], ((0, 0), (0, 0), (1, 1)))
    for pixel in np.argwhere(~slab):
        around = winds_around(mask, MM, upright(tuple(pixel * MM[:2])))
        assert around == (pools[tuple(pixel)] != pools[0, 0])


def spiral(turns: float, rise: float) -> np.ndarray:
    """A ramp around the middle of the volume, which rises by some slices a turn."""
    mask = np.zeros((24, 24, 24), bool)
    for angle in np.linspace(0, 2 * np.pi * turns, int(400 * turns)):
        at = (12 + 8 * np.cos(angle), 12 + 8 * np.sin(angle), 3 + rise * angle / 2 / np.pi)
        mask[tuple(np.round(at).astype(int))] = True
    return mask


def test_a_ramp_is_no_loop_until_its_ends_meet() -> None:
    line = upright((12, 12))
    ones = np.ones(3)
    ramp = spiral(2, 6)
    assert not winds_around(ramp, ones, line)
    ramp[20, 12, 3:16] = True  # a shaft that joins the turns
    assert winds_around(ramp, ones, line)
    assert not winds_around(ramp, ones, upright((2, 2)))


def test_a_tunnel_beside_the_line_does_not_matter() -> None:
    ramp = spiral(0.7, 0)
    ramp[18:23, 10:15, 3] = True
    ramp[20, 12, 3] = False
    assert not winds_around(ramp, np.ones(3), upright((12, 12)))
    assert winds_around(ramp, np.ones(3), upright((20, 12)))


def test_holes_are_found_along_the_body_and_aslant() -> None:
    ring = spiral(1, 0)
    places = [line.at(3.0) for line in holes_along_body(ring, np.ones(3), UP)]
    assert places
    assert np.abs(np.array(places) - 12).max() <= 1
    upended = np.zeros((24, 24, 24), bool)
    for across in range(9, 13):  # as thick as a vessel: its hole can't be seen along the body
        upended |= np.roll(np.moveaxis(ring, 2, 0), across - 3, 0)
    assert not list(holes_along_body(upended, np.ones(3), UP))
    leaning = np.array([1.0, 0, 1]) / np.sqrt(2)
    assert list(holes_along_body(upended, np.ones(3), leaning))
    small = np.zeros((7, 7, 7), bool)
    small[2:5, 2:5, 3] = True
    small[3, 3, 3] = False
    assert not list(holes_along_body(small, np.ones(3), UP))  # narrower than any trachea


def test_a_line_follows_the_centres_of_a_mask() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[2:5, 3, 2], mask[4, 5:8, 6] = True, True
    line = mask_line(mask, MM)
    np.testing.assert_allclose(line.at(4.0), [1.5, 4.5])
    np.testing.assert_allclose(line.at(8.0), [1.75, 6.75])
    np.testing.assert_allclose(line.at([0.0, 99.0]), [[1.5, 4.5], [2, 9]])
    np.testing.assert_allclose(line.moved(np.array([1.0, 2, 4])).at(8.0), [2.5, 6.5])
    assert not line.is_clear_of(mask, MM)


def test_widening_bridges_gaps_in_millimetres() -> None:
    mask = np.zeros((12, 5, 5), bool)
    mask[2:4, 2, 2] = mask[8:10, 2, 2] = True  # centres of the ends 2.5 mm apart
    grown, origin = widened(mask, MM, 1.0)
    assert label(grown)[1] == 1
    assert label(widened(mask, MM, 0.5)[0])[1] == 2
    at = np.argwhere(grown) * MM + origin
    np.testing.assert_allclose(at.min(axis=0), [0, 3, 4])
    same, origin = widened(mask, MM, 0)
    np.testing.assert_allclose(np.argwhere(same) * MM + origin, np.argwhere(mask) * MM)
