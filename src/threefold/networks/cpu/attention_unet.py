"""The attention U-Net on a CPU: channels-last, with fewer steps, each over less memory.

Each class computes what the plain class of its name does (`threefold.networks.attention_unet`):

- 1x1 convolutions are matrix products;
- norm, ReLU and dropout are one step, which keeps two tensors for the backward pass instead of five, and
  dropout costs 16 random bits a value, which are other draws than the plain class's;
- small convolutions of single cases stay with oneDNN, which PyTorch leaves for a slower way (`convolutions`);
- a bias in front of a norm, which has no effect, is left out (its gradient is exactly zero);
- without gradients norms are folded into the convolutions, ReLU runs inside them, and their weights stay in
  oneDNN's own order from one call to the next (`folding3d`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from threefold.networks import attention_unet
from threefold.networks.cpu import folding3d, gradients3d
from threefold.networks.cpu.processor import avoids_bfloat16, differentiating
from threefold.networks.cpu.volumes import batch_norm, channels_last, convolution, pointwise, voxel_mask


class ConvUnit(attention_unet.ConvUnit):
    """The norm, ReLU and dropout are one step; without gradients they run inside the convolution."""

    @channels_last
    def forward(self, values: Tensor) -> Tensor:
        """As the plain unit, channels-last."""
        conv, norm = self.conv, self.norm
        if norm.training:
            convolved = convolution(values, conv, bias=False)
            mask, scale = voxel_mask(convolved, self.dropout)
            return batch_norm(convolved, conv, norm, mask, scale, relu=True)
        if not differentiating(values, *conv.parameters(), *norm.parameters()):
            return folding3d.conv_norm_relu(values, conv, norm)
        return F.relu(norm(convolution(values, conv)))


class DecoderLevel(attention_unet.DecoderLevel):
    """The gate and the merge are one pass over the voxels without gradients, few steps with."""

    @channels_last
    def forward(self, values: Tensor, skip: Tensor) -> Tensor:
        """As the plain level, channels-last."""
        coarse, gate, merge = self.up(values), self.gate, self.merge
        slope = merge.act.weight
        units = (gate.coarse, gate.skip, gate.score)
        parameters = (*gate.parameters(), *merge.parameters())
        if not gate.training and not differentiating(coarse, skip, *parameters):
            pairs = [(unit.conv, unit.norm) for unit in units]
            return folding3d.gated_merge(coarse, skip, pairs, merge.conv, slope)
        summed = F.relu(_conv_norm(coarse, gate.coarse) + _conv_norm(skip, gate.skip))
        gated = skip * torch.sigmoid(_conv_norm(summed, gate.score))
        merged = convolution(torch.cat((gated, coarse), dim=1), merge.conv, bias=False)
        mask, scale = voxel_mask(merged, merge.dropout if merge.training else 0.0)
        return gradients3d.InstanceNorm.apply(merged, merge.conv.bias, slope, mask, scale)  # type: ignore[no-any-return, no-untyped-call]


class Head2d(attention_unet.Head2d):
    """The 1x1 convolution is a matrix product."""

    def forward(self, values: Tensor) -> Tensor:
        """As the plain head."""
        return _in_asked_type(self._project(values), values)

    @channels_last
    def _project(self, values: Tensor) -> Tensor:
        return pointwise(values, self.weight, self.bias)


class Head3d(attention_unet.Head3d):
    """The 1x1 convolution is a matrix product."""

    def forward(self, values: Tensor) -> Tensor:
        """As the plain head."""
        return _in_asked_type(self._project(values), values)

    @channels_last
    def _project(self, values: Tensor) -> Tensor:
        return pointwise(values, self.weight, self.bias)


def _in_asked_type(logits: Tensor, values: Tensor) -> Tensor:
    """Return logits in bfloat16 where autocast asks for it but the processor multiplies none."""
    return logits.bfloat16() if avoids_bfloat16(values) else logits


def _conv_norm(values: Tensor, unit: attention_unet.PointwiseUnit) -> Tensor:
    if not unit.norm.training:
        out: Tensor = unit.norm(convolution(values, unit.conv))
        return out
    product = pointwise(values, unit.conv.weight, None)
    return batch_norm(product, unit.conv, unit.norm, None, 1.0, relu=False)
