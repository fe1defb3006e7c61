"""Checkpoints are whole or absent, hold data only, and fit the network they are given to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from threefold.errors import RunError, WeightsError
from threefold.training.checkpoints import load_checkpoint, load_network, save_checkpoint


def test_a_checkpoint_comes_back_as_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    network = nn.Linear(3, 2)
    save_checkpoint(path, {"epoch": 3, "network": network.state_dict(), "history": [{"loss": 1.5}]})
    assert torch.load(path, weights_only=True)["epoch"] == 3
    content = load_checkpoint(path)
    assert content["history"] == [{"loss": 1.5}]
    assert torch.equal(content["network"]["weight"], network.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes()
    resource = pytest.importorskip("resource", reason="limits the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (5000, hard)
    )  # the kernel refuses to write more, as a full disk
    try:
        with pytest.raises(RunError, match=r"last\.ckpt: could not be written .* --resume"):
            save_checkpoint(path, {"epoch": 2, "network": {"weight": torch.zeros(10_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"epoch": 1})

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(RunError, match="Permission denied"):
            save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path)["epoch"] == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"last\.ckpt: not a readable checkpoint"):
        load_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "last.ckpt"
    torch.save({"format": 1, "network": Evil()}, path)
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_another_file_of_torch_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"model": {}}, path)
    with pytest.raises(RunError, match="expected a checkpoint of format 2"):
        load_checkpoint(path)


def test_another_networks_weights_are_refused_with_what_differs(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = network[0].weight.clone()
    other = {"0.weight": torch.zeros(4, 3), "0.bias": torch.zeros(2), "head": torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        load_network(network, other, "best.ckpt")
    message = str(caught.value)
    assert "0.weight: shape (4, 3) in the file, (2, 3) in the network" in message
    assert "1.weight: missing in the file" in message
    assert "head: not in the network" in message
    assert torch.equal(network[0].weight, before)


def test_a_checkpoint_of_before_the_checksums_is_read_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"format": 1, "epoch": 3}, path)
    assert load_checkpoint(path)["epoch"] == 3
    assert "last.ckpt has no checksum" in caplog.text


def test_a_checkpoint_that_lost_its_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"epoch": 3})
    torch.save(torch.load(path, weights_only=True), path)
    with pytest.raises(RunError, match=r"last\.ckpt: expected a checksum at its end"):
        load_checkpoint(path)
