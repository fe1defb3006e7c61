"""Surface distances and clDice against brute force, MONAI and whole-volume skeletons."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist
from skimage.morphology import skeletonize

from threefold.evaluation.centrelines import cl_dice, skeletons
from threefold.evaluation.surfaces import surface_distances, voxel_counts

Labels = NDArray[np.uint8]


def pair(seed: int, shape: Sequence[int], labels: int = 3) -> tuple[Labels, Labels]:
    """Smooth regions, and the same with ragged borders, a shift and islands."""
    rng = np.random.default_rng(seed)
    fields = np.stack([gaussian_filter(rng.standard_normal(shape), 2) for _ in range(labels)])
    truth = ((fields.argmax(0) + 1) * (fields.max(0) > 0.05)).astype(np.uint8)
    predicted = np.roll(truth, rng.integers(-2, 3), axis=0)
    noise = rng.random(shape)
    predicted[noise < 0.05] = 0
    predicted[noise > 0.995] = rng.integers(1, labels + 1)
    return truth, predicted


def brute_force(
    truth: NDArray[np.bool_], predicted: NDArray[np.bool_], mm: Sequence[float]
) -> tuple[float, float]:
    surfaces = [np.argwhere(mask & ~binary_erosion(mask)) * mm for mask in (truth, predicted)]
    between = cdist(*surfaces)
    to_predicted, to_truth = between.min(axis=1), between.min(axis=0)
    asd = np.concatenate([to_predicted, to_truth]).mean()
    return float(asd), float(max(np.percentile(to_predicted, 95), np.percentile(to_truth, 95)))


@pytest.mark.parametrize("mm", [(1, 1, 1), (0.7, 0.8, 1.1), (5.0, 0.5, 0.5)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_brute_force(seed: int, mm: tuple[float, float, float]) -> None:
    truth, predicted = pair(seed, (14, 13, 12))
    for label, found in enumerate(surface_distances(truth, predicted, 3, mm), start=1):
        assert found is not None
        expected = brute_force(truth == label, predicted == label, mm)
        assert (found.average(), found.hausdorff()) == pytest.approx(expected, rel=1e-12)


def test_distances_of_a_slice_equal_brute_force() -> None:
    truth, predicted = pair(5, (30, 26))
    for label, found in enumerate(surface_distances(truth, predicted, 3, (0.5, 2)), start=1):
        assert found is not None
        expected = brute_force(truth == label, predicted == label, (0.5, 2))
        assert (found.average(), found.hausdorff()) == pytest.approx(expected, rel=1e-12)


def test_far_islands_and_disjoint_structures() -> None:
    truth, predicted = np.zeros((2, 40, 30, 20), np.uint8)
    truth[2:8, 2:8, 2:8] = 1
    predicted[30:36, 20:26, 10:16] = 1
    predicted[3:5, 3:5, 3:5] = 1
    (found,) = surface_distances(truth, predicted, 1, (1, 2, 3))
    assert found is not None
    expected = brute_force(truth > 0, predicted > 0, (1, 2, 3))
    assert (found.average(), found.hausdorff()) == pytest.approx(expected, rel=1e-12)
    assert found.hausdorff(100) == max(found.to_truth.max(), found.to_predicted.max())


def test_metrics_equal_monai() -> None:
    from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDistanceMetric

    mm = (0.75, 0.8, 1.0)
    truth, predicted = pair(1, (32, 30, 28), labels=5)
    one_hot = [
        torch.stack([torch.from_numpy(m == label) for label in range(6)])[None] for m in (predicted, truth)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dice = DiceMetric(include_background=False)(*one_hot)[0].numpy()
        asd = SurfaceDistanceMetric(symmetric=True)(*one_hot, spacing=mm)[0].numpy()
        hd95 = HausdorffDistanceMetric(percentile=95)(*one_hot, spacing=mm)[0].numpy()
    in_truth, in_predicted, in_both = voxel_counts(truth, predicted, 5)
    found = surface_distances(truth, predicted, 5, mm)
    np.testing.assert_allclose(2 * in_both / (in_truth + in_predicted), dice, rtol=1e-6)
    np.testing.assert_allclose([f.average() for f in found if f], asd, rtol=1e-6)
    np.testing.assert_allclose([f.hausdorff() for f in found if f], hd95, rtol=1e-6)


def test_equal_masks_are_at_no_distance_and_absent_ones_have_none() -> None:
    truth, _ = pair(2, (12, 12, 12))
    predicted = np.where(truth == 2, 0, truth)
    first, second, third, fourth = surface_distances(truth, predicted, 4, (1, 1, 1))
    assert first is not None
    assert third is not None
    assert (first.average(), first.hausdorff(), third.average()) == (0, 0, 0)
    assert second is None
    assert fourth is None


def test_voxels_at_the_image_border_are_surface() -> None:
    truth = np.ones((5, 5, 5), np.uint8)
    predicted = np.zeros_like(truth)
    predicted[2, 2, 2] = 1
    (found,) = surface_distances(truth, predicted, 1, (1, 1, 1))
    assert found is not None
    assert len(found.to_predicted) == 125 - 27
    assert found.to_truth.tolist() == [2]


def test_voxel_counts() -> None:
    truth, predicted = pair(4, (9, 8, 7))
    expected = [
        [int((truth == c).sum()), int((predicted == c).sum()), int(((truth == c) & (predicted == c)).sum())]
        for c in (1, 2, 3)
    ]
    assert np.stack(voxel_counts(truth, predicted, 3), axis=1).tolist() == expected


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, 1, -2), (1, 1, np.nan), (1, 1, np.inf)])
def test_spacing_is_checked(spacing: tuple[float, ...]) -> None:
    labels = np.ones((3, 3, 3), np.uint8)
    with pytest.raises(ValueError, match="expected a positive spacing for each of 3 axes"):
        surface_distances(labels, labels, 1, spacing)


def test_shapes_are_checked() -> None:
    labels = np.ones((3, 3, 3), np.uint8)
    for measure in (voxel_counts, cl_dice):
        with pytest.raises(ValueError, match=r"one shape, found \(3, 3, 3\) and \(3, 3\)"):
            measure(labels, labels[0], 1)  # type: ignore[operator]


def test_skeletons_are_those_of_each_structure_in_the_whole_volume() -> None:
    truth, _ = pair(6, (26, 24, 22))
    truth[0, 0, 0], truth[-1, -1, -3:-1] = 1, 2
    for label in (1, 2, 3):
        np.testing.assert_array_equal(skeletons(truth) == label, skeletonize(truth == label))  # type: ignore[no-untyped-call]


def test_cl_dice_is_the_harmonic_mean_of_both_shares() -> None:
    truth, predicted = pair(7, (24, 22, 20))
    for label, value in enumerate(cl_dice(truth, predicted, 3), start=1):
        t, p = truth == label, predicted == label
        line_t, line_p = skeletonize(t), skeletonize(p)  # type: ignore[no-untyped-call]
        precision, sensitivity = (line_p & t).sum() / line_p.sum(), (line_t & p).sum() / line_t.sum()
        assert value == pytest.approx(2 * precision * sensitivity / (precision + sensitivity))


def test_cl_dice_sees_a_broken_vessel_less_than_dice_and_a_missed_one_as_zero() -> None:
    truth = np.zeros((30, 9, 9), np.uint8)
    truth[2:28, 3:6, 3:6] = 1
    truth[2:28, 0, 0] = 2
    thin = np.zeros_like(truth)
    thin[2:28, 4, 4] = 1
    assert cl_dice(truth, thin, 3) == [1.0, 0.0, None]
