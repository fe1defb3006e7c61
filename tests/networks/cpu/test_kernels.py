"""The fast paths of the Swin networks against the formulas they stand for, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from threefold.experiment import SwinSpec, SwinUnetSpec
from threefold.networks.cpu import cpu_kernels, kernels, processor
from threefold.networks.swin_unet import SwinUnet

from ..named_heads import named_heads


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _linear(values: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: Tensor) -> Tensor:
    return kernels.linear(values, weight, bias, residual, scale)


def _linear_alone(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return kernels.linear(values, weight, bias)


def _linear_residual(values: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return kernels.linear(values, weight, bias, residual)


def _mlp(values: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, rest: Tensor) -> Tensor:
    return kernels.mlp(values, (w1, b1), (w2, b2), rest, None)


def _mlp_scaled(
    values: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, rest: Tensor, scale: Tensor
) -> Tensor:
    return kernels.mlp(values, (w1, b1), (w2, b2), rest, scale)


def _attention(qkv: Tensor, bias: Tensor) -> Tensor:
    return kernels.window_attention(qkv, bias, 3)


def _plain_attention(qkv: Tensor, bias: Tensor) -> Tensor:
    query, key, value = qkv.unflatten(-1, (3, 3, -1)).permute(3, 0, 1, 4, 2, 5)
    weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5 + bias, dim=-1)
    return (weights @ value).transpose(2, 3).flatten(-2)


def _layer_norm_head(tokens: Tensor, expand: Tensor, gain: Tensor, shift: Tensor, head: Tensor) -> Tensor:
    """The published final expansion: linear layer, LayerNorm of each part, 1x1 head."""
    parts = F.linear(tokens, expand).unflatten(-1, (-1, gain.shape[0]))
    return F.linear(F.layer_norm(parts, gain.shape, gain, shift), head)


MLP_SHAPES = [(2, 3000, 24), (96, 24), (96,), (24, 96), (24,), (2, 3000, 24)]  # of several chunks
HEAD_SHAPES = [(2, 1500, 24), (16 * 24, 24), (24,), (24,), (3, 24)]
LINEAR_SHAPES = [(2, 50, 24), (72, 24), (72,), (2, 50, 72), (2, 1, 1)]
CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "linear": (_linear_alone, lambda x, w, b: x @ w.t() + b, LINEAR_SHAPES[:3]),
    "linear, residual": (_linear_residual, lambda x, w, b, r: r + x @ w.t() + b, LINEAR_SHAPES[:4]),
    "linear, scaled": (_linear, lambda x, w, b, r, s: r + s * (x @ w.t() + b), LINEAR_SHAPES),
    "mlp": (_mlp, lambda x, w, b, v, c, r: r + F.gelu(x @ w.t() + b) @ v.t() + c, MLP_SHAPES),
    "mlp, scaled": (
        _mlp_scaled,
        lambda x, w, b, v, c, r, s: r + s * (F.gelu(x @ w.t() + b) @ v.t() + c),
        [*MLP_SHAPES, (2, 1, 1)],
    ),
    "attention": (_attention, _plain_attention, [(2, 4, 9, 36), (1, 3, 9, 9)]),
    "attention, masked": (_attention, _plain_attention, [(2, 4, 9, 36), (4, 3, 9, 9)]),
    "expansion head": (kernels.expansion_head, _layer_norm_head, HEAD_SHAPES),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_their_formula(name: str) -> None:
    """In float32, with and without gradients, against float64 by the formula."""
    kernel, formula, shapes = CASES[name]
    inputs = [_randn(*shape, seed=number) for number, shape in enumerate(shapes)]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    single = [tensor.clone().requires_grad_() for tensor in inputs]
    expected, found = formula(*exact), kernel(*single)
    weights = _randn(*expected.shape, seed=99)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(kernel(*inputs).double(), expected.detach(), rtol=1e-4, atol=1e-4)
    expected_gradients = torch.autograd.grad((expected * weights.double()).sum(), exact)
    found_gradients = torch.autograd.grad((found * weights).sum(), single)
    for gradient, reference in zip(found_gradients, expected_gradients, strict=True):
        assert gradient.shape == reference.shape
        assert (gradient.double() - reference).norm() <= 1e-5 * reference.norm()


def _network(reconstruct: bool = True) -> SwinUnet:
    torch.manual_seed(0)
    spec = SwinUnetSpec(encoder=SwinSpec(size="mini", drop_path=0.3))
    heads = named_heads(classes=2, labels=2, restored=1 if reconstruct else None)
    network = SwinUnet(spec, in_channels=1, heads=heads)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return network


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_float32_gradients_of_a_training_step(size: tuple[int, int]) -> None:
    """The fast paths in float32 against the plain network in float64, with stochastic depth."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        network = _network().to(dtype).train()
        torch.manual_seed(1)
        with cpu_kernels(network):  # which do not apply to float64
            outputs = network(_randn(2, 1, *size, seed=0).to(dtype))
        assert len(outputs.heads) == 3
        loss = sum(value.square().mean() for value in outputs.heads.values())
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten().double() for p in network.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[1].norm()


def test_bfloat16_stays_near() -> None:
    network = _network(reconstruct=False)
    image = _randn(2, 1, 64, 64, seed=0)
    exact = network.eval()(image)
    for gradients in (True, False):
        with cpu_kernels(network), torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
            near = network(image)
        found, expected = near.heads["segmentation"], exact.heads["segmentation"]
        assert (found.float() - expected).norm() / expected.norm() < 0.05
    network.train()
    with cpu_kernels(network), torch.autocast("cpu", torch.bfloat16):
        outputs = network(image)
    assert len(outputs.heads) == 2
    sum(head.float().square().mean() for head in outputs.heads.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


def test_kept_casts_follow_the_weights() -> None:
    """Weights are cast once for inference, but never served stale."""
    network = _network(reconstruct=False).eval()
    image = _randn(1, 1, 64, 64, seed=0)

    def infer() -> Tensor:
        with cpu_kernels(network), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = network(image).heads["segmentation"]
            return logits

    first = infer()
    assert torch.equal(infer(), first)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    changed = infer()
    assert not torch.equal(changed, first)
    network.load_state_dict({name: value / 1.5 for name, value in network.state_dict().items()})
    torch.testing.assert_close(infer(), first, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_kept_casts_follow_every_kind_of_optimiser_step(
    make: Callable[..., torch.optim.Optimizer], options: dict[str, bool]
) -> None:
    weight = torch.nn.Parameter(_randn(4, 8, seed=0))
    values = _randn(1, 3, 8, seed=1)
    optimiser = make([weight], lr=0.5, **options)

    def layer(values: Tensor, weight: Tensor) -> Tensor:
        if not processor.applies(values):
            return F.linear(values, weight)
        return kernels.linear(values, weight, None)

    def infer() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return layer(values, weight)

    before = infer()
    for _ in range(2):
        layer(values, weight).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        fresh = layer(values.bfloat16(), weight.detach().bfloat16())
        assert torch.equal(infer(), fresh)
    assert not torch.equal(infer(), before)


def test_a_bias_alone_can_be_trained() -> None:
    """Whichever of the inputs wants a gradient gets one."""
    values, residual = _randn(1, 3, 8, seed=0), _randn(1, 3, 8, seed=1)
    w1, b1, w2, b2 = (_randn(*shape, seed=2) for shape in ((16, 8), (16,), (8, 16), (8,)))
    b2.requires_grad_()
    kernels.mlp(values, (w1, b1), (w2, b2), residual, None).sum().backward()
    torch.testing.assert_close(b2.grad, torch.full((8,), 3.0))
    bias = torch.zeros(8, requires_grad=True)
    kernels.linear(values, torch.eye(8), bias, residual).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((8,), 3.0))


def test_inference_then_training_on_the_same_network() -> None:
    network = _network()
    image = _randn(1, 1, 64, 64, seed=0)
    with cpu_kernels(network), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network.eval()(image)
    with cpu_kernels(network), torch.autocast("cpu", torch.bfloat16):
        network.train()(image).heads["segmentation"].float().mean().backward()
