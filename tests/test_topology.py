"""Betti numbers, Euler numbers and contacts against persistent homology and brute force."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import gudhi
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from threefold.topology import betti_numbers, contact_counts

Labels = NDArray[np.uint8]


def homology(mask: NDArray[np.bool_]) -> list[int]:
    """Betti numbers of a mask's closed cubes, by persistent homology: voxels are top-dimensional cells."""
    if not mask.any():
        return [0, 0, 0]
    cubes = gudhi.CubicalComplex(top_dimensional_cells=np.where(mask, 0.0, 1.0))
    cubes.compute_persistence()
    betti: list[int] = [*cubes.persistent_betti_numbers(0.5, 0.5), 0, 0]
    return betti[:3]


@pytest.mark.parametrize("seed", range(40))
def test_random_volumes_equal_persistent_homology(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 10, 3)
    labels = rng.integers(1, 4, shape) * (rng.random(shape) < rng.uniform(0.1, 1))
    expected = [homology(labels == label) for label in (1, 2, 3)]
    assert betti_numbers(labels, 3).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_slices_equal_persistent_homology(seed: int) -> None:
    mask = np.random.default_rng(seed).random((12, 9)) < 0.6
    assert betti_numbers(mask, 1).tolist() == [homology(mask)]


def test_known_shapes() -> None:
    shell = np.zeros((9, 9, 9), np.uint8)
    shell[1:8, 1:8, 1:8] = 1
    shell[3:6, 3:6, 3:6] = 0
    ring = np.zeros((9, 9, 9), np.uint8)
    ring[2:7, 2:7, 4] = 1
    ring[4, 4, 4] = 0
    assert betti_numbers(shell, 1).tolist() == [[1, 0, 1]]
    assert betti_numbers(ring, 1).tolist() == [[1, 1, 0]]
    filled = shell.copy()
    filled[3:6, 3:6, 3:6] = 2  # another label does not fill the cavity of the first
    filled[4, 4, 4] = 1  # nor does an island of the first within it
    assert betti_numbers(filled, 2).tolist() == [[2, 0, 1], [1, 0, 1]]


def test_voxels_belong_together_across_a_corner_and_cavities_open_across_a_face_only() -> None:
    corner = np.zeros((4, 4, 4), np.uint8)
    corner[1, 1, 1] = corner[2, 2, 2] = 1
    assert betti_numbers(corner, 1).tolist() == [[1, 0, 0]]
    box = np.ones((3, 3, 3), np.uint8)
    box[1, 1, 1] = 0
    for hole, cavities in (((0, 0, 1), 1), ((0, 0, 0), 1), ((0, 1, 1), 0)):  # edge, corner, face
        opened = box.copy()
        opened[hole] = 0
        assert betti_numbers(opened, 1)[0, 2] == cavities


def test_a_label_that_fills_the_volume_and_absent_ones() -> None:
    assert betti_numbers(np.full((4, 5, 6), 2), 3).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert betti_numbers(np.zeros((3, 3, 3), bool), 1).tolist() == [[0, 0, 0]]
    assert contact_counts(np.zeros((3, 3, 3), bool), 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("count", [254, 255, 300])
def test_many_labels(count: int) -> None:
    labels = np.zeros((3, 3, count), np.int64)
    labels[:, :, :] = np.arange(1, count + 1)
    labels[1, 1, 1:-1] = 0
    betti = betti_numbers(labels, count)
    assert betti[[0, -1]].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert betti[1:-1].tolist() == [[1, 1, 0]] * (count - 2)


@pytest.mark.parametrize("shape", [(6, 7, 5), (8, 9)])
def test_contacts_are_pairs_of_neighbouring_voxels(shape: tuple[int, ...]) -> None:
    labels = np.random.default_rng(3).integers(0, 4, shape)
    expected = np.zeros((4, 4), int)
    for at in np.ndindex(shape):
        for offset in product((-1, 0, 1), repeat=len(shape)):
            other = tuple(a + o for a, o in zip(at, offset, strict=True))
            if all(0 <= o < n for o, n in zip(other, shape, strict=True)) and labels[at] != labels[other]:
                expected[labels[at], labels[other]] += 1
    assert contact_counts(labels, 3).tolist() == expected[1:, 1:].tolist()


def test_label_maps_are_checked() -> None:
    for labels, message in (
        (np.zeros((2, 2, 2)), "of integers, found float64"),
        (np.zeros((2, 2, 2, 2), int), r"found shape \(2, 2, 2, 2\)"),
        (np.array([[0, 4]]), "expected labels 0 to 3, found 0 to 4"),
        (np.array([[0, -1]]), "expected labels 0 to 3, found -1 to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            betti_numbers(labels, 3)


@pytest.mark.real("aortic_arch_ct")
def test_a_real_aortic_arch(shared_data: Path) -> None:
    folder = shared_data / "aortic_arch_ct"
    names = ("aorta", "subclavian_artery_left", "brachiocephalic_trunk", "common_carotid_artery_left")
    masks = [np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj) > 0 for name in names]  # type: ignore[attr-defined]
    assert betti_numbers(masks[0], 1).tolist() == [[1, 9, 5]]
    assert betti_numbers(masks[1], 1)[0, 0] == 2
    assert betti_numbers(np.any(masks, axis=0), 1).tolist() == [[2, 12, 5]]
