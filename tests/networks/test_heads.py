"""Any number of heads under any names, and numbers in their own unit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from threefold.core.outputs import Head
from threefold.experiment import AttentionUnetSpec, CascadeSpec, DenseNetSpec, SwinSpec, SwinUnetSpec
from threefold.networks.attention_unet import AttentionUnet
from threefold.networks.cascade import Cascade
from threefold.networks.densenet import DenseNet
from threefold.networks.heads import NumberHead
from threefold.networks.swin_unet import SwinUnet

SWIN = SwinUnetSpec(encoder=SwinSpec(embed_dim=6, depths=(1, 1), heads=(1, 2), window=4))
UNET = AttentionUnetSpec(channels=(4, 8))
DENSE = DenseNetSpec(blocks=(1, 1), growth=4, stem=8)
CASCADE = CascadeSpec(segmenter=UNET, classifier=DENSE)

POOLED = {
    "diagnosis": Head("pooled", 3),
    "findings": Head("pooled", 5),
    "age": Head("pooled", 1, (280.0, 9.0)),
}
DENSE_ONES = {"vessels": Head("dense", 4), "lesion": Head("dense", 2)}
RESTORED = {"image": Head("restored", 1)}
NETWORKS: dict[str, tuple[Callable[[dict[str, Head]], nn.Module], dict[str, Head]]] = {
    "swin-unet": (
        lambda heads: SwinUnet(SWIN, in_channels=1, heads=heads),
        {**POOLED, **DENSE_ONES, **RESTORED},
    ),
    "attention-unet": (
        lambda heads: AttentionUnet(UNET, in_channels=1, heads=heads, dimensions=2),
        {**POOLED, **DENSE_ONES},
    ),
    "densenet": (lambda heads: DenseNet(DENSE, in_channels=1, heads=heads, dimensions=2), POOLED),
    "cascade": (
        lambda heads: Cascade(CASCADE, in_channels=1, heads=heads, dimensions=2),
        {**POOLED, **DENSE_ONES},
    ),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_each_head_answers_under_its_name_and_learns(kind: str) -> None:
    make, heads = NETWORKS[kind]
    network = make(heads).train()
    outputs = network(torch.rand(2, 1, 16, 16))
    assert {name: tuple(out.shape) for name, out in outputs.heads.items()} == {
        name: (2, head.outputs) if head.kind == "pooled" else (2, head.outputs, 16, 16)
        for name, head in heads.items()
    }
    for name, out in outputs.heads.items():
        network.zero_grad()
        out.square().sum().backward(retain_graph=True)
        touched = {
            part.split(".")[part.split(".").index("heads") + 1]
            for part, weight in network.named_parameters()
            if ".heads." in f".{part}" and weight.grad is not None
        }
        # A cascade's classifier reads its first segmentation.
        reads = {"vessels"} if kind == "cascade" and heads[name].kind == "pooled" else set()
        assert touched == {name} | reads


@pytest.mark.parametrize("kind", ["swin-unet", "attention-unet"])
def test_the_order_of_the_tasks_changes_no_first_weight(kind: str) -> None:
    """So that a recipe's tasks may be written in any order: kinds come in an order of their own."""
    make, heads = NETWORKS[kind]
    one_of_each = {head.kind: {name: head} for name, head in heads.items()}
    states = []
    for order in (one_of_each, reversed(one_of_each)):
        torch.manual_seed(0)
        states.append(
            make({name: head for key in order for name, head in one_of_each[key].items()}).state_dict()
        )
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_number_is_the_linear_map_in_its_unit() -> None:
    torch.manual_seed(0)
    head, features = NumberHead(4, 1, 38.5, 2.5), torch.randn(6, 4)
    linear = features @ head.weight.T + head.bias
    torch.testing.assert_close(head(features), 38.5 + 2.5 * linear)
    assert set(head.state_dict()) == {"weight", "bias", "mean", "deviation"}
    other = NumberHead(4, 1, 0.0, 1.0)
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other(features), head(features), rtol=0, atol=0)
    assert other.double()(features.double()).dtype == torch.float64


def test_a_number_far_from_zero_is_not_rounded_in_bfloat16() -> None:
    """280 days and 280.9 days are one number in bfloat16."""
    torch.manual_seed(0)
    head, features = NumberHead(4, 1, 280.0, 9.0), torch.randn(32, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(features)
    assert found.dtype == torch.float32
    assert (found - head(features)).abs().max() < 0.01 * 9
