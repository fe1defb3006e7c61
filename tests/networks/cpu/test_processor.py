"""Every processor: whatever plain PyTorch computes, the fast paths compute too, in every type and batch."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from threefold.experiment import AttentionUnetSpec, CascadeSpec, DenseNetSpec, SwinSpec, SwinUnetSpec
from threefold.networks.attention_unet import ConvUnit, DecoderLevel, Head3d
from threefold.networks.cascade import Cascade
from threefold.networks.cpu import cpu_kernels, processor
from threefold.networks.densenet import DenseBlock, DenseFeatures
from threefold.networks.registration import VoxelMorphUnet
from threefold.networks.swin import SwinStage
from threefold.networks.swin_unet import DecoderStage, FinalExpanding, SwinUnet

from ..named_heads import named_heads

SWIN = SwinSpec(size="mini", embed_dim=16, depths=(2, 2), heads=(1, 2), window=4, drop_path=0.0)


class Segmentation(nn.Module):
    """A whole network, of which the segmentation is looked at."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        heads = self.network(image).heads
        out: Tensor = heads["segmentation"].flatten(1) + heads["classification"].sum(1, keepdim=True)
        return out


def _swin() -> nn.Module:
    spec = SwinUnetSpec(encoder=SWIN.model_copy(update={"window": 7}))
    return Segmentation(SwinUnet(spec, in_channels=1, heads=named_heads(classes=2, labels=2)))


_DENSE = DenseNetSpec(blocks=(2, 2), growth=4, stem=8, dropout=0.0)


def _cascade() -> nn.Module:
    spec = CascadeSpec(segmenter=AttentionUnetSpec(channels=(4, 8), dropout=0.0), classifier=_DENSE)
    return Segmentation(Cascade(spec, in_channels=1, heads=named_heads(labels=3, classes=3)))


# What is computed, and the shapes of its values without the batch.
PARTS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "Swin stage": (lambda: SwinStage(8, 2, SWIN, (0.0, 0.0), merge=True), [(6, 8, 8)]),
    "Swin stage, one window": (lambda: SwinStage(8, 2, SWIN, (0.0, 0.0), merge=False), [(4, 4, 8)]),
    "decoder stage": (lambda: DecoderStage(SWIN, 0), [(3, 4, 32), (6, 8, 16)]),
    "final expansion": (lambda: FinalExpanding(8, 4, 3), [(4, 5, 8)]),
    "convolution": (lambda: ConvUnit(3, 3, 8, dropout=0.0), [(3, 5, 4, 6)]),
    "convolution, strided": (lambda: ConvUnit(3, 3, 8, stride=2, dropout=0.0), [(3, 5, 4, 6)]),
    "convolution, transposed": (lambda: ConvUnit(3, 8, 4, dropout=0.0, up=True), [(8, 3, 2, 4)]),
    "convolution, 2D": (lambda: ConvUnit(2, 3, 8, dropout=0.0), [(3, 9, 7)]),
    "gated merge": (lambda: DecoderLevel(3, 8, 4, 0.0), [(8, 2, 3, 2), (4, 4, 6, 4)]),
    "dense block": (lambda: DenseBlock(3, 6, 2, 4, 0.0), [(6, 4, 5, 4)]),
    "dense stem and transition": (lambda: DenseFeatures(_DENSE, 3, 3), [(3, 20, 17, 12)]),
    "projection": (lambda: Head3d(5, 3), [(5, 4, 3, 2)]),
    "Swin-Unet": (_swin, [(1, 32, 40)]),
    "cascade": (_cascade, [(1, 16, 12, 20)]),
    "VoxelMorph": (lambda: VoxelMorphUnet((4, 4, 8, 8), (4,), unet_channels=4), [(2, 8, 6, 10)]),
}


def _autocast(dtype: torch.dtype) -> Callable[[], AbstractContextManager[None]]:
    return lambda: torch.autocast("cpu", dtype)


def _without_onednn() -> AbstractContextManager[None]:
    flags: AbstractContextManager[None] = torch.backends.mkldnn.flags(enabled=False)  # type: ignore[no-untyped-call]
    return flags


@contextmanager
def _products_of_the_other_library() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "HAS_AVX512", not processor.HAS_AVX512)
        yield


# How it is computed: the type of values and weights, the context, the largest relative error.
WAYS: dict[str, tuple[torch.dtype, Callable[[], AbstractContextManager[None]], float]] = {
    "float32": (torch.float32, nullcontext, 1e-4),
    "float32, not as this processor would": (torch.float32, _products_of_the_other_library, 1e-4),
    "float32 without oneDNN": (torch.float32, _without_onednn, 1e-4),
    "float64": (torch.float64, nullcontext, 1e-12),
    "autocast to bfloat16": (torch.float32, _autocast(torch.bfloat16), 0.1),
    "autocast to float16": (torch.float32, _autocast(torch.float16), 0.02),
    "bfloat16": (torch.bfloat16, nullcontext, 0.1),
    "float16": (torch.float16, nullcontext, 0.02),
    "bfloat16, autocast": (torch.bfloat16, _autocast(torch.bfloat16), 0.1),
}


def _result(
    module: nn.Module, values: list[Tensor], *, training: bool, plain: bool = True
) -> tuple[Tensor, ...]:
    """Return what a copy of the module computes and, in training, the gradients of its values and weights."""
    module = copy.deepcopy(module).to(values[0].dtype).train(training)
    way = nullcontext() if plain else cpu_kernels(module)
    if not training:
        with way, torch.inference_mode():
            return (module(*values),)
    leaves = [value.clone().requires_grad_() for value in values]
    with way:
        out = module(*leaves)
    out.float().square().sum().backward()  # inside of autocast, where the caller is
    return out.detach(), *(leaf.grad for leaf in (*leaves, *module.parameters()) if leaf.grad is not None)


def _errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Distances of a result and of its gradients, relative to the result and to the largest gradient."""
    norms = [float(tensor.norm()) for tensor in exact]
    scales = [norms[0], *[max(norms[1:], default=0.0)] * len(norms[1:])]
    distances = [float((one.double() - other).norm()) for one, other in zip(found, exact, strict=True)]
    return [distance / max(scale, 1e-12) for distance, scale in zip(distances, scales, strict=True)]


@cache
def _part(name: str) -> nn.Module:
    """A part whose weights are the same numbers in every type."""
    torch.manual_seed(0)
    module = PARTS[name][0]()
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.bfloat16())
    return module


@cache
def _exact(name: str, batch: int, training: bool) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Draw values, and return them and what is computed of them in float64."""
    draw = torch.Generator().manual_seed(1)
    values = [torch.randn(batch, *shape, generator=draw).bfloat16() for shape in PARTS[name][1]]
    return values, _result(_part(name), [value.double() for value in values], training=training)


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # of switching oneDNN off
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("way", WAYS)
def test_whatever_plain_pytorch_computes_is_computed(way: str, training: bool) -> None:
    """As near to the result in float64 as the plain modules in the same type are, or nearer.

    In batches of none, one and two.
    """
    dtype, context, tolerance = WAYS[way]
    far = {}
    for name in PARTS:
        for batch in (0, 1, 2):
            values, exact = _exact(name, batch, training)
            values = [value.to(dtype) for value in values]
            with context():
                results = [
                    _result(_part(name), values, training=training, plain=plain) for plain in (False, True)
                ]
            ours, theirs = (_errors(result, exact) for result in results)
            worst = max(one - 2 * other for one, other in zip(ours, theirs, strict=True))
            if not worst <= tolerance:
                far[f"{name}, batch {batch}"] = worst
    assert not far


def test_bfloat16_works_where_onednn_has_none() -> None:
    """On any processor, held to AVX2 by the variables that oneDNN and PyTorch read when they are loaded."""
    code = f"""
import sys
import pytest
from threefold.networks.cpu import processor
assert not processor.HAS_BFLOAT16
assert not processor.HAS_AVX512
options = ["-q", "--noconftest", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", "autocast and bfloat16"]
sys.exit(pytest.main([{__file__!r}, *options]))
"""
    held = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=held, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
