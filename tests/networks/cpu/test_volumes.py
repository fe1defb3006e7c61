"""The fast paths of the networks of convolutions against the plain modules they stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from threefold.experiment import AttentionUnetSpec, CascadeSpec, DenseNetSpec
from threefold.networks.attention_unet import ConvUnit, DecoderLevel, Head2d, Head3d
from threefold.networks.cascade import Cascade
from threefold.networks.cpu import cpu_kernels, folding3d
from threefold.networks.cpu.norms3d import as_image, keep_mask, normalise
from threefold.networks.cpu.volumes import as_channels_last
from threefold.networks.densenet import DenseBlock, DenseFeatures

from ..named_heads import named_heads

SPEC = CascadeSpec(
    segmenter=AttentionUnetSpec(channels=(8, 16, 32), dropout=0.2),
    classifier=DenseNetSpec(blocks=(2, 3), growth=8, stem=16, dropout=0.2),
)
HEADS = named_heads(classes=3, labels=5)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _shake(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator), alpha=0.2)
    return module


def _draw_as_the_fast_paths_do(values: Tensor, dropout: float, training: bool) -> Tensor:
    """Stand in for PyTorch's dropout, whose draws are others."""
    if not training or not dropout:
        return values
    kept, scale = keep_mask(values.numel(), dropout)
    return values * kept.view(values.movedim(1, -1).shape).movedim(-1, 1) * scale


MODULES: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "convolution": (lambda: ConvUnit(3, 6, 8, dropout=0.3), [(2, 6, 5, 4, 6)]),
    "convolution of many voxels": (lambda: ConvUnit(3, 6, 8, dropout=0.3), [(1, 6, 10, 9, 8)]),
    "strided": (lambda: ConvUnit(3, 6, 8, stride=2, dropout=0.3), [(1, 6, 6, 4, 8)]),
    "strided, odd": (lambda: ConvUnit(3, 6, 8, stride=2, dropout=0.0), [(2, 6, 7, 5, 3)]),
    "of one channel": (lambda: ConvUnit(3, 1, 8, dropout=0.0), [(1, 1, 6, 4, 8)]),
    "transposed": (lambda: ConvUnit(3, 8, 4, dropout=0.0, up=True), [(2, 8, 3, 4, 2)]),
    "2D": (lambda: ConvUnit(2, 6, 8, dropout=0.3), [(2, 6, 9, 7)]),
    "gated merge": (lambda: DecoderLevel(3, 16, 8, 0.3), [(1, 16, 2, 3, 2), (1, 8, 4, 6, 4)]),
    "gated merge of a batch": (lambda: DecoderLevel(3, 16, 8, 0.0), [(2, 16, 2, 3, 2), (2, 8, 4, 6, 4)]),
    "gated merge, 2D": (lambda: DecoderLevel(2, 16, 8, 0.3), [(2, 16, 5, 3), (2, 8, 10, 6)]),
    "dense block": (lambda: DenseBlock(3, 6, 3, 4, 0.3), [(1, 6, 6, 5, 4)]),
    "dense block of many voxels": (lambda: DenseBlock(3, 6, 3, 4, 0.0), [(1, 6, 10, 9, 8)]),
    "dense block of a batch": (lambda: DenseBlock(3, 6, 3, 4, 0.3), [(2, 6, 6, 5, 4)]),
    "dense block, 2D": (lambda: DenseBlock(2, 6, 3, 4, 0.3), [(2, 6, 9, 7)]),
    "head": (lambda: Head3d(6, 4), [(2, 6, 5, 4, 3)]),
    "head, 2D": (lambda: Head2d(6, 4), [(2, 6, 5, 4)]),
    "transition to a flat grid": (lambda: DenseFeatures(SPEC.classifier, 3, 3), [(2, 3, 32, 20, 3)]),
    "everything": (lambda: DenseFeatures(SPEC.classifier, 3, 3), [(1, 3, 24, 16, 32)]),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", MODULES)
def test_fast_paths_compute_what_the_plain_module_does(
    name: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 by the fast paths against float64: values, gradients, running statistics."""
    monkeypatch.setattr(torch.nn.functional, "dropout", _draw_as_the_fast_paths_do)
    make, shapes = MODULES[name]
    torch.manual_seed(0)
    single = _shake(make()).train(training)
    double = copy.deepcopy(single).double()
    inputs = [as_channels_last(_randn(*shape, seed=n)) for n, shape in enumerate(shapes)]
    results, gradients = [], []
    for module, dtype in ((double, torch.float64), (single, torch.float32)):
        leaves = [value.to(dtype, copy=True).requires_grad_() for value in inputs]
        torch.manual_seed(2)
        with cpu_kernels(module):  # which do not apply to float64
            results.append(module(*leaves))
        weight = _randn(*results[-1].shape, seed=9).to(dtype)
        gradients.append(torch.autograd.grad((results[-1] * weight).sum(), [*leaves, *module.parameters()]))
    torch.testing.assert_close(results[1].double(), results[0], rtol=1e-4, atol=1e-4)
    names = [*map(str, range(len(inputs))), *(name for name, _ in single.named_parameters())]
    for label, reference, found in zip(names, *gradients, strict=True):
        assert found.shape == reference.shape
        assert (found.double() - reference).norm() <= 2e-5 * max(reference.norm(), 1.0), label
    for (label, reference), found in zip(double.named_buffers(), single.buffers(), strict=True):
        torch.testing.assert_close(found.to(reference), reference, rtol=1e-5, atol=1e-6, msg=label)
    if not training:
        with cpu_kernels(single), torch.inference_mode():
            inferred = single(*inputs)
        torch.testing.assert_close(inferred.double(), results[0].detach(), rtol=1e-4, atol=1e-4)


def test_statistics_of_many_voxels_are_exact() -> None:
    """PyTorch's own channels-last norm is 1e-4 off here, more than the network may be."""
    image = (_randn(1, 64, 64, 64, 3) + torch.tensor([0.0, 2.0, -5.0])).movedim(-1, 1)
    running = torch.zeros(3), torch.ones(3), 0.25
    out, mean, deviation = normalise(as_image(image), torch.ones(3), None, running)
    rows = image.double().movedim(1, -1).flatten(0, -2)
    expected = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
    assert (out.movedim(1, -1).flatten(0, -2) - expected).abs().max() < 3e-6
    torch.testing.assert_close(mean.double(), rows.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(deviation.double(), rows.std(0).reciprocal(), rtol=1e-5, atol=0)
    torch.testing.assert_close(running[0].double(), 0.25 * rows.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(running[1].double(), 0.75 + 0.25 * rows.var(0), rtol=1e-6, atol=0)


def test_dropout_keeps_the_stated_share() -> None:
    torch.manual_seed(0)
    for dropout in (0.05, 0.2, 0.5, 0.97):
        kept, scale = keep_mask(400_001, dropout)
        assert kept.shape == (400_001,)
        assert kept.float().mean().item() == pytest.approx(1 - dropout, abs=0.004)
        assert scale == pytest.approx(1 / (1 - dropout), rel=1e-3)
        assert torch.corrcoef(torch.stack((kept[:-1], kept[1:])).float())[0, 1].abs() < 0.006
    assert not torch.equal(keep_mask(64, 0.5)[0], keep_mask(64, 0.5)[0])


@pytest.mark.parametrize("batch", [1, 2])
def test_bfloat16_stays_near(batch: int) -> None:
    torch.manual_seed(0)
    network = Cascade(SPEC, in_channels=1, heads=HEADS).eval()
    image = _randn(batch, 1, 32, 24, 40)
    exact = network(image)
    for gradients in (True, False):
        with cpu_kernels(network), torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
            near = network(image)
        found, expected = near.heads["segmentation"], exact.heads["segmentation"]
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() / expected.norm() < 0.05
        assert (near.heads["classification"].float() - exact.heads["classification"]).abs().max() < 0.2
    with cpu_kernels(network), torch.autocast("cpu", torch.bfloat16):
        outputs = network.train()(image)
    assert len(outputs.heads) == 2
    sum(head.float().square().mean() for head in outputs.heads.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
def test_compiling_takes_the_whole_network_in_one_graph() -> None:
    torch.manual_seed(0)
    none = {"dropout": 0.0}
    spec = SPEC.model_copy(
        update={
            "segmenter": SPEC.segmenter.model_copy(update=none),
            "classifier": SPEC.classifier.model_copy(update=none),
        }
    )
    network = Cascade(spec, in_channels=1, heads=HEADS).train()
    image = _randn(1, 1, 16, 20, 16)
    results = []
    for run in (network, torch.compile(network, backend="eager", fullgraph=True)):
        network.zero_grad()
        outputs = run(image)
        (outputs.heads["segmentation"].square().mean() + outputs.heads["classification"].sum()).backward()
        gradient = network.segmenter.encoder[0][0].conv.weight.grad.clone()
        results.append((outputs.heads["segmentation"], outputs.heads["classification"], gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


def test_kept_weights_follow_the_weights_and_the_size() -> None:
    """Norms are folded once for inference, but never served stale."""
    torch.manual_seed(0)
    network = Cascade(SPEC, in_channels=1, heads=HEADS).eval()
    image, larger = _randn(1, 1, 16, 16, 16), _randn(1, 1, 24, 16, 32)

    def infer(values: Tensor) -> Tensor:
        with cpu_kernels(network), torch.inference_mode():
            return network(values).heads["segmentation"]

    first = infer(image)
    assert torch.equal(infer(image), first)
    torch.testing.assert_close(infer(larger), network(larger).heads["segmentation"], rtol=1e-4, atol=1e-5)
    assert torch.equal(infer(image), first)
    with torch.no_grad():
        network.segmenter.encoder[0][0].norm.running_var.mul_(4)
    changed = infer(image)
    assert not torch.allclose(changed, first)
    torch.testing.assert_close(changed, network(image).heads["segmentation"], rtol=1e-4, atol=1e-5)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01, fused=True)
    with cpu_kernels(network):
        network.train()(image).heads["segmentation"].square().sum().backward()
    optimiser.step()
    network.eval()
    torch.testing.assert_close(infer(image), network(image).heads["segmentation"], rtol=1e-4, atol=1e-5)


def test_kept_weights_go_with_their_network() -> None:
    before = len(folding3d._folded)
    network = Cascade(SPEC, in_channels=1, heads=HEADS).eval()
    with cpu_kernels(network), torch.inference_mode():
        network(_randn(1, 1, 16, 16, 16))
    assert len(folding3d._folded) > before
    del network
    assert len(folding3d._folded) == before


def test_inference_then_training_on_the_same_network() -> None:
    network = Cascade(SPEC, in_channels=1, heads=HEADS)
    image = _randn(1, 1, 16, 16, 16)
    with cpu_kernels(network), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network.eval()(image)
    with cpu_kernels(network), torch.autocast("cpu", torch.bfloat16):
        outputs = network.train()(image)
    outputs.heads["classification"].float().sum().backward()


def test_a_bias_without_effect_gets_a_gradient_of_exactly_zero() -> None:
    network = Cascade(SPEC, in_channels=1, heads=HEADS).train()
    with cpu_kernels(network):
        outputs = network(_randn(1, 1, 16, 16, 16))
    assert len(outputs.heads) == 2
    sum(head.square().sum() for head in outputs.heads.values()).backward()
    biases = [p for name, p in network.named_parameters() if name.endswith("conv.bias")]
    assert len(biases) > 10
    for bias in biases:
        assert bias.grad is not None
        assert not bias.grad.any()
