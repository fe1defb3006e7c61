"""The encoder's options: any size, any channels, stochastic depth, checkpointing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from threefold.experiment import SwinSpec
from threefold.networks.swin import StochasticDepth, SwinEncoder, drop_path_rates

SMALL = SwinSpec(embed_dim=12, depths=(2, 2), heads=(2, 3), window=4, drop_path=0.0)


def _encoder(spec: SwinSpec = SMALL, in_channels: int = 1, seed: int = 0) -> SwinEncoder:
    torch.manual_seed(seed)
    encoder = SwinEncoder(spec, in_channels).double()
    with torch.no_grad():  # away from the initial values, where biases and most of the attention are zero
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return encoder


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [(64, 64), (40, 72), (33, 50), (5, 8), (1, 1)])
def test_shapes(size: tuple[int, int], channels: int) -> None:
    encoder = _encoder(in_channels=channels)
    features = encoder(torch.randn(2, channels, *size).double())
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    assert features.tokens.shape == (2, rows, columns, 24)
    assert features.pooled.shape == (2, 24)
    assert [skip.shape for skip in features.skips] == [
        (2, 2 * rows, 2 * columns, 12),
        (2, rows, columns, 24),
    ]
    assert all(torch.isfinite(skip).all() for skip in features.skips)


@pytest.mark.parametrize("size", [(33, 50), (40, 72), (61, 64)])
def test_padding_is_zeros_below_and_to_the_right(size: tuple[int, int]) -> None:
    encoder = _encoder().eval()
    image = torch.randn(1, 1, *size).double()
    padded = F.pad(image, (0, -size[1] % 8, 0, -size[0] % 8))
    torch.testing.assert_close(encoder(image).tokens, encoder(padded).tokens, rtol=0, atol=0)


def test_padded_windows_hold_nothing_of_the_padding() -> None:
    """With one window a stage, what is outside the grid must not matter: a larger window changes nothing."""
    image = torch.randn(1, 1, 16, 16).double()
    exact, larger = _encoder(SMALL), _encoder(SMALL.model_copy(update={"window": 6}))
    weights = exact.state_dict()
    for name in weights:
        if name.endswith("bias_table"):  # the smaller window's offsets are the middle of the larger's
            table = torch.randn(11, 11, weights[name].shape[1]).double()
            weights[name] = table[2:9, 2:9].flatten(0, 1)
            larger.get_parameter(name).data.copy_(table.flatten(0, 1))
        else:
            larger.get_parameter(name).data.copy_(weights[name])
    exact.load_state_dict(weights)
    torch.testing.assert_close(larger(image).tokens, exact(image).tokens)


def test_gradients_with_padded_windows() -> None:
    encoder = _encoder(SMALL.model_copy(update={"depths": (2,), "heads": (2,)}))
    image = torch.randn(1, 1, 20, 12).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: encoder(x).pooled, image, fast_mode=True)
    names = ["layers.0.blocks.0.attn.relative_position_bias_table", "layers.0.blocks.1.attn.qkv.bias"]
    parameters = [encoder.get_parameter(name) for name in names]
    for name, parameter in zip(names, parameters, strict=True):

        def pooled(value: torch.Tensor, name: str = name) -> torch.Tensor:
            return torch.func.functional_call(encoder, {name: value}, (image,)).pooled

        assert torch.autograd.gradcheck(pooled, parameter.detach().requires_grad_(), fast_mode=True)


def test_cases_of_a_batch_do_not_meet() -> None:
    encoder = _encoder().eval()
    images = torch.randn(3, 1, 44, 36).double()
    together = encoder(images).tokens
    alone = torch.cat([encoder(image[None]).tokens for image in images])
    torch.testing.assert_close(together, alone)


def test_a_distant_pixel_is_out_of_reach_of_one_stage() -> None:
    """One stage of a plain and a shifted window of 4 tokens reaches 6 tokens at most."""
    encoder = _encoder(SMALL.model_copy(update={"depths": (2,), "heads": (2,)})).eval()
    image = torch.randn(1, 1, 64, 64).double()
    other = image.clone()
    other[..., 0, 0] += 1
    changed = (encoder(image).tokens != encoder(other).tokens).any(-1)[0]
    rows, columns = torch.nonzero(changed, as_tuple=True)
    assert changed.any()
    assert max(rows.max(), columns.max()) < 6


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_changes_nothing(drop_path: float) -> None:
    results = []
    for checkpointing in (False, True):
        spec = SMALL.model_copy(update={"drop_path": drop_path, "gradient_checkpointing": checkpointing})
        encoder = _encoder(spec).train()
        image = torch.linspace(-1, 1, 4 * 32 * 32).double().view(4, 1, 32, 32)
        torch.manual_seed(5)
        pooled = encoder(image).pooled
        pooled.square().sum().backward()
        results.append((pooled, {name: p.grad for name, p in encoder.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_checkpointing_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for checkpointing in (False, True):
        spec = SMALL.model_copy(update={"gradient_checkpointing": checkpointing})
        encoder = _encoder(spec).train()
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder(torch.randn(2, 1, 64, 64).double())
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_stochastic_depth_drops_whole_cases_and_keeps_the_mean() -> None:
    layer = StochasticDepth(0.25)
    kept = layer(torch.ones(20_000, 3, 2))
    factors = kept[:, 0, 0]
    assert torch.equal(kept, factors.view(-1, 1, 1).expand_as(kept))
    assert factors.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert factors.mean() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(layer.eval()(torch.ones(2, 3, 2)), torch.ones(2, 3, 2))
    assert (StochasticDepth(1.0)(torch.ones(50, 3, 2)) == 0).all()


def test_a_dropped_case_passes_a_block_unchanged() -> None:
    spec = SMALL.model_copy(update={"drop_path": 1.0})
    block = _encoder(spec).train().layers[1].blocks[1]
    tokens = torch.randn(3, 4, 4, 24).double()
    assert torch.equal(block(tokens), tokens)
    assert not torch.equal(block.eval()(tokens), tokens)


def test_drop_path_rates_rise_from_zero() -> None:
    rates = drop_path_rates(SwinSpec(depths=(2, 2, 6, 2), drop_path=0.2))
    assert [len(stage) for stage in rates] == [2, 2, 6, 2]
    flat = [rate for stage in rates for rate in stage]
    assert flat == pytest.approx([0.2 * block / 11 for block in range(12)])


def test_the_seed_gives_the_weights() -> None:
    torch.manual_seed(3)
    first = SwinEncoder(SMALL, 1).state_dict()
    torch.manual_seed(3)
    second = SwinEncoder(SMALL, 1).state_dict()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first["layers.0.blocks.0.mlp.fc1.weight"].std() == pytest.approx(0.02, rel=0.1)


def test_cam_layer_has_the_declared_layout() -> None:
    encoder = _encoder().eval()
    seen = []
    layer = encoder.cam_layer()
    encoder.get_submodule(layer.module).register_forward_hook(lambda _m, _i, out: seen.append(out))
    encoder(torch.randn(1, 1, 48, 24).double())
    assert (layer.module, layer.layout, layer.stride) == ("layers.1.blocks.1.norm1", "channels last", 8)
    assert layer.features(seen[0]).shape == (1, 24, 6, 3)


def test_initial_weights_follow_the_specification() -> None:
    """published: a deviation of 0.02 everywhere; xavier: sqrt(2 / (inputs + outputs)) of each layer."""
    spread = {}
    for rule in ("published", "xavier"):
        torch.manual_seed(0)
        encoder = SwinEncoder(SMALL.model_copy(update={"initialisation": rule}), 1)
        weight = encoder.get_parameter("layers.1.blocks.0.mlp.fc1.weight")
        spread[rule] = float(weight.detach().std())
        assert not encoder.get_parameter("layers.1.blocks.0.mlp.fc1.bias").any()
    assert spread["published"] == pytest.approx(0.02, rel=0.1)
    assert spread["xavier"] == pytest.approx((2 / (24 + 96)) ** 0.5, rel=0.1)


def test_the_mlp_is_as_wide_as_its_ratio() -> None:
    encoder = SwinEncoder(SMALL.model_copy(update={"mlp_ratio": 1.5}), 1)
    assert encoder.get_parameter("layers.0.blocks.0.mlp.fc1.weight").shape == (18, 12)
    assert encoder.get_parameter("layers.1.blocks.0.mlp.fc2.weight").shape == (24, 36)
