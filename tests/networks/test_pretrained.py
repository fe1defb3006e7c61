"""Import of checkpoints: what goes where, and what is refused."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from threefold.errors import RunError, WeightsError
from threefold.experiment import JointSwinSpec, SwinSpec, SwinUnetSpec
from threefold.networks.joint import JointSwin
from threefold.networks.pretrained import load_pretrained
from threefold.networks.swin import SwinEncoder
from threefold.networks.swin_unet import SwinUnet
from threefold.training.checkpoints import load_checkpoint

from .named_heads import named_heads

SMALL = SwinSpec(embed_dim=12, depths=(2, 2), heads=(2, 3), window=4)


def _network(spec: SwinSpec = SMALL, in_channels: int = 1, classes: int = 2) -> SwinUnet:
    heads = named_heads(classes=classes, labels=2, restored=in_channels)
    return SwinUnet(SwinUnetSpec(encoder=spec), in_channels=in_channels, heads=heads)


def _official(spec: SwinSpec = SMALL, in_channels: int = 3) -> dict[str, Tensor]:
    """An official Swin checkpoint: the encoder's names, a head of 1000 classes, derived buffers."""
    torch.manual_seed(1)
    weights = {
        name: torch.randn_like(value) for name, value in SwinEncoder(spec, in_channels).state_dict().items()
    }
    weights["head.weight"], weights["head.bias"] = torch.randn(1000, 24), torch.randn(1000)
    weights["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    weights["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    return weights


@pytest.mark.parametrize("layout", ["flat", "model", "state_dict", "safetensors"])
def test_official_swin(layout: str, tmp_path: Path) -> None:
    weights = _official()
    path = tmp_path / ("swin.safetensors" if layout == "safetensors" else "swin.pth")
    if layout == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights if layout == "flat" else {layout: weights, "epoch": 300}, path)
    network = _network()
    report = load_pretrained(network, path)
    own = network.state_dict()
    name = "layers.1.blocks.0.attn.qkv.weight"
    assert torch.equal(own[f"encoder.{name}"], weights[name])
    # one channel: the sum, so that a grey image gives the tokens that its three copies gave
    torch.testing.assert_close(
        own["encoder.patch_embed.proj.weight"], weights["patch_embed.proj.weight"].sum(1, keepdim=True)
    )
    for decoder in ("segmentation", "reconstruction"):  # the stage of the same resolution
        assert torch.equal(
            own[f"heads.{decoder}.stages.0.blocks.1.mlp.fc1.weight"],
            weights["layers.0.blocks.1.mlp.fc1.weight"],
        )
    assert set(report.unused) == {"head.weight", "head.bias"}
    assert "heads.classification.weight" in report.missing
    assert not any(name.startswith("encoder.") for name in report.missing)
    assert set(report.loaded) | set(report.missing) == set(own)
    text = report.as_text()
    assert str(path) in text
    assert "3 to 1 channels" in text
    assert "1000 outputs" in text


def test_decoders_stay_as_they_are_when_asked(tmp_path: Path) -> None:
    torch.save(_official(), tmp_path / "swin.pth")
    report = load_pretrained(_network(), tmp_path / "swin.pth", decoders_from_encoder=False)
    assert all(name.startswith("encoder.") for name in report.loaded)


def test_a_deeper_checkpoint_leaves_its_further_blocks(tmp_path: Path) -> None:
    deep = _official(SMALL.model_copy(update={"depths": (2, 4)}))
    torch.save(deep, tmp_path / "swin.pth")
    report = load_pretrained(_network(), tmp_path / "swin.pth")
    assert "layers.1.blocks.3.norm1.weight" in report.unused
    shallow = _official(SMALL.model_copy(update={"depths": (2, 1)}))
    torch.save(shallow, tmp_path / "swin.pth")
    report = load_pretrained(_network(), tmp_path / "swin.pth")
    assert "encoder.layers.1.blocks.1.norm1.weight" in report.missing


def test_two_channels_keep_the_sum(tmp_path: Path) -> None:
    weights = _official()
    torch.save(weights, tmp_path / "swin.pth")
    network = _network(in_channels=2)
    load_pretrained(network, tmp_path / "swin.pth")
    torch.testing.assert_close(
        network.encoder.patch_embed.proj.weight.sum(1), weights["patch_embed.proj.weight"].sum(1)
    )


def test_own_weights_come_back_whole(tmp_path: Path) -> None:
    torch.manual_seed(2)
    trained = _network()
    (tmp_path / "run").mkdir()
    save_file(trained.state_dict(), tmp_path / "run" / "weights.safetensors")
    network = _network()
    report = load_pretrained(network, tmp_path / "run")
    assert (report.missing, report.unused, report.adapted) == ((), (), ())
    torch.testing.assert_close(network.state_dict(), trained.state_dict(), rtol=0, atol=0)


def test_joint_takes_the_encoder(tmp_path: Path) -> None:
    torch.save(_official(in_channels=1), tmp_path / "swin.pth")
    joint = JointSwin(JointSwinSpec(encoder=SMALL), in_channels=1, heads=named_heads(classes=2))
    report = load_pretrained(joint, tmp_path / "swin.pth")
    assert all(name.startswith("encoder.") for name in report.loaded)
    assert "frozen.norm.weight" in report.missing


def test_wrapped_names(tmp_path: Path) -> None:
    """Swin-Unet's trainings save `swin_unet.` before each name, and `module.` on several GPUs."""
    weights = {f"module.swin_unet.{name}": value for name, value in _official().items()}
    torch.save(weights, tmp_path / "swin.pth")
    assert load_pretrained(_network(), tmp_path / "swin.pth").loaded


def test_another_size_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    torch.save(_official(SMALL.model_copy(update={"embed_dim": 24})), tmp_path / "swin.pth")
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"has shape \(.*needs \(.*network\.encoder") as caught:
        load_pretrained(network, tmp_path / "swin.pth")
    assert "swin.pth" in str(caught.value)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_a_compressed_archive_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2**20)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "packed.pth").stat().st_size < 2**16  # of 4 MiB
    assert torch.load(tmp_path / "packed.pth", weights_only=True)["weight"].numel() == 2**20
    with pytest.raises(WeightsError, match=r"packed\.pth: a compressed archive .* as torch\.save writes it"):
        load_pretrained(_network(), tmp_path / "packed.pth")
    with pytest.raises(RunError, match="a compressed archive"):
        load_checkpoint(tmp_path / "packed.pth")


def test_not_finite_is_refused(tmp_path: Path) -> None:
    weights = _official()
    weights["norm.weight"][3] = float("nan")
    torch.save(weights, tmp_path / "swin.pth")
    with pytest.raises(WeightsError, match=r"'norm\.weight' holds NaN"):
        load_pretrained(_network(), tmp_path / "swin.pth")


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("arbitrary code",))


def _write_garbage(path: Path) -> None:
    path.write_bytes(b"not a checkpoint, whatever its name says")


def _write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def _write_truncated(path: Path) -> None:
    save_file(_official(), path) if path.suffix == ".safetensors" else torch.save(_official(), path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("write", [_write_garbage, _write_nothing, _write_truncated])
def test_a_file_that_is_no_checkpoint(suffix: str, write: object, tmp_path: Path) -> None:
    path = tmp_path / f"swin{suffix}"
    write(path)  # type: ignore[operator]
    with pytest.raises(WeightsError, match=f"swin{suffix}"):
        load_pretrained(_network(), path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": _Payload()}, tmp_path / "swin.pth")
    with pytest.raises(WeightsError, match="weights_only"):
        load_pretrained(_network(), tmp_path / "swin.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Payload(), protocol=2))
    with pytest.raises(WeightsError, match="weights_only"):
        load_pretrained(_network(), tmp_path / "plain.pth")
    assert "arbitrary" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(2)], {"other.weight": torch.zeros(2)}])
def test_nothing_to_load(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "swin.pth")
    with pytest.raises(WeightsError, match=r"no tensors by name|none of its 1 weights fits"):
        load_pretrained(_network(), tmp_path / "swin.pth")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_pretrained(_network(), tmp_path / "absent.pth")
