"""Grad-CAM: it moves with the evidence, on every network that classifies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from threefold.cohorts.cohort import CohortSpec
from threefold.errors import RunError
from threefold.experiment import Experiment
from threefold.inference.attention import Attention, class_probabilities, grad_cam
from threefold.networks.build import build_network
from threefold.networks.cam import CamLayer
from threefold.networks.outputs import Outputs

SWIN = {"embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 7}
UNET = {"kind": "attention-unet", "channels": [4, 8, 8], "dropout": 0.0}
DENSENET = {"kind": "densenet", "blocks": [2, 2], "growth": 4, "stem": 8, "dropout": 0.0}
CLASSIFY: dict[str, object] = {"classification": {}}
SEGMENT = {**CLASSIFY, "segmentation": {}}
STRUCTURES = {**CLASSIFY, "segmentation": {"target": "structures"}}


def _cascade(classifier_input: str) -> dict[str, object]:
    parts = {"segmenter": {**UNET, "kind": None}, "classifier": {**DENSENET, "kind": None}}
    plain = {name: {k: v for k, v in part.items() if k != "kind"} for name, part in parts.items()}
    return {"kind": "cascade", **plain, "classifier_input": classifier_input}


NETWORKS = {
    "swin": ({"kind": "swin-unet", "encoder": SWIN}, (64, 48), SEGMENT),
    "joint": ({"kind": "joint-swin", "encoder": SWIN}, (48, 64), CLASSIFY),
    "unet": (UNET, (48, 64), CLASSIFY),
    "unet3d": (UNET, (24, 32, 40), CLASSIFY),
    "densenet": (DENSENET, (48, 64), CLASSIFY),
    "densenet3d": (DENSENET, (24, 32, 40), CLASSIFY),
    "cascade3d": (_cascade("image+softmax"), (24, 32, 40), STRUCTURES),
}


def _network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    network, size, tasks = NETWORKS[name]
    experiment = Experiment.model_validate(
        {
            "name": "x",
            "data": {"preprocessing": {"size": list(size)}},
            "network": network,
            "tasks": tasks,
        }
    )
    spec = CohortSpec.model_validate(
        {
            "name": "c",
            "modality": "ct",
            "dimensions": len(size),
            "classes": ["no", "yes"],
            "positive": "yes",
            "mask": {"name": "m"},
            "structures": ["a", "b"],
            "intensity": {"unit": "HU", "window": [0, 80]},
        }
    )
    torch.manual_seed(0)
    return build_network(experiment, spec), size


def _planted(size: tuple[int, ...], corner: tuple[int, ...], side: int = 8) -> NDArray[np.float32]:
    """A dim image of a fixed noise with one bright block."""
    image = np.random.default_rng(0).random((1, *size)).astype(np.float32) * 0.1
    image[(0, *(slice(at, at + side) for at in corner))] = 1.0
    return image


def _learn(network: nn.Module, size: tuple[int, ...], steps: int = 60) -> None:
    """Teach a network to tell images with a bright block, anywhere, from those without."""
    generator = np.random.default_rng(1)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 3e-3)
    network.train()
    for _ in range(steps):
        images, labels = [], []
        for _ in range(8):
            yes = generator.random() < 0.5
            corner = tuple(int(generator.integers(0, n - 8)) for n in size)
            image = _planted(size, corner) if yes else _planted(size, corner, 0)
            images.append(image + generator.normal(0, 0.02, image.shape).astype(np.float32))
            labels.append(int(yes))
        outputs: Outputs = network(torch.from_numpy(np.stack(images)))
        assert outputs.classes is not None
        loss = nn.functional.cross_entropy(outputs.classes, torch.tensor(labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _centre(one: Attention) -> NDArray[np.float64]:
    """The map's centre of mass, in shares of each axis."""
    assert one.map.sum() == pytest.approx(1, abs=1e-4)
    axes = range(one.map.ndim)
    along = [one.map.sum(axis=tuple(b for b in axes if b != a)) for a in axes]
    return np.array([(line * (np.arange(len(line)) + 0.5)).sum() / len(line) for line in along])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_moves_with_the_evidence(name: str) -> None:
    network, size = _network(name)
    _learn(network, size)
    near, far = (0,) * len(size), tuple(n - 8 for n in size)
    images = [_planted(size, near), _planted(size, far), _planted(size, (size[0] - 8, *near[1:]))]
    first, second, third = grad_cam(network, images, decide=lambda _: 1)
    assert first.map.shape == size
    assert (_centre(second) - _centre(first) > 0.2).all()
    moved = _centre(third) - _centre(first)
    assert moved[0] > 0.2
    assert np.abs(moved[1:]).max() < moved[0] / 2  # along the one axis that the block moved along
    np.testing.assert_allclose(first.probabilities, class_probabilities(network, images[:1])[0], atol=1e-5)


def test_the_map_is_the_published_formula() -> None:
    """Against the definition, written out for a network small enough to differentiate by hand."""
    network, size = _network("densenet")
    image = _planted(size, (4, 20))
    (found,) = grad_cam(network, [image], decide=lambda _: 0)
    features = network.features(torch.from_numpy(image[None]))
    weight = network.head.weight[0] - network.head.weight[1]
    expected = torch.einsum("k,khw->hw", weight / features[0, 0].numel(), features[0]).relu().detach()
    expected = nn.functional.interpolate(expected[None, None], size, mode="bilinear")[0, 0]
    np.testing.assert_allclose(found.map, (expected / expected.sum()).numpy(), rtol=1e-4, atol=1e-8)
    assert found.grid == (6, 8)


def test_weights_and_mode_are_as_before() -> None:
    network, size = _network("joint")
    before = [parameter.requires_grad for parameter in network.parameters()]
    grad_cam(network, [_planted(size, (0, 0))])
    assert [parameter.requires_grad for parameter in network.parameters()] == before
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


class _Linear(nn.Module):
    """Class 1 by the mean of a 1x1 convolution; its map is in whatever layout is declared."""

    def __init__(self, layout: str, sign: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.layout, self.sign = layout, sign

    def cam_layer(self) -> CamLayer:
        return CamLayer("layer", self.layout, 8)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Outputs:
        pooled = nn.functional.avg_pool2d(image, 8)  # (B, 1, H/8, W/8)
        features = torch.cat([pooled] * 5, dim=1).movedim(1, -1)  # (B, H/8, W/8, 5)
        score = self.sign * self.layer(features).mean(dim=(1, 2, 3))
        return Outputs(classes=torch.stack([torch.zeros_like(score), score], dim=1))


def test_a_layout_read_wrongly_is_refused() -> None:
    image = _planted((64, 48), (0, 0))
    (right,) = grad_cam(_Linear("channels last"), [image])
    assert right.grid == (8, 6)
    with pytest.raises(RunError, match=r"map of \(6, 5\) for an image of \(64, 48\)"):
        grad_cam(_Linear("channels first"), [image])


def test_a_map_of_zeros_is_said() -> None:
    image = _planted((64, 48), (8, 16))
    (empty,) = grad_cam(_Linear("channels last", sign=-1.0), [image], decide=lambda _: 1)
    assert empty.is_empty
    assert not empty.map.any()
    (full,) = grad_cam(_Linear("channels last"), [image], decide=lambda _: 1)
    assert not full.is_empty
    assert np.unravel_index(full.map.argmax(), full.map.shape)[0] in range(8, 16)


def test_a_network_without_classes_is_refused() -> None:
    network = _Linear("channels last")
    network.forward = lambda image: Outputs(features=network.layer(image))  # type: ignore[method-assign]
    with pytest.raises(RunError, match="no classification head"):
        grad_cam(network, [_planted((64, 48), (0, 0))])
    with pytest.raises(RunError, match="declares no layer"):
        grad_cam(nn.Identity(), [_planted((64, 48), (0, 0))])
