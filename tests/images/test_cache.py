from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from threefold.errors import ImageError
from threefold.images import cache
from threefold.images.cache import (
    ContentHashes,
    available_memory_bytes,
    entry_key,
    estimate_bytes,
    read_entry,
    write_entry,
)

ARRAYS = {"image": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "mask": np.eye(3, dtype=np.uint8)}


def test_an_entry_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "ab" / "abc"
    assert read_entry(path) is None
    write_entry(path, ARRAYS)
    read = read_entry(path)
    assert read is not None
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    assert [file.name for file in path.parent.iterdir()] == ["abc"]


@given(where=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), cut=st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_an_entry_is_noticed(tmp_path: Path, where: float, value: int, cut: bool) -> None:
    path = tmp_path / "entry"
    write_entry(path, ARRAYS)
    data = bytearray(path.read_bytes())
    place = int(where * len(data))
    data[place] ^= value
    path.write_bytes(data[:place] if cut else data)
    assert read_entry(path) is None


def test_keys_tell_meanings_apart_and_not_their_order() -> None:
    assert entry_key({"a": 1, "b": [1.5, None]}) == entry_key({"b": [1.5, None], "a": 1})
    assert len({entry_key({"a": value}) for value in (1, 2, "1", None, [1])}) == 5


@pytest.mark.parametrize("remembered", [False, True])
def test_hashes_follow_content(tmp_path: Path, remembered: bool) -> None:
    memo = tmp_path / "hashes" if remembered else None
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    hashes = ContentHashes(memo)
    first = hashes.of(file)
    assert (
        first
        == ContentHashes(memo).of(file)
        == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    )
    file.write_bytes(b"three")
    assert hashes.of(file) != first
    copy = tmp_path / "b.bin"
    copy.write_bytes(b"one")
    assert hashes.of(copy) == first
    with pytest.raises(ImageError, match=r"gone\.bin: no such file"):
        hashes.of(tmp_path / "gone.bin")


def test_a_folders_hash_follows_names_and_content(tmp_path: Path) -> None:
    found = set()
    for files in ({"1": b"a", "2": b"b"}, {"1": b"b", "2": b"a"}, {"1": b"a"}, {"1": b"a", "3": b"b"}):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        found.add(ContentHashes().of(folder))
    assert len(found) == 4


def test_a_file_is_hashed_once_also_over_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    digest = ContentHashes(tmp_path / "hashes").of(file)
    monkeypatch.setattr(cache.hashlib, "file_digest", None)  # reading it again would fail
    assert ContentHashes(tmp_path / "hashes").of(file) == digest
    monkeypatch.undo()
    (memo,) = (tmp_path / "hashes").iterdir()
    memo.write_bytes(b"\xff damaged")
    assert ContentHashes(tmp_path / "hashes").of(file) == digest
    assert ContentHashes(file / "not a folder").of(file) == digest


def test_the_estimate_is_what_the_arrays_take() -> None:
    image, mask = np.zeros((3, 20, 30), np.float32), np.zeros((20, 30), np.uint8)
    assert estimate_bytes(7, 3, (20, 30), 2) == 7 * (image.nbytes + 2 * mask.nbytes)


def test_available_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_memory_bytes() > 2**20
    if hasattr(os, "sysconf"):
        assert available_memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert cache._container_memory(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert cache._container_memory(tmp_path) == 2**62  # more than any machine has
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("5000")
    (old / "memory.usage_in_bytes").write_text("6000")
    assert cache._container_memory(tmp_path) == 0
