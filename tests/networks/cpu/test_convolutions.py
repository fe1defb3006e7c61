"""Convolutions on small grids and of single cases: PyTorch's own in float64, gradients and all."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from threefold.networks.cpu import convolutions, processor
from threefold.networks.cpu.convolutions import Convolution

pytestmark = pytest.mark.skipif(
    not processor.computes(torch.float32), reason="the fast paths need oneDNN, which this PyTorch lacks"
)

# batch and the coarser grid: odd and even first axes, a slice of one voxel, above and below 512 voxels
GRIDS = [(1, (9, 8, 11)), (1, (10, 9, 8)), (1, (3, 4, 2)), (2, (5, 4, 3)), (1, (27, 24)), (1, (1, 5))]


def _plain(values: Tensor, weight: Tensor, bias: Tensor | None, stride: int, transposed: bool) -> Tensor:
    if transposed:
        up = F.conv_transpose3d if values.ndim == 5 else F.conv_transpose2d
        return up(values, weight, bias, stride, 1, stride + 2 - weight.shape[-1])
    down = F.conv3d if values.ndim == 5 else F.conv2d
    return down(values, weight, bias, stride, 1)


@pytest.mark.parametrize(
    ("width", "stride", "transposed", "biased"),
    [(3, 1, False, True), (3, 2, False, False), (3, 2, True, True), (4, 2, True, False)],
)
@pytest.mark.parametrize(("batch", "grid"), GRIDS)
def test_it_is_pytorchs_convolution_with_its_gradients(
    batch: int, grid: tuple[int, ...], width: int, stride: int, transposed: bool, biased: bool
) -> None:
    torch.manual_seed(0)
    # A strided convolution meets even and odd grids, which give the same coarser one.
    for odd in (0, 1) if stride == 2 and not transposed else (0,):
        inputs, outputs = 6, 5
        size = grid if transposed else tuple(stride * side - odd for side in grid)
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        exact = [
            torch.randn(batch, inputs, *size, dtype=torch.float64),
            torch.randn(*shape, *[width] * len(grid), dtype=torch.float64),
            *([torch.randn(outputs, dtype=torch.float64)] if biased else []),
        ]
        last = torch.channels_last_3d if len(grid) == 3 else torch.channels_last
        ours = [each.float().contiguous() for each in exact]
        ours[0] = ours[0].contiguous(memory_format=last)
        results = []
        for tensors, apply in ((exact, _plain), (ours, Convolution.apply)):
            leaves = [each.requires_grad_() for each in tensors]
            out = apply(*leaves[:2], leaves[2] if biased else None, stride, transposed)
            gradient = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
            results.append([out, *torch.autograd.grad(out, leaves, gradient)])
        for expected, found in zip(*results, strict=True):
            assert found.shape == expected.shape
            scale = float(expected.detach().abs().max())
            torch.testing.assert_close(found.double() / scale, expected / scale, rtol=0, atol=2e-6)


@pytest.mark.parametrize("wanted", list(itertools.product((True, False), repeat=2)))
def test_only_the_gradients_that_are_wanted_are_made(wanted: tuple[bool, bool]) -> None:
    values = torch.randn(1, 2, 4, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(3, 2, 3, 3, 3)
    leaves = [each.requires_grad_(asked) for each, asked in zip((values, weight), wanted, strict=True)]
    out = Convolution.apply(*leaves, None, 1, False)
    assert out.requires_grad == any(wanted)
    if any(wanted):
        out.sum().backward()
    assert [each.grad is not None for each in leaves] == list(wanted)


@pytest.mark.parametrize("shape", [(1, 24, 24, 24, 24), (1, 32, 12, 12, 12), (1, 64, 16, 16)])
def test_it_is_taken_where_pytorch_leaves_onednn(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    weight = torch.randn(4, shape[1], *[3] * (len(shape) - 2))
    selected = torch._C._select_conv_backend(  # type: ignore[attr-defined]
        values, weight, None, *[[1] * (len(shape) - 2)] * 3, False, [0] * (len(shape) - 2), 1
    )
    assert "Mkldnn" not in str(selected)
    assert convolutions.gains(values, 1, transposed=False)
    larger = torch.empty(2, *shape[1:], device="meta")
    assert convolutions.gains(larger, 1, transposed=False) == (2 * math.prod(shape[2:]) <= 512)
