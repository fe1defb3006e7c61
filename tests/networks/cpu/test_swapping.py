"""The fast paths come and go, and leave the network as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from threefold.experiment import AttentionUnetSpec, CascadeSpec, DenseNetSpec, SwinSpec, SwinUnetSpec
from threefold.networks.cascade import Cascade
from threefold.networks.cpu import _FAST_BY_PLAIN, cpu_kernels, processor
from threefold.networks.registration import VoxelMorphUnet
from threefold.networks.swin_unet import SwinUnet

from ..named_heads import named_heads

NEEDS_ONEDNN = pytest.mark.skipif(
    not processor.computes(torch.float32), reason="the fast paths need oneDNN, which this PyTorch lacks"
)


def _swin(depths: tuple[int, int] = (2, 2), *, reconstruct: bool = True) -> nn.Module:
    encoder = SwinSpec(size="mini", embed_dim=16, depths=depths, heads=(1, 2), window=5, drop_path=0.0)
    heads = named_heads(classes=2, labels=2, restored=1 if reconstruct else None)
    return SwinUnet(SwinUnetSpec(encoder=encoder), in_channels=1, heads=heads)


def _cascade() -> nn.Module:
    spec = CascadeSpec(
        segmenter=AttentionUnetSpec(channels=(4, 8), dropout=0.0),
        classifier=DenseNetSpec(blocks=(2, 2), growth=4, stem=8, dropout=0.0),
    )
    return Cascade(spec, in_channels=1, heads=named_heads(labels=3, classes=3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Swin-Unet": (_swin, (1, 1, 44, 36)),
    "cascade": (_cascade, (1, 1, 16, 12, 20)),
    "VoxelMorph": (lambda: VoxelMorphUnet((4, 4, 8, 8), (4,), unet_channels=4), (1, 2, 8, 6, 10)),
}
"""Networks that hold a module of every class with a fast path but the 2D head, and a size of their image."""


def _made(name: str) -> tuple[nn.Module, Tensor]:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    return make().eval(), torch.randn(size)


def _numbers(network: nn.Module, image: Tensor) -> Tensor:
    """Return all that a network says of an image, in one row."""
    outputs = network(image)
    heads = [outputs] if isinstance(outputs, Tensor) else outputs.heads.values()
    return torch.cat([head.flatten() for head in heads])


def _classes(network: nn.Module) -> list[type]:
    return [type(module) for module in network.modules()]


@NEEDS_ONEDNN
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_plain_before_and_after(name: str) -> None:
    network, image = _made(name)
    classes, names = _classes(network), list(network.state_dict())
    with torch.inference_mode():
        before = _numbers(network, image)
        with cpu_kernels(network):
            assert _classes(network) == [_FAST_BY_PLAIN.get(each, each) for each in classes]
            assert _classes(network) != classes
            assert list(network.state_dict()) == names
            fast = _numbers(network, image)
            with cpu_kernels(network):  # within itself it changes nothing
                assert torch.equal(_numbers(network, image), fast)
            assert torch.equal(_numbers(network, image), fast)
        assert _classes(network) == classes
        assert torch.equal(_numbers(network, image), before)
    assert not torch.equal(fast, before)  # another way of computing rounds otherwise
    torch.testing.assert_close(fast, before, rtol=1e-4, atol=1e-5)


def test_a_network_is_plain_after_an_error() -> None:
    network, _ = _made("cascade")
    classes = _classes(network)
    with pytest.raises(RuntimeError), cpu_kernels(network):
        network(torch.zeros(1, 7, 8, 8, 8))
    assert _classes(network) == classes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_variable_keeps_every_network_plain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = _made(name)
    classes, expected = _classes(network), _numbers(network, image)
    monkeypatch.setenv("THREEFOLD_CPU_KERNELS", "0")
    with cpu_kernels(network):
        assert _classes(network) == classes
        assert torch.equal(_numbers(network, image), expected)


def test_networks_elsewhere_and_compiled_ones_stay_plain() -> None:
    network, _ = _made("cascade")
    classes = _classes(network)
    with cpu_kernels(network.to("meta")):
        assert _classes(network) == classes
    compiled, _ = _made("cascade")
    compiled._compiled_call_impl = compiled._call_impl  # as `nn.Module.compile` leaves it
    with cpu_kernels(compiled):
        assert _classes(compiled) == classes


def test_classes_of_others_are_left_alone() -> None:
    class Own(SwinUnet):
        """Somebody's change of a network."""

    plain, _ = _made("Swin-Unet")
    plain.__class__ = Own
    foreign = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Linear(2, 2), plain)
    with cpu_kernels(foreign):
        assert [type(module) for module in foreign] == [nn.Conv3d, nn.Linear, Own]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_made_within_is_of_the_same_weights(name: str) -> None:
    network, image = _made(name)
    with cpu_kernels(network), torch.no_grad():
        copied = copy.deepcopy(network)
        expected = _numbers(network, image)
        assert torch.equal(_numbers(copied, image), expected)
        weights = {key: 2 * value for key, value in network.state_dict().items()}
        network.load_state_dict(weights)
        assert torch.equal(_numbers(copied, image), expected)
        assert not torch.equal(_numbers(network, image), expected)


def test_a_swin_exported_within_is_plain_and_runs_on() -> None:
    """What is made of traced tensors is not kept: the next ordinary call, of new sizes, is as ever."""
    network = _swin(depths=(2, 1), reconstruct=False).eval()
    image = torch.randn(1, 1, 52, 60)  # of no other test: indices are kept by size
    with torch.no_grad():
        expected = _numbers(network, image)
    with cpu_kernels(network), torch.no_grad():
        exported = torch.export.export(_Numbers(network), (image,))
        found = _numbers(network, image)
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not any("mkldnn" in target for target in targets)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(image), expected, rtol=1e-5, atol=1e-6)
    with cpu_kernels(network):
        _numbers(network, image).sum().backward()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_swin_traced_within_is_plain_and_runs_on() -> None:
    network, _ = _made("Swin-Unet")
    image = torch.randn(1, 1, 68, 60)
    with cpu_kernels(network), torch.no_grad():
        traced = torch.jit.trace(_Numbers(network), (image,), check_trace=False)
        found = _numbers(network, image)
    with torch.no_grad():
        torch.testing.assert_close(found, _numbers(network, image), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(traced(image), found, rtol=1e-4, atol=1e-5)


class _Numbers(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return _numbers(self.network, image)
