"""Affine alignment: volumes that are turned or mirrored in their files are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from threefold.atlases.affine import align, align_back
from threefold.atlases.signals import inverse_error
from threefold.atlases.volumes import Volume, prepare
from threefold.cohorts.cohort import CohortSpec
from threefold.images.geometry import Image

SPEC = CohortSpec(name="bodies", modality="mri", dimensions=3, structures=("core", "rod", "cap"))


@pytest.fixture(scope="module")
def volume(bodies: SimpleNamespace) -> Volume:
    body = bodies.atlas
    image = Image(body.image(), body.affine, Path("body"))
    return prepare(image, (20, 20, 20), None, SPEC)


def turned(volume: Volume, flips: tuple[int, ...]) -> Volume:
    """The volume with axes reversed under an unchanged header: two are half a turn, one is a mirror image."""
    return replace(volume, values=torch.flip(volume.values, [2 + axis for axis in flips]))


def test_a_volume_upside_down_in_its_file_is_found(volume: Volume) -> None:
    other = turned(volume, (1, 2))
    plain = align(other, volume, 15, restarts=False)
    assert plain.start == "file"
    found = align(other, volume, 15)
    assert found.start == "turned"
    assert found.correlation > 0.9
    np.testing.assert_allclose(found.matrix[:3, :3], np.diag([1, -1, -1]), atol=0.05)
    assert np.array_equal(found.matrix, align(other, volume, 15).matrix)
    assert inverse_error(found.matrix, align_back(other, volume, found, 15), other) < 0.05
    assert inverse_error(plain.matrix, found.matrix, other) > 0.5


def test_a_mirrored_volume_is_found_and_named(volume: Volume) -> None:
    found = align(turned(volume, (0,)), volume, 15)
    assert found.start == "mirrored"
    assert found.correlation > 0.9
    assert np.linalg.det(found.matrix[:3, :3]) < 0


def test_a_good_alignment_is_not_started_again(volume: Volume) -> None:
    found = align(volume, volume, 5)
    assert found.start == "file"
    assert np.array_equal(found.matrix, align(volume, volume, 5, restarts=False).matrix)
