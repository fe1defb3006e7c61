"""Features stage by stage: those that the network itself pools, in the cases' order, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from threefold.cohorts.cohort import Cohort
from threefold.core.outputs import Head
from threefold.errors import NoFeaturesError, RunError
from threefold.experiment import (
    AttentionUnetSpec,
    CascadeSpec,
    DenseNetSpec,
    Experiment,
    JointSwinSpec,
    SwinUnetSpec,
)
from threefold.inference.cases import prepare_cases
from threefold.inference.features import stage_features
from threefold.inference.predictor import Predictor
from threefold.inference.sources import Asked
from threefold.networks.attention_unet import AttentionUnet
from threefold.networks.cascade import Cascade
from threefold.networks.densenet import DenseNet
from threefold.networks.joint import JointSwin
from threefold.networks.stages import Staged, pooled
from threefold.networks.swin_unet import SwinUnet

SWIN = {"embed_dim": 6, "depths": [1, 1], "heads": [1, 2], "window": 7}
UNET = AttentionUnetSpec(channels=(4, 8, 8))
DENSE = DenseNetSpec(blocks=(1, 2), growth=4, stem=4)
CLASSES, LABELS = {"classification": Head("pooled", 3)}, {"segmentation": Head("dense", 3)}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "swin-unet": (
        lambda: SwinUnet(
            SwinUnetSpec.model_validate({"encoder": SWIN}),
            in_channels=1,
            heads={**CLASSES, "segmentation": Head("dense", 2), "reconstruction": Head("restored", 1)},
        ),
        ("stage 1", "stage 2"),
    ),
    "joint-swin": (
        lambda: JointSwin(JointSwinSpec.model_validate({"encoder": SWIN}), in_channels=1, heads=CLASSES),
        ("stage 1", "stage 2"),
    ),
    "attention-unet": (
        lambda: AttentionUnet(UNET, in_channels=1, heads=LABELS, dimensions=2),
        ("level 1", "level 2", "level 3"),
    ),
    "densenet": (lambda: DenseNet(DENSE, in_channels=1, heads=CLASSES, dimensions=2), ("block 1", "block 2")),
    "cascade": (
        lambda: Cascade(
            CascadeSpec(segmenter=UNET, classifier=DENSE), in_channels=1, heads=CLASSES | LABELS, dimensions=2
        ),
        ("level 1", "level 2", "level 3", "block 1", "block 2"),
    ),
}


@pytest.fixture
def predictor(run: Path) -> Predictor:
    return Predictor.from_run(run)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_names_its_stages(
    kind: str, predictor: Predictor, make_cohort: Callable[..., Cohort]
) -> None:
    build, names = NETWORKS[kind]
    cohort = make_cohort()
    found = stage_features(replace(predictor, network=build().eval()), cohort.cases, cohort.spec)
    assert tuple(found.stages) == names
    assert all(len(values) == 6 and np.isfinite(values).all() for values in found.stages.values())
    if kind not in ("swin-unet", "joint-swin"):  # Swin normalises its last stage before it pools
        assert found.stages[names[-1]] == pytest.approx(found.pooled, abs=1e-6)


def test_features_are_the_networks_own_in_the_cases_order(
    predictor: Predictor, make_cohort: Callable[..., Cohort]
) -> None:
    cohort = make_cohort()
    told: list[tuple[int, int]] = []
    found = stage_features(
        predictor,
        cohort.cases,
        cohort.spec,
        batch_size=4,
        progress=lambda done, total: told.append((done, total)),
    )
    assert found.cases == tuple(case.case_id for case in cohort.cases)
    assert told == [(4, 6), (6, 6)]
    for at, one in enumerate(prepare_cases(cohort.cases, cohort.spec, predictor.asked)):
        image = torch.from_numpy(one.array)[None]
        with torch.no_grad():
            assert found.pooled[at] == pytest.approx(predictor.network(image).features[0].numpy(), abs=1e-5)
            encoder = predictor.network.encoder
            first = encoder.layers[0](encoder.patch_embed(image))
        assert found.stages["stage 1"][at] == pytest.approx(first[0].flatten(0, 1).mean(0).numpy(), abs=1e-5)


def test_features_of_a_larger_image_are_those_of_the_window_that_is_diagnosed(
    predictor: Predictor, make_cohort: Callable[..., Cohort]
) -> None:
    cohort = make_cohort()
    experiment = Experiment.model_validate(
        {
            **predictor.experiment.model_dump(),
            "data": {"preprocessing": {"size": [28, 28], "spacing": 0.5}},
        }
    )
    wide = replace(predictor, experiment=experiment)
    found = stage_features(wide, cohort.cases[:1], cohort.spec)
    (one,) = prepare_cases(cohort.cases[:1], cohort.spec, Asked(cohort.spec, experiment.data.preprocessing))
    assert one.window == (28, 28)
    assert one.array.shape[1:] > (28, 28)
    candidates = []
    with torch.no_grad():
        for row in range(one.array.shape[1] - 27):
            for column in range(one.array.shape[2] - 27):
                window = torch.from_numpy(one.array[None, :, row : row + 28, column : column + 28].copy())
                candidates.append(predictor.network(window).features[0].numpy())
    nearest = np.abs(np.stack(candidates) - found.pooled[0]).max(axis=1).min()
    assert nearest < 1e-5


def test_a_network_without_stages_and_features_that_are_not_finite_are_refused(
    predictor: Predictor, make_cohort: Callable[..., Cohort], known: nn.Module
) -> None:
    cohort = make_cohort()
    with pytest.raises(RunError, match="names no stages"):
        stage_features(replace(predictor, network=known), cohort.cases, cohort.spec)
    assert not isinstance(known, Staged)
    with pytest.raises(NoFeaturesError, match=r"gives no features.*network\.pool"):
        stage_features(replace(predictor, network=known), cohort.cases, cohort.spec, by_stage=False)
    network = NETWORKS["swin-unet"][0]().eval()
    with torch.no_grad():
        network.encoder.norm.bias[0] = float("nan")
    with pytest.raises(RunError, match=r"case case0: the network's features is not finite"):
        stage_features(replace(predictor, network=network), cohort.cases, cohort.spec)


def test_no_hook_stays(predictor: Predictor, make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort()
    stage_features(predictor, cohort.cases, cohort.spec)
    assert not any(module._forward_hooks for module in predictor.network.modules())


def test_pooling_a_plane_is_its_mean() -> None:
    values = torch.randn(2, 3, 4, 5)
    assert torch.allclose(pooled(values), values.mean(dim=(2, 3)))
