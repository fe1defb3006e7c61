"""What a cache needs: content hashes, entries that are never half-written or quietly wrong, memory sizes."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError, RunError
from threefold.images.formats import is_folder
from threefold.run import write_atomically

_DIGEST = hashlib.sha256().digest_size
_UNTOLD = 4 * 2**30  # bytes that are taken to be there where the system does not tell


class ContentHashes:
    """SHA-256 of files and folders, computed once for each path, size and time of change.

    A file that is changed without a change of its size and its modification time is not noticed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Remember hashes in memory and, where a folder is given, there for the next program."""
        self._folder = folder
        self._known: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """Return the hash of a file's bytes, or of the names and hashes of a folder's files.

        Raises:
            ImageError: if it can't be read, or is neither a file nor a folder.
        """
        try:
            if is_folder(path):
                files = sorted(file for file in path.iterdir() if file.is_file())
                return _sha256("\n".join(f"{file.name} {self.of(file)}" for file in files).encode())
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for ever
                raise ImageError(f"{path}: is neither a file nor a folder.")
            state = f"{path.absolute()} {found.st_size} {found.st_mtime_ns}"
            if state not in self._known:
                self._known[state] = self._remembered(state) or self._compute(path, state)
            return self._known[state]
        except OSError as error:
            raise ImageError(f"{path}: can't be read ({error.strerror or error}).") from error

    def _memo(self, state: str) -> Path | None:
        return None if self._folder is None else self._folder / _sha256(state.encode())

    def _remembered(self, state: str) -> str | None:
        memo = self._memo(state)
        if memo is None or not memo.is_file():
            return None
        digest = memo.read_text(encoding="utf-8", errors="replace")
        return digest if len(digest) == 2 * _DIGEST and set(digest) <= set("0123456789abcdef") else None

    def _compute(self, path: Path, state: str) -> str:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        memo = self._memo(state)
        if memo is not None:
            try:
                memo.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(memo, digest)
            except (RunError, OSError):
                self._folder = None  # the folder can't be written: go on in memory
        return digest


def entry_key(meaning: Mapping[str, Any]) -> str:
    """Return the name of an entry: a hash of everything that decides what it holds (JSON values)."""
    return _sha256(json.dumps(meaning, sort_keys=True).encode())


def write_entry(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays, preceded by their checksum, in one step.

    Raises:
        RunError: if it can't be written.
        OSError: if the folder can't be made.
    """
    stream = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez(stream, **named)
    data = stream.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, hashlib.sha256(data).digest() + data)


def read_entry(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of an entry; None if there is none, or it is damaged and has to be made again."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            return None  # not written here, and may expand beyond measure
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def estimate_bytes(n_cases: int, channels: int, size: Sequence[int], targets: int) -> int:
    """Return the memory of prepared cases: float32 channels and uint8 targets (mask, structures)."""
    return n_cases * math.prod(size) * (4 * channels + targets)


def available_memory_bytes() -> int:
    """Return the memory that this process may still take: the machine's, or its container's if less."""
    return min(_machine_memory(), _container_memory())


def _machine_memory() -> int:
    try:
        with Path("/proc/meminfo").open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if not hasattr(os, "sysconf"):  # Windows
        return _UNTOLD
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # systems that do not say


def _container_memory(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return what the control group leaves, version 2 or 1; practically infinite where it sets no limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            allowed, taken = (int((root / name).read_text(encoding="utf-8")) for name in (limit, used))
            return max(0, allowed - taken)
        except (OSError, ValueError):  # not there, or "max"
            continue
    return 2**62


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
