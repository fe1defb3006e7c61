"""Distances of features to the training part, against scikit-learn; the flag and its reasons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from threefold.cohorts.meaning import objections
from threefold.core.outputs import Outputs
from threefold.errors import RunError
from threefold.images.facts import Facts
from threefold.images.geometry import Image
from threefold.images.writing import write_nifti
from threefold.inference.calibration import Calibration
from threefold.inference.out_of_distribution import (
    NEIGHBOURS,
    UNLIKE_FEATURES,
    TrainingFeatures,
    judge,
    read_features,
    shrunk_covariance,
    write_features,
)
from threefold.inference.predictor import Predictor

from .conftest import AFFINE, Threshold, make_slice, make_spec, make_trained_on

WIDTH = 12


def _features(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(WIDTH, WIDTH))
    return (rng.normal(size=(count, WIDTH)) @ mixing + 3 + shift).astype(np.float32)


@pytest.mark.parametrize("count", [6, 40, 500])
def test_the_covariance_is_shrunk_as_by_ledoit_and_wolf(count: int) -> None:
    features = _features(count, 1)
    np.testing.assert_allclose(shrunk_covariance(features), ledoit_wolf(features.astype(float))[0], rtol=1e-5)


def test_distances_are_those_of_scikit_learn() -> None:
    training, new = _features(60, 1), _features(7, 2)
    known = TrainingFeatures(training)
    centred = new - training.astype(float).mean(axis=0)
    precision = np.linalg.inv(ledoit_wolf(training.astype(float))[0])
    expected = [np.sqrt(x @ precision @ x) for x in centred]
    np.testing.assert_allclose(known.mahalanobis(new), expected, rtol=1e-4)
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (training, new)]
    expected = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(unit[0]).kneighbors(unit[1])[0][:, -1]
    np.testing.assert_allclose(known.nearest(new), expected, rtol=1e-3)


def test_about_one_in_twenty_of_the_same_kind_is_flagged_and_all_that_are_shifted() -> None:
    known = TrainingFeatures(_features(300, 1))
    thresholds = known.thresholds(_features(300, 2))
    assert thresholds is not None
    alike = [known.distances(one, thresholds).score > 1 for one in _features(400, 3)]
    assert 0.02 < np.mean(alike) < 0.09
    assert all(known.distances(one, thresholds).score > 1 for one in _features(40, 4, shift=25.0))


def test_the_flag_has_reasons_and_is_empty_where_nothing_could_be_compared() -> None:
    known = TrainingFeatures(_features(50, 1))
    thresholds = known.thresholds(_features(50, 2))
    far = judge(known, thresholds, _features(1, 3, shift=60.0)[0], ())
    assert far.flag
    assert far.reasons == (UNLIKE_FEATURES,)
    assert far.columns()["out_of_distribution"] == "yes"
    assert judge(known, thresholds, known.features[0], ()).flag is False
    assert judge(known, thresholds, known.features[0], ("a kernel",)).flag is True
    assert judge(None, None, None, ()).columns()["out_of_distribution"] == ""
    assert judge(None, None, None, ("a kernel",)).columns()["out_of_distribution_reasons"] == "a kernel"


def test_constant_features_and_few_cases_are_no_error() -> None:
    constant = TrainingFeatures(np.ones((8, 3), np.float32))
    thresholds = constant.thresholds(np.ones((6, 3), np.float32))
    assert thresholds is not None
    assert constant.distances(np.ones(3, np.float32), thresholds).score <= 1
    assert TrainingFeatures(_features(4, 1)).thresholds(_features(50, 2)) is None
    assert TrainingFeatures(_features(50, 1)).thresholds(_features(4, 2)) is None


def test_features_are_read_as_written_and_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    assert read_features(path) is None
    write_features(path, TrainingFeatures(_features(9, 1)))
    found = read_features(path)
    assert found is not None
    np.testing.assert_array_equal(found.features, _features(9, 1))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match="not what was written"):
        read_features(path)


class Pooled(nn.Module):
    """The mean of the image and of its square as features, and no opinion on anything else."""

    def forward(self, image: Tensor) -> Outputs:
        flat = image.flatten(1)
        features = torch.stack([flat.mean(1), flat.square().mean(1)], dim=1)
        self.features = features[:1].numpy()
        dense = torch.stack([1 - image[:, 0], image[:, 0]], dim=1)
        return Outputs(
            {"classification": features, "segmentation": dense, "reconstruction": image}, features=features
        )


def test_predict_flags_an_image_and_the_table_says_why(run: Path, images: Path, tmp_path: Path) -> None:
    network = Pooled()
    list(replace(Predictor.from_run(run), network=network).predict(images / "a.nii.gz"))
    noise = np.random.default_rng(1).normal(0, 0.01, (60, 2))
    training = TrainingFeatures((network.features + noise).astype(np.float32))
    thresholds = training.thresholds(training.features)
    predictor = replace(
        Predictor.from_run(run),
        network=network,
        training=training,
        calibration=Calibration(coverage=0.9, distances=thresholds),
    )
    bright = np.add.outer(np.arange(40), np.arange(30)).astype(np.int16) + 40
    write_nifti(tmp_path / "bright.nii", bright, AFFINE)
    alike, far = predictor.predict([images / "a.nii.gz", tmp_path / "bright.nii"], tmp_path / "out")
    assert alike.out_of_distribution is not None
    assert far.out_of_distribution is not None
    assert alike.out_of_distribution.flag is False
    assert far.out_of_distribution.flag is True
    table = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("case_id")
    assert table["out_of_distribution"].tolist() == ["no", "yes"]
    assert UNLIKE_FEATURES in table.loc["bright", "out_of_distribution_reasons"]
    assert table.loc["bright", "out_of_distribution_score"] > 1
    without = replace(predictor, network=Threshold())
    (one,) = without.predict(images / "a.nii.gz")
    assert one.out_of_distribution is not None
    assert one.out_of_distribution.flag is None


def test_a_kernel_and_a_field_strength_never_seen_are_reasons() -> None:
    spec = make_spec()
    seen = make_trained_on(spec, kernels={"H30s": 4}, field_strength=(1.494, 1.5))
    array = make_slice(1)
    for facts, said in (
        (Facts(format="dicom", unit="HU", modality="CT", kernel="H70h"), "convolution kernel"),
        (Facts(format="dicom", unit="HU", modality="CT", field_strength=3.0), "field strength"),
        (Facts(format="dicom", unit="HU", modality="CT", kernel="H30s", field_strength=1.5), ""),
    ):
        image = Image(array, AFFINE, Path("x"), facts=facts)
        found = [one for one in objections(image, spec, seen, vouched=False) if one.unlike_training]
        told = [one.summary for one in found if "spacing" not in one.summary and "size" not in one.summary]
        assert ([said in one for one in told] == [True]) if said else not told
