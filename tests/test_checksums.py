"""A file that is not what was written is refused, or read as what was written."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from threefold.checksums import (
    checksum_of,
    seal_object,
    seal_tensors,
    verify_object,
    verify_tensors,
    write_table,
)
from threefold.errors import PredictionsError, RunError, ThreefoldError, WeightsError
from threefold.evaluation.predictions import read_predictions, write_predictions
from threefold.networks.pretrained import load_pretrained
from threefold.run import write_atomically
from threefold.training.checkpoints import load_checkpoint, save_checkpoint

DAMAGES = 250


def damages(whole: bytes, seed: int) -> Iterator[bytes]:
    """Yield the content with one bit flipped, anywhere; cut short; and with something behind it."""
    draw = random.Random(seed)
    for _ in range(DAMAGES):
        place = draw.randrange(len(whole))
        yield whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :]
    for keep in range(0, len(whole), max(1, len(whole) // 40)):
        yield whole[:keep]
    for more in (b"\0", b"\n", whole[-30:]):
        yield whole + more


def _checkpoint(path: Path) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(0)
    network = {"w": torch.randn(8, 8, generator=generator)}
    save_checkpoint(path, {"epoch": 3, "network": network, "history": [{"loss": 1.5}]})

    def read() -> Any:
        content = load_checkpoint(path)
        return content["epoch"], content["network"]["w"].tolist(), content["history"]

    return read


def _weights(path: Path) -> Callable[[], Any]:
    network = torch.nn.Linear(9, 5)
    with torch.no_grad():
        network.weight.copy_(torch.arange(45.0).view(5, 9))
        network.bias.zero_()
    write_atomically(path, seal_tensors(save(dict(network.state_dict()), {"threefold": "1"})))

    def read() -> Any:
        load_pretrained(network, path)
        return network.weight.tolist(), network.bias.tolist()

    return read


def _predictions(path: Path) -> Callable[[], Any]:
    table = pd.DataFrame({"case_id": [f"c{n}" for n in range(9)], "label": ["a", "b", ""] * 3})
    chances = np.linspace(0.05, 0.95, 9)
    write_predictions(table.assign(probability_a=chances, probability_b=1 - chances), path)
    return lambda: read_predictions(path).table.to_csv()


KINDS: dict[str, tuple[Callable[[Path], Callable[[], Any]], type[ThreefoldError]]] = {
    "last.ckpt": (_checkpoint, RunError),
    "weights.safetensors": (_weights, WeightsError),
    "predictions.csv": (_predictions, PredictionsError),
}


def test_an_object_that_was_changed_is_refused_and_its_seal_is_not_in_it() -> None:
    content = {"rows": [{"n": 3, "value": 0.1 + 0.2, "low": None}]}
    path = Path("x")
    sealed = json.loads(json.dumps(seal_object(content)))
    assert verify_object(sealed, path, RunError, "Again.") == content
    assert verify_object(content, path, RunError, "Again.") == content
    sealed["rows"][0]["n"] = 4
    with pytest.raises(RunError, match=r"x: is not what was written.*Again\."):
        verify_object(sealed, path, RunError, "Again.")


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_by_name_or_changes_nothing(tmp_path: Path, name: str) -> None:
    prepare, error = KINDS[name]
    path = tmp_path / name
    read = prepare(path)
    expected, whole = read(), path.read_bytes()
    refused = 0
    for damaged in damages(whole, seed=1):
        path.write_bytes(damaged)
        found, refusal = _read_or_refused(read, error)
        assert found == expected if refusal is None else str(path) in refusal
        refused += refusal is not None
    assert refused > DAMAGES * 0.9


def _read_or_refused(read: Callable[[], Any], error: type[ThreefoldError]) -> tuple[Any, str | None]:
    try:
        return read(), None
    except error as refusal:
        return None, str(refusal)


@pytest.mark.parametrize("name", KINDS)
def test_the_refusal_says_what_was_expected_and_found(tmp_path: Path, name: str) -> None:
    prepare, error = KINDS[name]
    path = tmp_path / name
    read = prepare(path)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(error, match=rf"{name}: .*expected SHA-256 [0-9a-f]{{64}}, found [0-9a-f]{{64}}.*opy"):
        read()


def test_damage_to_a_tables_checksum_is_refused_as_well(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    read = _predictions(path)
    beside = checksum_of(path)
    for damaged in (b"", b"\n", b"\xff\xfe", beside.read_bytes().replace(b"a", b"b"), b"0" * 10**6):
        beside.write_bytes(damaged)
        with pytest.raises(PredictionsError, match="expected SHA-256") as refusal:
            read()
        assert len(str(refusal.value)) < 1500
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(PredictionsError, match=r"expected a table, whose checksum is in .* found no file"):
        read()
    (tmp_path / "elsewhere").rename(path)
    beside.unlink()
    assert read()  # a table that someone else wrote


def test_a_tables_checksum_is_one_that_the_systems_own_tool_reads(tmp_path: Path) -> None:
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("needs sha256sum")
    write_table(tmp_path / "a.csv", "case_id\n1\n")
    checked = subprocess.run([tool, "--check", "a.csv.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.stdout == "a.csv: OK\n"


def test_a_kill_amid_the_writing_of_a_table_leaves_no_checksum_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    write_table(path, "old")
    for stop_at in ("a.csv", "a.csv.sha256"):
        with monkeypatch.context() as patch:
            patch.setattr("threefold.checksums.write_atomically", _stopping(stop_at))
            with pytest.raises(KeyboardInterrupt):
                write_table(path, "new")
        assert not checksum_of(path).exists()


def _stopping(name: str) -> Callable[[Path, bytes | str], None]:
    def write(path: Path, content: bytes | str) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        write_atomically(path, content)

    return write


def test_sealed_weights_are_plain_safetensors_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {"b": torch.ones(3), "a": torch.arange(7, dtype=torch.int16)}
    contents = {seal_tensors(save(tensors, {"threefold": "1", "other": "2"})) for _ in range(20)}
    assert len(contents) == 1
    path.write_bytes(contents.pop())
    for name, value in load_file(path).items():
        assert torch.equal(value, tensors[name])
    with safe_open(path, "pt") as file:
        assert file.metadata()["threefold"] == "1"
    assert verify_tensors(path, WeightsError, "")


def test_weights_of_others_carry_none_and_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"a": torch.ones(3)}))
    assert not verify_tensors(path, WeightsError, "")
