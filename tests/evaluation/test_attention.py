"""Attention against a lesion: numbers that can be counted by hand, and the baselines."""

from __future__ import annotations

import numpy as np
import pytest

from threefold.evaluation.evidence import attention_columns, centred_blob, localise, localise_random


def test_numbers_counted_by_hand() -> None:
    attention = np.zeros((4, 5))
    attention[0, 0], attention[1, 1], attention[3, 4] = 5, 3, 2
    lesion = np.zeros((4, 5), bool)
    lesion[0, :2] = lesion[1, :2] = True
    found = localise(attention, lesion, quantile=0.9)
    assert found.share_inside == pytest.approx(0.8)
    assert found.attention_iou == pytest.approx(2 / 4)  # 0.9 of 20 values leaves the highest two
    assert found.pointing == 1
    assert localise(attention * 7, lesion) == localise(attention, lesion)


def test_equal_maxima_count_by_their_share() -> None:
    lesion = np.zeros((4, 4), bool)
    lesion[0] = True
    assert localise(np.ones((4, 4)), lesion).pointing == pytest.approx(0.25)


def test_zeros_are_never_part_of_the_region() -> None:
    attention, lesion = np.zeros((10, 10)), np.zeros((10, 10), bool)
    attention[0, 0], lesion[0, :2] = 1, True  # the quantile of such a map is 0
    assert localise(attention, lesion, quantile=0.5).attention_iou == pytest.approx(0.5)


@pytest.mark.parametrize("empty", ["map", "lesion"])
def test_nothing_to_measure_is_no_number(empty: str) -> None:
    attention = np.ones((4, 4)) * (empty != "map")
    lesion = np.full((4, 4), empty != "lesion")
    assert np.isnan(localise(attention, lesion).share_inside)


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match="one grid"):
        localise(np.ones((4, 4)), np.ones((5, 4), bool))
    with pytest.raises(ValueError, match="not negative"):
        localise(-np.ones((4, 4)), np.ones((4, 4), bool))


@pytest.mark.parametrize("shape", [(64, 48), (16, 24, 20)])
def test_random_maps_have_the_lesions_share_of_the_image(shape: tuple[int, ...]) -> None:
    lesion = np.zeros(shape, bool)
    lesion[tuple(slice(side // 4, side // 2) for side in shape)] = True
    found = localise_random([side // 4 for side in shape], lesion, seed=0, draws=200)
    assert found.share_inside == pytest.approx(lesion.mean(), rel=0.05)
    assert found.pointing == pytest.approx(lesion.mean(), abs=0.05)
    assert found == localise_random([side // 4 for side in shape], lesion, seed=0, draws=200)


def test_the_blob_is_in_the_middle() -> None:
    blob = centred_blob((30, 41))
    np.testing.assert_allclose(blob, blob[::-1, ::-1])
    assert blob[:, 20].argmax() in (14, 15)
    middle, corner = np.zeros((2, 30, 41), bool)
    middle[12:18, 17:24] = corner[:6, :7] = True
    assert localise(blob, middle).share_inside > 10 * localise(blob, corner).share_inside


def test_columns_of_a_case() -> None:
    lesion = np.zeros((16, 16), bool)
    lesion[4:8, 4:8] = True
    columns = attention_columns(lesion.astype(float), (4, 4), lesion, seed=1)
    assert columns["share_inside"] == columns["pointing"] == columns["attention_iou"] * 1 == 1
    assert {*columns} == {
        f"{name}{end}"
        for name in ("share_inside", "attention_iou", "pointing")
        for end in ("", "_random", "_centred")
    } | {"zero_map"}
    assert columns["zero_map"] == 0


def test_a_zero_map_takes_its_baselines_with_it() -> None:
    """Else the baselines' means would be of other cases than the network's."""
    lesion = np.zeros((16, 16), bool)
    zero = np.zeros((16, 16))
    assert np.isnan(attention_columns(zero, (4, 4), lesion, seed=1)["zero_map"])
    lesion[4:8, 4:8] = True
    columns = attention_columns(zero, (4, 4), lesion, seed=1)
    assert columns.pop("zero_map") == 1
    assert np.isnan([*columns.values()]).all()
