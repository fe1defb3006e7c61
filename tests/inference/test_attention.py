"""Grad-CAM: it moves with the evidence, on every network that classifies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from threefold.cohorts.cohort import CohortSpec
from threefold.core.outputs import Outputs
from threefold.errors import RunError
from threefold.experiment import Experiment
from threefold.inference.attention import class_probabilities, grad_cam
from threefold.networks.cam import CamLayer
from threefold.networks.cascade import Cascade
from threefold.networks.joint import JointSwin
from threefold.networks.swin_unet import SwinUnet
from threefold.tasks.build import build_network

HEAD = "classification"
SWIN = {"embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 7}
SHIFTED = {**SWIN, "depths": [2, 2]}
UNET = {"kind": "attention-unet", "channels": [8, 16, 32], "dropout": 0.0, "initialisation": "default"}
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
    "swin-shifted": ({"kind": "swin-unet", "encoder": SHIFTED}, (112, 80), SEGMENT),
    "joint": ({"kind": "joint-swin", "encoder": SWIN}, (48, 64), CLASSIFY),
    "unet": (UNET, (48, 64), CLASSIFY),
    "unet3d": (UNET, (24, 32, 40), CLASSIFY),
    "densenet": (DENSENET, (48, 64), CLASSIFY),
    "densenet3d": (DENSENET, (24, 32, 40), CLASSIFY),
    "cascade3d": (_cascade("image+structures"), (24, 32, 40), STRUCTURES),
}


def _network(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    network, size, tasks = NETWORKS[name]
    experiment = Experiment.model_validate(
        {
            "name": "x",
            "data": {"preprocessing": {"size": list(size)}},
            "network": network,
            "tasks": tasks,
            "pretrain": "hematoma/swin-unet-seg" if name == "joint" else None,
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
    torch.manual_seed(seed)
    return build_network(experiment, spec), size


def _planted(size: tuple[int, ...], corner: tuple[int, ...], side: int = 8) -> NDArray[np.float32]:
    """A dim image of a fixed noise with one bright block."""
    image = np.random.default_rng(0).random((1, *size)).astype(np.float32) * 0.1
    image[(0, *(slice(at, at + side) for at in corner))] = 9.0
    return image


def _pool_last_window(network: nn.Module) -> None:
    """Let the last attention of a Swin be the plain mean over its window, and its MLP nothing.

    What random attention makes of a token can point anywhere, and with it the map; of a mean it is known.
    """
    block = network.encoder.stages()[-1].blocks[-1]
    width = block.norm1.normalized_shape[0]
    with torch.no_grad():
        for parameter in (*block.attn.parameters(), *block.mlp.parameters()):
            parameter.zero_()
        block.attn.qkv.weight[2 * width :] = torch.eye(width)  # the values; all scores are equal
        block.attn.proj.weight.copy_(torch.eye(width))


def _teach(network: nn.Module, size: tuple[int, ...]) -> None:
    """Give the head the direction in which a bright block changes the declared features at its place."""
    generator = np.random.default_rng(1)
    corners = [tuple(8 * int(generator.integers(0, n // 8)) for n in size) for _ in range(16)]
    if isinstance(network, SwinUnet | JointSwin):
        _pool_last_window(network)
    layer = network.cam_layer()
    outputs: list[Tensor] = []
    handle = network.get_submodule(layer.module).register_forward_hook(
        lambda _m, _i, out: outputs.append(out)
    )
    with torch.no_grad():
        network.eval()(torch.from_numpy(np.stack([_planted(size, corner) for corner in corners])))
        handle.remove()
        features = layer.features(outputs[0])  # (B, C, *G)
        step = size[0] // features.shape[2]
        inside = torch.zeros(len(corners), *features.shape[2:], dtype=torch.bool)
        for one, corner in zip(inside, corners, strict=True):
            one[tuple(slice(at // step, (at + 8) // step) for at in corner)] = True
        by_voxel = features.movedim(1, -1)  # (B, *G, C)
        elsewhere = by_voxel[~inside].mean(dim=0)
        direction = by_voxel[inside].mean(dim=0) - elsewhere
        direction -= elsewhere * (direction @ elsewhere) / (elsewhere @ elsewhere)  # no evidence elsewhere
        # A cascade's image classifier is a network of its own.
        head = (network.classifier if isinstance(network, Cascade) else network).heads[HEAD]
        head.weight.zero_()
        head.weight[1, -len(direction) :] = direction  # a joint network has the frozen encoder's first
        head.bias.zero_()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_moves_with_the_evidence(name: str, seed: int) -> None:
    network, size = _network(name, seed)
    _teach(network, size)
    corners = [(0,) * len(size), tuple(n - 8 for n in size), (size[0] - 8, *(0,) * (len(size) - 1))]
    images = [_planted(size, corner) for corner in corners]
    found = grad_cam(network, images, HEAD, decide=lambda _: 1)
    blocks = [tuple(slice(at, at + 8) for at in corner) for corner in corners]
    shares = np.array([[one.map[block].sum() for block in blocks] for one in found])
    for i, one in enumerate(found):
        assert one.map.shape == size
        assert one.map.sum() == pytest.approx(1, abs=1e-4)
        others = np.delete(shares[:, i], i)  # what the maps of the other images have at this block's place
        assert shares[i, i] > 1.5 * others.max()
    probabilities = [one.probabilities for one in found]
    np.testing.assert_allclose(probabilities, class_probabilities(network, images, HEAD), atol=1e-5)


def test_the_map_is_the_published_formula() -> None:
    """Against the definition, written out for a network small enough to differentiate by hand."""
    network, size = _network("densenet")
    image = _planted(size, (4, 20))
    (found,) = grad_cam(network, [image], HEAD, decide=lambda _: 0)
    features = network.features(torch.from_numpy(image[None]))
    weight = network.heads[HEAD].weight[0] - network.heads[HEAD].weight[1]
    expected = torch.einsum("k,khw->hw", weight / features[0, 0].numel(), features[0]).relu().detach()
    expected = nn.functional.interpolate(expected[None, None], size, mode="bilinear")[0, 0]
    np.testing.assert_allclose(found.map, (expected / expected.sum()).numpy(), rtol=1e-4, atol=1e-8)
    assert found.grid == (6, 8)


def test_weights_and_mode_are_as_before() -> None:
    network, size = _network("joint")
    before = [parameter.requires_grad for parameter in network.parameters()]
    grad_cam(network, [_planted(size, (0, 0))], HEAD)
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
        return Outputs({HEAD: torch.stack([torch.zeros_like(score), score], dim=1)})


def test_a_layout_read_wrongly_is_refused() -> None:
    image = _planted((64, 48), (0, 0))
    (right,) = grad_cam(_Linear("channels last"), [image], HEAD)
    assert right.grid == (8, 6)
    with pytest.raises(RunError, match=r"map of \(6, 5\) for an image of \(64, 48\)"):
        grad_cam(_Linear("channels first"), [image], HEAD)


def test_a_map_of_zeros_is_said() -> None:
    image = _planted((64, 48), (8, 16))
    (empty,) = grad_cam(_Linear("channels last", sign=-1.0), [image], HEAD, decide=lambda _: 1)
    assert empty.is_empty
    assert not empty.map.any()
    (full,) = grad_cam(_Linear("channels last"), [image], HEAD, decide=lambda _: 1)
    assert not full.is_empty
    assert np.unravel_index(full.map.argmax(), full.map.shape)[0] in range(8, 16)


def test_a_network_without_classes_is_refused() -> None:
    network = _Linear("channels last")
    network.forward = lambda image: Outputs(features=network.layer(image))  # type: ignore[method-assign]
    with pytest.raises(RunError, match="has no head 'classification' that tells classes"):
        grad_cam(network, [_planted((64, 48), (0, 0))], HEAD)
    with pytest.raises(RunError, match="declares no layer"):
        grad_cam(nn.Identity(), [_planted((64, 48), (0, 0))], HEAD)
