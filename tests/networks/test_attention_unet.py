"""The attention U-Net against MONAI's, and what it adds: any size, a head on the deepest features."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from threefold.core.outputs import Outputs
from threefold.experiment import AttentionUnetSpec
from threefold.networks.attention_unet import AttentionUnet
from threefold.networks.cpu import cpu_kernels
from threefold.networks.pretrained import load_pretrained

from .named_heads import named_heads, parts_of

SMALL = AttentionUnetSpec(channels=(4, 8, 16), dropout=0.2)


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _network(
    spec: AttentionUnetSpec = SMALL, labels: int | None = 5, classes: int | None = None, dimensions: int = 3
) -> AttentionUnet:
    heads = named_heads(labels=labels, classes=classes)
    return AttentionUnet(spec, in_channels=1, heads=heads, dimensions=dimensions)


def _load(ours: nn.Module, theirs: nn.Module, folder: Path) -> None:
    torch.save(theirs.state_dict(), folder / "monai.pth")
    report = load_pretrained(ours, folder / "monai.pth")
    assert not report.missing
    assert not report.unused


def test_the_published_size_computes_what_monai_computes(monai: SimpleNamespace, tmp_path: Path) -> None:
    theirs, ours = monai.unet(), _network(AttentionUnetSpec(), labels=12)
    monai.shake(theirs)
    _load(ours, theirs, tmp_path)
    assert sum(p.numel() for p in ours.parameters()) == 23_626_316
    image = _randn(1, 1, 32, 48, 32)
    with torch.inference_mode():
        expected = theirs.eval()(image)
        torch.testing.assert_close(ours.eval()(image).heads["segmentation"], expected, rtol=0, atol=4e-5)
        with cpu_kernels(ours):
            torch.testing.assert_close(ours(image).heads["segmentation"], expected, rtol=0, atol=4e-5)
    image.requires_grad_()  # gradients of an evaluation take another way
    with cpu_kernels(ours):
        torch.testing.assert_close(ours(image).heads["segmentation"], expected, rtol=0, atol=4e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_outputs_and_gradients_of_a_training_step_in_float64(
    monai: SimpleNamespace, tmp_path: Path, dimensions: int
) -> None:
    """Without dropout, whose draws are each network's own; batch statistics as in training."""
    theirs = monai.unet((4, 8, 16), labels=5, dimensions=dimensions)
    ours = _network(SMALL.model_copy(update={"dropout": 0.0}), dimensions=dimensions)
    monai.shake(theirs)
    _load(ours, theirs, tmp_path)
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    image = _randn(2, 1, *(8, 12, 16)[:dimensions]).double()
    expected, found = theirs.double().train()(image), ours.double().train()(image).heads["segmentation"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weight = _randn(*expected.shape, seed=1).double()
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    by_name = copy.deepcopy(ours)  # their gradients by our names, through the same loader
    _load(by_name, theirs, tmp_path)
    reference = by_name.state_dict()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name], rtol=1e-7, atol=1e-9, msg=name)
    for name, statistic in ours.named_buffers():
        torch.testing.assert_close(statistic, reference[name], msg=name)


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 9, 6), (4, 4, 4), (3, 2, 1), (1, 1, 1), (17, 4, 4)])
def test_any_size_comes_back_as_it_was(size: tuple[int, ...]) -> None:
    network = _network()
    for mode in (True, False):
        outputs = network.train(mode)(_randn(1, 1, *size))
        assert outputs.heads["segmentation"].shape == (1, 5, *size)
        assert outputs.features.shape == (1, 16)
        assert torch.isfinite(outputs.heads["segmentation"]).all()


def test_padding_adds_zeros_at_the_far_ends() -> None:
    network = _network().eval()
    image = _randn(1, 1, 9, 8, 6)
    padded = torch.nn.functional.pad(image, (0, 2, 0, 0, 0, 3))
    with torch.inference_mode():
        torch.testing.assert_close(
            network(image).heads["segmentation"], network(padded).heads["segmentation"][:, :, :9, :, :6]
        )


def test_the_pooled_head_shares_the_encoder() -> None:
    network = _network(classes=3)
    network.train()
    outputs = network(_randn(2, 1, 16, 16, 16))
    assert outputs.heads["classification"].shape == (2, 3)
    outputs.heads["classification"].square().sum().backward()
    with_gradient = [name for name, p in network.named_parameters() if p.grad is not None]
    assert parts_of(with_gradient) == {"encoder", "heads.classification"}


def _levels_of(network: AttentionUnet, image: torch.Tensor) -> tuple[list[torch.Tensor], Outputs]:
    """Return what each level of the encoder and then of the decoder gives, and the outputs."""
    found: list[torch.Tensor] = []
    assert network.decoder is not None
    hooks = [
        level.register_forward_hook(lambda module, inputs, output: found.append(output))
        for level in (*network.encoder, *network.decoder)
    ]
    outputs = network(image)
    for hook in hooks:
        hook.remove()
    return found, outputs


@pytest.mark.parametrize("size", [(16, 16), (13, 10), (8, 12, 9)])
def test_features_are_averaged_over_what_is_segmented(size: tuple[int, ...]) -> None:
    spec = SMALL.model_copy(update={"pooling": "image+region"})
    network = _network(spec, classes=3, dimensions=len(size)).double().eval()
    image = _randn(2, 1, *size).double()
    levels, outputs = _levels_of(network, image)
    structures = 1 - outputs.heads["segmentation"].softmax(1)[:, :1]
    ends = [end for side in reversed(size) for end in (0, -side % 4)]
    inside = torch.nn.functional.pad(structures, ends)
    expected = [levels[2].flatten(2).mean(2)]
    for level in levels:
        factor = inside.shape[-1] // level.shape[-1]
        mean = torch.nn.functional.avg_pool2d if len(size) == 2 else torch.nn.functional.avg_pool3d
        weights = mean(inside, factor).flatten(2)
        expected.append((level.flatten(2) * weights).sum(2) / weights.sum(2))
    torch.testing.assert_close(outputs.features, torch.cat(expected, 1))
    linear = network.heads["classification"]
    torch.testing.assert_close(outputs.heads["classification"], linear(outputs.features))


@pytest.mark.parametrize("detach", [True, False])
def test_a_detached_mask_is_told_by_segmentation_alone(detach: bool) -> None:
    spec = SMALL.model_copy(update={"pooling": "region", "detach_mask": detach})
    network = _network(spec, classes=3, dimensions=2).train()
    network(_randn(2, 1, 16, 16)).heads["classification"].square().sum().backward()
    assert (network.heads["segmentation"].weight.grad is None) == detach
    assert network.decoder[0].merge.conv.weight.grad is not None  # whose features the head reads


def test_where_nothing_is_segmented_nothing_is_read() -> None:
    spec = SMALL.model_copy(update={"pooling": "region"})
    network = _network(spec, labels=2, classes=3, dimensions=2).eval()
    with torch.no_grad():
        network.heads["segmentation"].bias.copy_(torch.tensor([500.0, -500.0]))
        outputs = network(_randn(1, 1, 16, 16))
    assert not outputs.features.any()
    assert torch.isfinite(outputs.heads["classification"]).all()


def test_without_labels_there_is_no_decoder() -> None:
    network = _network(labels=None, classes=2)
    outputs = network(_randn(1, 1, 16, 16, 16))
    assert {name: tuple(head.shape) for name, head in outputs.heads.items()} == {"classification": (1, 2)}
    assert parts_of(network.state_dict()) == {"encoder", "heads.classification"}


def test_the_published_initialisation() -> None:
    """Xavier normal with gain 0.1: a deviation of 0.1 * sqrt(2 / (fan in + fan out)); biases at zero."""
    torch.manual_seed(0)
    network = _network(AttentionUnetSpec(channels=(16, 32), initialisation="published"), classes=2)
    weight = network.encoder[1][1].conv.weight  # 32 to 32 channels
    assert weight.std().item() == pytest.approx(0.1 * (2 / (64 * 27)) ** 0.5, rel=0.02)
    up = network.decoder[0].up.conv.weight  # a transposed one
    assert up.std().item() == pytest.approx(0.1 * (2 / (48 * 27)) ** 0.5, rel=0.03)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("conv.bias"))
    assert network.heads["classification"].weight.abs().max() < 0.1


@pytest.mark.parametrize("initialisation", ["default", "published"])
def test_a_background_prior_is_what_the_untrained_network_predicts(initialisation: str) -> None:
    torch.manual_seed(0)
    spec = AttentionUnetSpec(channels=(8, 16), initialisation=initialisation, background_prior=0.97)
    with torch.no_grad():
        predicted = _network(spec, labels=12)(_randn(2, 1, 16, 16, 16)).heads["segmentation"].softmax(dim=1)
    assert predicted[:, 0].mean().item() == pytest.approx(0.97, abs=0.02)
    assert predicted[:, 1:].mean().item() == pytest.approx(0.03 / 11, rel=0.5)


def test_dropout_acts_in_training_alone() -> None:
    network = _network(SMALL.model_copy(update={"dropout": 0.5}))
    image = _randn(1, 1, 16, 16, 16)
    torch.manual_seed(0)
    first, second = network.train()(image).heads["segmentation"], network(image).heads["segmentation"]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(network(image).heads["segmentation"], first)
    network.eval()
    assert torch.equal(network(image).heads["segmentation"], network(image).heads["segmentation"])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_cam_layer_has_the_declared_layout(dimensions: int) -> None:
    network = _network(classes=2, dimensions=dimensions)
    seen = []
    layer = network.cam_layer()
    network.get_submodule(layer.module).register_forward_hook(lambda _m, _i, out: seen.append(out))
    network(_randn(2, 1, *(16, 24, 32)[:dimensions]))
    assert (layer.layout, layer.stride) == ("channels first", 4)
    assert seen[0].shape == (2, 16, *(4, 6, 8)[:dimensions])
