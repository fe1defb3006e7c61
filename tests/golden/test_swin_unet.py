"""The published Swin-Unet's numbers, through this program's importer and production network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from threefold.experiment import SwinSpec, SwinUnetSpec
from threefold.networks.pretrained import load_pretrained
from threefold.networks.swin_unet import SwinUnet


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> dict[str, Tensor]:
    return load_file(shared_golden / "swin_unet_dim24.safetensors")


@pytest.fixture(scope="module")
def checkpoint(golden: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "swin_unet.safetensors"
    weights = {name: value for name, value in golden.items() if name.startswith("weight/")}
    save_file({name.removeprefix("weight/"): value for name, value in weights.items()}, path)
    return path


# Three channels are the published way of a grey image; one channel is this program's (exactly the same sum).
@pytest.mark.parametrize("channels", [3, 1])
def test_published_numbers(channels: int, golden: dict[str, Tensor], checkpoint: Path) -> None:
    spec = SwinUnetSpec(encoder=SwinSpec(size="mini"))
    network = SwinUnet(spec, in_channels=channels, classes=None, labels=2, reconstruct=False).eval()
    report = load_pretrained(network, checkpoint)
    assert report.missing == ()
    assert report.unused == ()
    assert len(report.loaded) == sum(name.startswith("weight/") for name in golden)

    image = golden["input"].clone().requires_grad_()
    features = network.encoder(image.expand(-1, channels, -1, -1)).tokens.flatten(1, 2)  # (1, 49, 192)
    logits = network(image.expand(-1, channels, -1, -1)).segmentation
    (gradient,) = torch.autograd.grad(logits.square().mean(), image)

    torch.testing.assert_close(features, golden["features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, golden["logits"], atol=1e-4, rtol=0)
    expected = golden["input_gradient"]
    assert (gradient - expected).norm() <= 1e-3 * expected.norm()
    assert (gradient - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_published_numbers_without_gradients(golden: dict[str, Tensor], checkpoint: Path) -> None:
    spec = SwinUnetSpec(encoder=SwinSpec(size="mini"))
    network = SwinUnet(spec, in_channels=1, classes=None, labels=2, reconstruct=False).eval()
    load_pretrained(network, checkpoint)
    with torch.inference_mode():
        logits = network(golden["input"]).segmentation
    torch.testing.assert_close(logits, golden["logits"], atol=1e-4, rtol=0)
