"""Half-written files and folders: how they are named, and the removal of those whose process was killed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_KEPT_OF_NAME = 40
_A_DAY = 86_400.0
_PARTIAL = re.compile(r"\.(?P<name>.*)\.(?P<process>\d+)(?:@(?P<machine>[A-Za-z0-9-]+))?\.partial", re.DOTALL)


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Remove what processes that were killed left half-written in a folder, files and folders.

    Those of a process that is alive stay. Whether one is can't be known of another machine that shares the
    folder; what is from there goes when nothing was written to it for a day.

    Args:
        folder: need not be there; looked at once a process.
        name: only what was to become this; empty: all.
    """
    _remove_abandoned(folder.absolute(), name[:_KEPT_OF_NAME])


@lru_cache(maxsize=4096)
def _remove_abandoned(folder: Path, name: str) -> None:
    with suppress(OSError):
        for entry in os.scandir(folder):
            found = _PARTIAL.fullmatch(entry.name)
            if found is None or (name and found["name"] != name) or not _abandoned(entry, found):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    Path(entry.path).unlink()


def _abandoned(entry: os.DirEntry[str], found: re.Match[str]) -> bool:
    if found["machine"] not in (None, _machine()) or os.name == "nt":  # there a process can't be asked
        with suppress(OSError):
            return time.time() - entry.stat(follow_symlinks=False).st_mtime > _A_DAY
        return False
    try:
        os.kill(int(found["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's
        return False
    return False


def partial_of(path: Path) -> Path:
    """Return where a file or folder is made; the name says by whom, and is never longer than disks allow."""
    return path.with_name(f".{path.name[:_KEPT_OF_NAME]}.{os.getpid()}@{_machine()}.partial")


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:24] or "-"
