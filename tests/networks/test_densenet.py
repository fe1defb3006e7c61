"""The DenseNet against MONAI's, and on grids that MONAI's refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from threefold.experiment import DenseNetSpec
from threefold.networks.cpu import cpu_kernels
from threefold.networks.densenet import DenseNet
from threefold.networks.pretrained import load_pretrained

from .named_heads import named_heads

SMALL = DenseNetSpec(blocks=(2, 3), growth=4, stem=8, dropout=0.2)


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _load(ours: nn.Module, theirs: nn.Module, folder: Path) -> None:
    torch.save(theirs.state_dict(), folder / "monai.pth")
    report = load_pretrained(ours, folder / "monai.pth")
    assert not report.missing
    assert not report.unused


def test_the_published_size_computes_what_monai_computes(monai: SimpleNamespace, tmp_path: Path) -> None:
    theirs, ours = monai.densenet(), DenseNet(DenseNetSpec(), in_channels=12, heads=named_heads(classes=3))
    _load(ours, theirs, tmp_path)
    assert sum(p.numel() for p in ours.parameters()) == 11_403_523
    image = _randn(1, 12, 64, 64, 64)
    with torch.inference_mode():
        expected = theirs.eval()(image)
        torch.testing.assert_close(ours.eval()(image).heads["classification"], expected, rtol=0, atol=4e-5)
    with cpu_kernels(ours):
        torch.testing.assert_close(ours(image).heads["classification"], expected, rtol=0, atol=4e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_outputs_and_gradients_of_a_training_step_in_float64(
    monai: SimpleNamespace, tmp_path: Path, dimensions: int
) -> None:
    size = (24, 16, 32)[:dimensions]
    sizes = {"init_features": 8, "growth_rate": 4, "block_config": (2, 3)}
    theirs = monai.densenet(2, dimensions=dimensions, **sizes)
    spec = SMALL.model_copy(update={"dropout": 0.0})
    ours = DenseNet(spec, in_channels=2, heads=named_heads(classes=3), dimensions=dimensions)
    _load(ours, theirs, tmp_path)
    for module in theirs.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    image = _randn(2, 2, *size).double()
    images = [image.clone().requires_grad_() for _ in range(2)]
    expected, found = (
        theirs.double().train()(images[0]),
        ours.double().train()(images[1]).heads["classification"],
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weight = _randn(*expected.shape, seed=1).double()
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    torch.testing.assert_close(images[1].grad, images[0].grad, rtol=1e-6, atol=1e-10)
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    by_name = copy.deepcopy(ours)  # their gradients by our names, through the same loader
    _load(by_name, theirs, tmp_path)
    reference = by_name.state_dict()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    "size", [(48, 48, 48), (32, 32, 32), (16, 8, 4), (5, 6, 7), (4, 4, 4), (1, 1, 1), (33, 1, 2), (64, 3, 3)]
)
def test_small_grids_are_classified_and_trained(size: tuple[int, ...]) -> None:
    """MONAI's network raises where a block's grid is a single voxel, 48x48x48 included."""
    network = DenseNet(DenseNetSpec(growth=4, stem=8), in_channels=2, heads=named_heads(classes=3))
    outputs = network.train()(_randn(1, 2, *size))
    outputs.heads["classification"].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    with torch.inference_mode():
        evaluated = network.eval()(_randn(1, 2, *size))
    assert torch.isfinite(evaluated.heads["classification"]).all()
    assert evaluated.features.shape == (1, network.features.width)
    if max(size) > 1:  # the last block still sees differences between places
        other = network(_randn(1, 2, *size, seed=1))
        assert not torch.allclose(other.heads["classification"], evaluated.heads["classification"])


def test_cases_of_a_batch_do_not_mix() -> None:
    network = DenseNet(SMALL, in_channels=1, heads=named_heads(classes=2)).eval()
    images = _randn(3, 1, 16, 12, 16)
    with torch.inference_mode():
        together = network(images).heads["classification"]
        alone = torch.cat([network(image[None]).heads["classification"] for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_dropout_drops_whole_channels_in_training_alone() -> None:
    network = DenseNet(SMALL.model_copy(update={"dropout": 0.5}), in_channels=1, heads=named_heads(classes=2))
    images = _randn(2, 1, 16, 16, 16)
    seen = []
    network.features.register_forward_hook(lambda _m, _i, out: seen.append(out.flatten(2)))
    torch.manual_seed(0)
    first = network.train()(images).heads["classification"]
    dead = (seen[0] == 0).all(dim=2)
    assert 0 < dead[:, 10:].sum() < dead[:, 10:].numel()  # of the last block's new channels
    assert not torch.equal(network(images).heads["classification"], first)
    torch.manual_seed(0)
    assert torch.equal(network(images).heads["classification"], first)
    network.eval()
    assert torch.equal(network(images).heads["classification"], network(images).heads["classification"])


def test_cam_layer_has_the_declared_layout() -> None:
    network = DenseNet(SMALL, in_channels=1, heads=named_heads(classes=2))
    seen = []
    layer = network.cam_layer()
    network.get_submodule(layer.module).register_forward_hook(lambda _m, _i, out: seen.append(out))
    network(_randn(2, 1, 32, 48, 64))
    assert (layer.layout, layer.stride) == ("channels first", 8)
    assert seen[0].shape[2:] == (4, 6, 8)
