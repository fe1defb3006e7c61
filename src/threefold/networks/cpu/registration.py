"""VoxelMorph's U-Net on a CPU: small convolutions stay in oneDNN, and no doubled volume is made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threefold.networks import registration
from threefold.networks.cpu import convolutions
from threefold.networks.cpu.processor import applies, avoids_bfloat16, compute_type, precision

# Along one axis: what a voxel of the coarse grid gives to the four fine voxels that a convolution of width 3
# on the doubled grid lets it reach, by the convolution's three weights.
_REACH = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


class VoxelMorphUnet(registration.VoxelMorphUnet):
    """As the plain U-Net; in float32 under autocast to bfloat16, where the processor multiplies none."""

    def forward(self, pair: Tensor) -> Tensor:
        """Return (B, 3, *S) for (B, in_channels, *S)."""
        with precision(pair):
            field = super().forward(pair)
        return field.bfloat16() if avoids_bfloat16(pair) else field

    def convolve(self, values: Tensor, conv: nn.Module) -> Tensor:
        """Apply one of the layers."""
        assert isinstance(conv, nn.Conv3d)
        return _convolve(values, conv.weight, conv.bias)

    def merge(self, skip: Tensor, coarse: Tensor, conv: nn.Module) -> Tensor:
        """Apply a layer to a skip and the coarser values, without making the doubled volume.

        A convolution of width 3 after nearest-neighbour doubling is a transposed convolution of width 4 and
        stride 2 of the coarse volume, with 8 instead of 27 products a voxel.
        """
        if not applies(coarse):
            return super().merge(skip, coarse, conv)
        assert isinstance(conv, nn.Conv3d)
        channels = skip.shape[1]
        with torch.autocast("cpu", enabled=False):
            reach = conv.weight.new_tensor(_REACH)
            # (out, coarse, 3, 3, 3) to (coarse, out, 4, 4, 4)
            kernel = torch.einsum("oiabc,xa,yb,zc->ioxyz", conv.weight[:, channels:], reach, reach, reach)
        fine = _convolve(skip, conv.weight[:, :channels], conv.bias)
        return fine + _convolve(coarse, kernel, None, doubling=True)


def _convolve(values: Tensor, weight: Tensor, bias: Tensor | None, *, doubling: bool = False) -> Tensor:
    """Convolve with padding 1; doubling: transposed, to a grid twice as large."""
    stride = 2 if doubling else 1
    if applies(values) and convolutions.gains(values, stride, transposed=doubling):
        dtype = compute_type(values)
        values, weight = values.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        return convolutions.Convolution.apply(values, weight, bias, stride, doubling)  # type: ignore[no-any-return, no-untyped-call]
    if doubling:
        return F.conv_transpose3d(values, weight, bias, stride=2, padding=1)
    return F.conv3d(values, weight, bias, padding=1)
