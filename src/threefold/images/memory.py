"""Refuse what a header says is larger than the memory that is free, before any of it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from threefold.errors import ImageError
from threefold.images.cache import available_memory_bytes


def refuse_beyond_memory(
    path: Path, what: str, needed: int, doing: Literal["read", "prepare"] = "read"
) -> None:
    """Raise an ImageError if reading or preparing would take more bytes than are free.

    Args:
        path: the file.
        what: its size as the header states it, for example "512 x 512 x 300 voxels".
        needed: bytes that it takes at its peak.
        doing: what is to be done.
    """
    free = available_memory_bytes()
    if needed > free:
        raise ImageError(
            f"{path}: {what} would take {_size(needed)} of memory to {doing}, but {_size(free)} "
            "are free. Is the header damaged? Else free memory, or crop or downsample the image."
        )


def out_of_memory(path: Path) -> ImageError:
    """Return the error for an allocation that failed while a file was read."""
    return ImageError(
        f"{path}: memory ran out while it was read ({_size(available_memory_bytes())} are free). Free "
        "memory, or crop or downsample the image."
    )


def _size(n_bytes: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:,.1f} {unit}"
    return f"{n_bytes:,} bytes"
