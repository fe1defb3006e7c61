"""Weights that earlier versions saved: under the names of then, they load whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from threefold.experiment import (
    AttentionUnetSpec,
    CascadeSpec,
    DenseNetSpec,
    JointSwinSpec,
    SwinSpec,
    SwinUnetSpec,
)
from threefold.networks.attention_unet import AttentionUnet
from threefold.networks.cascade import Cascade
from threefold.networks.densenet import DenseNet
from threefold.networks.joint import JointSwin
from threefold.networks.pretrained import load_pretrained
from threefold.networks.swin_unet import SwinUnet
from threefold.training.checkpoints import load_network

from .named_heads import named_heads

SWIN = SwinSpec(embed_dim=6, depths=(1, 1), heads=(1, 2), window=4)
UNET = AttentionUnetSpec(channels=(4, 8))
DENSE = DenseNetSpec(blocks=(1, 1), growth=4, stem=8)
CASCADE = CascadeSpec(segmenter=UNET, classifier=DENSE)
CLASSES = named_heads(classes=2)
BOTH = named_heads(classes=2, labels=3)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "swin-unet": (
        lambda: SwinUnet(
            SwinUnetSpec(encoder=SWIN), in_channels=1, heads={**BOTH, **named_heads(restored=1)}
        ),
        {
            "heads.classification.": "classifier.",
            "heads.segmentation.": "segmentation.",
            "heads.reconstruction.": "reconstruction.",
        },
    ),
    "joint-swin": (
        lambda: JointSwin(JointSwinSpec(encoder=SWIN), in_channels=1, heads=CLASSES),
        {"heads.classification.": "classifier."},
    ),
    "attention-unet": (
        lambda: AttentionUnet(UNET, in_channels=1, heads=BOTH),
        {"heads.segmentation.": "head.", "heads.classification.": "classifier."},
    ),
    "densenet": (
        lambda: DenseNet(DENSE, in_channels=1, heads=CLASSES),
        {"heads.classification.": "head."},
    ),
    "cascade": (
        lambda: Cascade(CASCADE, in_channels=1, heads=BOTH),
        {
            "segmenter.heads.segmentation.": "segmenter.head.",
            "classifier.heads.classification.": "classifier.head.",
        },
    ),
}
"""A network with the heads that it had, and how the names of its weights begin now and began then."""


def as_saved_then(network: nn.Module, began: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Return the weights by their former names."""
    saved = {}
    for name, value in network.state_dict().items():
        now = next((one for one in began if name.startswith(one)), "")
        saved[began.get(now, "") + name.removeprefix(now)] = value
    return saved


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_former_run_loads_whole(kind: str, tmp_path: Path) -> None:
    make, began = NETWORKS[kind]
    trained = make()
    saved = as_saved_then(trained, began)
    assert not any("heads." in name for name in saved)
    save_file(saved, tmp_path / "weights.safetensors")
    network = make()
    report = load_pretrained(network, tmp_path / "weights.safetensors", decoders_from_encoder=False)
    assert (report.missing, report.unused, report.adapted) == ((), (), ())
    torch.testing.assert_close(network.state_dict(), trained.state_dict(), rtol=0, atol=0)
    network = make()
    load_network(network, saved, tmp_path / "last.ckpt")
    torch.testing.assert_close(network.state_dict(), trained.state_dict(), rtol=0, atol=0)


def test_a_former_segmenter_and_classifier_fill_a_cascade_and_it_them(tmp_path: Path) -> None:
    def saved_then(kind: str, network: nn.Module) -> Path:
        path = tmp_path / f"{kind}-{len([*tmp_path.iterdir()])}.safetensors"
        save_file(as_saved_then(network, NETWORKS[kind][1]), path)
        return path

    unet = AttentionUnet(UNET, in_channels=1, heads=named_heads(labels=3))
    dense = DenseNet(DENSE, in_channels=3, heads=CLASSES)
    cascade = Cascade(CASCADE, in_channels=1, heads=BOTH)
    for kind, part in (("attention-unet", unet), ("densenet", dense)):
        assert load_pretrained(cascade, saved_then(kind, part)).unused == ()
    torch.testing.assert_close(cascade.segmenter.state_dict(), unet.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(cascade.classifier.state_dict(), dense.state_dict(), rtol=0, atol=0)
    whole = saved_then("cascade", cascade)
    for part in (unet, dense):
        nn.init.zeros_(next(iter(part.heads.values())).weight)
        assert load_pretrained(part, whole).missing == ()
    torch.testing.assert_close(dense.state_dict(), cascade.classifier.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(unet.state_dict(), cascade.segmenter.state_dict(), rtol=0, atol=0)
