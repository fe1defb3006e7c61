"""The published Swin-Unet's numbers, through this program's importer and production network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from threefold.core.outputs import Head
from threefold.experiment import SwinSpec, SwinUnetSpec
from threefold.networks.cpu import cpu_kernels
from threefold.networks.pretrained import load_pretrained
from threefold.networks.swin_unet import SwinUnet

WAYS: dict[str, Callable[[SwinUnet], AbstractContextManager[None]]] = {
    "plain": lambda network: nullcontext(),
    "fast": cpu_kernels,
}
WIDTHS, HEADS, WINDOW = (24, 48, 96, 192), (3, 6, 12, 24), 7


def block_shapes(name: str, width: int, heads: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.attn.relative_position_bias_table", ((2 * WINDOW - 1) ** 2, heads)
    layers = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for layer, (out, into) in layers.items():
        yield f"{name}.{layer}.weight", (out * width, into * width)
        yield f"{name}.{layer}.bias", (out * width,)
    for norm in ("norm1", "norm2"):
        yield from norm_shapes(f"{name}.{norm}", width)


def norm_shapes(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def published_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the public Swin-Unet's parameters at these sizes."""
    first, last = WIDTHS[0], WIDTHS[-1]
    yield "patch_embed.proj.weight", (first, 3, 4, 4)
    yield "patch_embed.proj.bias", (first,)
    for name, width in (("patch_embed.norm", first), ("norm", last), ("norm_up", first), ("up.norm", first)):
        yield from norm_shapes(name, width)
    for stage, (width, heads) in enumerate(zip(WIDTHS, HEADS, strict=True)):
        up = len(WIDTHS) - 1 - stage
        for block in range(2):
            yield from block_shapes(f"layers.{stage}.blocks.{block}", width, heads)
            if up:
                yield from block_shapes(f"layers_up.{up}.blocks.{block}", width, heads)
        if up:
            yield f"layers.{stage}.downsample.reduction.weight", (2 * width, 4 * width)
            yield from norm_shapes(f"layers.{stage}.downsample.norm", 4 * width)
            yield f"concat_back_dim.{up}.weight", (width, 2 * width)
            yield f"concat_back_dim.{up}.bias", (width,)
        if stage:
            expanding = f"layers_up.{up}.upsample" if up else "layers_up.0"
            yield f"{expanding}.expand.weight", (2 * width, width)
            yield from norm_shapes(f"{expanding}.norm", width // 2)
    yield "up.expand.weight", (16 * first, first)
    yield "output.weight", (2, first, 1, 1)


def formula_weights() -> dict[str, Tensor]:
    """The parameters by which the numbers of swin_unet_formula.safetensors were computed."""
    weights = {}
    for k, (name, shape) in enumerate(sorted(published_shapes())):
        wave = np.sin(0.7548776662466927 * np.arange(math.prod(shape), dtype=np.float64) + k)
        if name.endswith("relative_position_bias_table"):
            values = 0.2 * wave
        elif len(shape) > 1:
            values = wave / math.sqrt(math.prod(shape[1:]))
        else:
            values = 1 + 0.1 * wave if name.endswith("weight") else 0.05 * wave
        weights[name] = torch.from_numpy(values.reshape(shape).astype(np.float32))
    return weights


def formula_image() -> Tensor:
    """The image by which they were computed, (1, 1, 224, 224)."""
    y, x = np.mgrid[:224, :224].astype(np.float64)
    image = 0.5 + 0.5 * np.sin(0.11 * x + 0.07 * y) * np.cos(0.05 * x - 0.13 * y)
    return torch.from_numpy(image.astype(np.float32))[None, None]


def loaded(checkpoint: Path, channels: int) -> SwinUnet:
    """Return the network with all of a checkpoint's weights."""
    spec = SwinUnetSpec(encoder=SwinSpec(size="mini"))
    network = SwinUnet(spec, in_channels=channels, heads={"segmentation": Head("dense", 2)}).eval()
    report = load_pretrained(network, checkpoint)
    assert report.missing == ()
    assert report.unused == ()
    assert len(report.loaded) == len(dict(published_shapes()))
    return network


def forward_and_backward(network: SwinUnet, image: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (1, 49, 192), logits (1, 2, 224, 224), and the gradient of their mean square."""
    image = image.clone().requires_grad_()
    features = network.encoder(image.expand(-1, channels, -1, -1)).tokens.flatten(1, 2)
    logits = network(image.expand(-1, channels, -1, -1)).heads["segmentation"]
    (gradient,) = torch.autograd.grad(logits.square().mean(), image)
    return features, logits, gradient


@pytest.fixture(scope="module")
def formula_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "formula.safetensors"
    save_file(formula_weights(), path)
    return path


# Three channels are the published way of a grey image; one channel is this program's (exactly the same sum).
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [3, 1])
def test_published_numbers(
    channels: int, way: str, swin_unet_formula: dict[str, Tensor], formula_checkpoint: Path
) -> None:
    network = loaded(formula_checkpoint, channels)
    with WAYS[way](network):
        features, logits, gradient = forward_and_backward(network, formula_image(), channels)
    golden = swin_unet_formula
    torch.testing.assert_close(features, golden["features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[:, :, ::8, ::8], golden["logits_every_8th"], atol=1e-4, rtol=0)
    found = torch.stack((logits.mean(), logits.std()))
    torch.testing.assert_close(found, golden["logits_mean_std"], atol=1e-4, rtol=0)
    expected = golden["input_gradient_every_8th"]
    found = gradient[:, :, ::8, ::8]
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert float(gradient.norm()) == pytest.approx(float(golden["gradient_norm"]), rel=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_published_numbers_without_gradients(
    way: str, swin_unet_formula: dict[str, Tensor], formula_checkpoint: Path
) -> None:
    network = loaded(formula_checkpoint, 1)
    with WAYS[way](network), torch.inference_mode():
        logits = network(formula_image()).heads["segmentation"]
    expected = swin_unet_formula["logits_every_8th"]
    torch.testing.assert_close(logits[:, :, ::8, ::8], expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def random_weights(shared_golden: Path) -> dict[str, Tensor]:
    return load_file(shared_golden / "swin_unet_dim24.safetensors")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [3, 1])
def test_published_numbers_of_random_weights(
    channels: int, way: str, random_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    weights = {
        name.removeprefix("weight/"): value
        for name, value in random_weights.items()
        if name.startswith("weight/")
    }
    assert {name: tuple(value.shape) for name, value in weights.items()} == dict(published_shapes())
    save_file(weights, tmp_path / "swin_unet.safetensors")
    network = loaded(tmp_path / "swin_unet.safetensors", channels)
    with WAYS[way](network):
        features, logits, gradient = forward_and_backward(network, random_weights["input"], channels)
    torch.testing.assert_close(features, random_weights["features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, random_weights["logits"], atol=1e-4, rtol=0)
    expected = random_weights["input_gradient"]
    assert (gradient - expected).norm() <= 1e-3 * expected.norm()
    assert (gradient - expected).abs().max() <= 1e-3 * expected.abs().max()
    with WAYS[way](network), torch.inference_mode():
        logits = network(random_weights["input"].expand(-1, channels, -1, -1)).heads["segmentation"]
    torch.testing.assert_close(logits, random_weights["logits"], atol=1e-4, rtol=0)
