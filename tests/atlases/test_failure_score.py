"""The score of failure: what it is made of, and that a wrong registration scores higher than a right one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from threefold.atlases.failure_score import FailureTable, SignalWeight, failure_table
from threefold.atlases.signals import SIGNALS, outside, signals, stretch
from threefold.atlases.volumes import Volume, prepare, prepare_map
from threefold.cohorts.cohort import CohortSpec
from threefold.images.geometry import Image

SPEC = CohortSpec(name="bodies", modality="mri", dimensions=3, structures=("core", "rod", "cap"))


def test_a_score_is_a_logistic_regression_of_known_signals() -> None:
    table = FailureTable(0.5, {"a": SignalWeight(low=0, high=1, centre=0.5, weight=-4)})
    assert table.score({"a": 0.75}) == pytest.approx(1 / (1 + math.exp(0.5)))
    assert table.score({"a": 7.0}) == table.score({"a": 1.0})  # what no calibration case had
    assert table.score({"a": math.nan}) == table.score({}) == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_the_packages_table_names_signals_that_there_are() -> None:
    table = failure_table()
    assert table.signals.keys() <= SIGNALS.keys()
    assert all(one.low < one.high and one.weight for one in table.signals.values())


@pytest.fixture(scope="module")
def body(bodies: SimpleNamespace) -> tuple[Volume, torch.Tensor]:
    """The atlas as prepared, and its labels on that grid."""
    one = bodies.atlas
    volume = prepare(Image(one.image(), one.affine, "body"), (24, 24, 24), None, SPEC)  # type: ignore[arg-type]
    labels = prepare_map(Image(one.labels(), one.affine, "body"), volume)  # type: ignore[arg-type]
    return volume, torch.from_numpy(labels.astype(np.float32))[None, None]


def test_a_wrong_registration_scores_higher_than_a_right_one(body: tuple[Volume, torch.Tensor]) -> None:
    volume, labels = body
    field = torch.zeros(1, 3, *volume.size)
    right = signals(volume, volume.values, labels, field, volume, labels)
    assert right["overall_correlation"] == pytest.approx(1, abs=1e-5)
    assert right["profile"] == pytest.approx(1)
    assert right["explained"] == pytest.approx(1)
    assert right["volume_change"] == right["jacobian_sd"] == 0
    axes = (3, 4)
    wrong = signals(volume, volume.values.flip(axes), labels.flip(axes), field, volume, labels)
    for name in ("tissue_correlation", "structure_correlation", "overall_correlation", "explained"):
        assert wrong[name] < right[name] - 0.1
    score = failure_table().score
    assert score(wrong) > score(right)


def test_without_labels_in_the_image_signals_are_not_defined(body: tuple[Volume, torch.Tensor]) -> None:
    volume, labels = body
    found = signals(volume, volume.values, 0 * labels, torch.zeros(1, 3, *volume.size), volume, labels)
    assert all(math.isnan(value) for value in found.values())
    assert failure_table().score(found) == 1


def test_stretch_and_what_lies_outside(body: tuple[Volume, torch.Tensor]) -> None:
    volume, labels = body
    assert stretch(np.diag([2.0, 1, 1, 1])) == pytest.approx(math.log(2))
    assert outside(np.eye(4), volume, volume, labels) == 0
    away = np.eye(4)
    away[0, 3] = 500
    assert outside(away, volume, volume, labels) == 1
