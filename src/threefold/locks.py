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


def lock_of(folder: Path) -> BaseFileLock:
    """Return the lock of a folder, not acquired: acquiring it fails at once where another holds it.

    The system frees it when its process ends, however that ends. What a file system without locks would
    need instead, a file that stays after a kill, is not made.
    """
    from filelock import FileLock  # 20 ms

    return FileLock(folder / LOCK_NAME, blocking=False, thread_local=False, fallback_to_soft=False)
