"""Locks of folders: two processes never write into one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from threefold.errors import RunError
from threefold.paths import refuse_links_out

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_NAME = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer."""
_TURN = 60
"""Seconds that another process may take to read and write a file."""


@contextmanager
def alone_in(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder's lock, so that two processes never write into it; a killed process holds none.

    Args:
        folder: is there.
        busy: what to say where another process holds it.

    Raises:
        RunError: another process holds it, the folder can't be written, or a link in it leads elsewhere.
    """
    from filelock import Timeout

    refuse_links_out(folder)
    lock = lock_of(folder)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(busy) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RunError(
                f"{folder / LOCK_NAME}: can't be locked ({error.strerror or error}). Fix the permission, or "
                "remove what is there, then go on."
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Let one process after the other read a file and write it again, so that none undoes another's change.

    Where the file system has no locks, or the folder can't be written, nothing is waited for: writing the
    file says what is wrong.

    Raises:
        RunError: another process has held the file for a minute, or a link in its folder leads elsewhere.
    """
    from filelock import Timeout

    refuse_links_out(path.parent)
    lock = lock_of(path.parent, f".{path.name}{LOCK_NAME}")
    try:
        lock.acquire(timeout=_TURN, blocking=True)
    except Timeout:
        raise RunError(
            f"{path}: another process has been writing it for {_TURN} seconds. Repeat the command when it "
            "has ended."
        ) from None
    except OSError:
        pass  # the folder refuses: so will writing, which says how
    try:
        yield
    finally:
        lock.release()


def lock_of(folder: Path, name: str = LOCK_NAME) -> BaseFileLock:
    """Return a lock of a folder, not acquired: acquiring it fails at once where another holds it.

    The system frees it when its process ends, however that ends. What a file system without locks would
    need instead, a file that stays after a kill, is not made.
    """
    from filelock import FileLock  # 20 ms

    return FileLock(folder / name, blocking=False, thread_local=False, fallback_to_soft=False)
