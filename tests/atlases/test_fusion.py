"""Fusion: the atlas that fits better here decides here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from threefold.atlases.fusion import agreement, vote, weight

SIDE = 8


def test_in_each_place_the_atlases_that_fit_better_decide() -> None:
    first, second = np.full((SIDE,) * 3, 1, np.uint8), np.full((SIDE,) * 3, 2, np.uint8)
    left = torch.zeros(1, 1, SIDE, SIDE, SIDE)
    left[:, :, : SIDE // 2] = 1.0
    fused = vote([first, second], [left, 1 - left], np.eye(4), np.eye(4))
    assert (fused[: SIDE // 2] == 1).all()
    assert (fused[SIDE // 2 :] == 2).all()
    even = torch.ones(1, 1, SIDE, SIDE, SIDE)
    assert (vote([second, first], [even, even], np.eye(4), np.eye(4)) == 2).all()  # the first of equal ones
    third = np.full((SIDE,) * 3, 1, np.uint8)
    assert (vote([second, first, third], [even, even, even], np.eye(4), np.eye(4)) == 1).all()


def test_weights_lie_where_the_images_correlate() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 12, 12, 12, generator=generator)
    other = image.clone()
    other[:, :, 6:] = torch.rand(1, 1, 6, 12, 12, generator=generator)
    found = weight(other, image)
    assert found[:, :, :2].min() > 0.9
    assert found[:, :, 10:].max() < 0.1
    assert found.min() > 0


def test_agreement_is_the_mean_dice_of_pairs() -> None:
    a = np.array([[[1, 1, 2, 2]]], np.uint8)
    b = np.array([[[1, 1, 2, 0]]], np.uint8)
    assert agreement([a, a], ("x", "y")) == 1.0
    assert agreement([a, b], ("x", "y")) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(agreement([a], ("x", "y")))
