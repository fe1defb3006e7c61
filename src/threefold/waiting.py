"""How the threads that PyTorch computes with wait for each other: awake on an idle machine, else asleep.

GNU's OpenMP runtime lets threads that wait stay awake for milliseconds at each of a network's many small
operations. On an idle machine that is fastest. Beside other work the thread that is waited for may be
without a core all that time, and the one that waits keeps it from one: steps take tens of times as long.
So it is measured, several times a second, how long this process's threads were kept from a core, and while
that is much they go to sleep instead. No result depends on it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

PERIOD = 0.1
"""Seconds between two measurements."""
BUSY, IDLE = 0.1, 0.03
"""Seconds that the threads wait for a core in a second: from the one on the machine is busy, up to the other
it is idle."""
CALM = 10
"""Measurements in a row that find an idle machine, before threads stay awake again."""
_TASKS = Path("/proc/self/task")


def can_watch() -> bool:
    """Whether this system says how long threads wait for a core, as Linux does."""
    return sys.platform.startswith("linux") and (_TASKS / str(os.getpid()) / "schedstat").is_file()


def watch_cores() -> None:
    """Let a thread of this process, which ends with it, watch the cores from now on."""
    _watch_in(os.getpid())


@cache
def _watch_in(process: int) -> None:  # a forked process has its parent's cache, but not its thread
    threading.Thread(target=_watch, name="threefold-cores", daemon=True).start()


def seconds_without_core() -> float:
    """Return how long the threads of this process, those there are now, have waited for a core."""
    waited = 0
    for task in _TASKS.iterdir():
        with suppress(OSError, ValueError, IndexError):  # it has ended
            waited += int((task / "schedstat").read_text(encoding="ascii").split()[1])
    return waited / 1e9


def _watch() -> None:
    crowd: threading.Event | None = None
    calm = 0
    waited, since = seconds_without_core(), time.monotonic()
    while True:
        time.sleep(PERIOD)
        last, before = waited, since
        waited, since = seconds_without_core(), time.monotonic()
        share = (waited - last) / (since - before)
        calm = calm + 1 if share <= IDLE else 0
        if crowd is None and share >= BUSY:
            crowd = _crowd()
        elif crowd is not None and calm >= CALM:
            crowd.set()
            crowd = None


def _crowd() -> threading.Event | None:
    """Let GNU's OpenMP runtime, where it is loaded, know of more threads than there are cores.

    It then lets threads wait awake for a hundred turns of its loop instead of 300,000. The threads that it
    is told of sleep, until the event that is returned is set.
    """
    runtime = ctypes.CDLL(None)
    if not hasattr(runtime, "GOMP_parallel"):
        return None
    work = ctypes.cast(runtime.omp_get_thread_num, ctypes.c_void_p)  # which does nothing
    more_than_cores = ctypes.c_uint((os.cpu_count() or 1) + 1)
    started, ended = threading.Event(), threading.Event()

    def crowd() -> None:
        runtime.GOMP_parallel(work, None, more_than_cores, ctypes.c_uint(0))
        started.set()
        ended.wait()  # the runtime ends a thread's team with it

    threading.Thread(target=crowd, name="threefold-crowd", daemon=True).start()
    started.wait()
    return ended
