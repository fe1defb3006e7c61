"""Threads that share a machine with other work.

OpenMP, which PyTorch computes with, lets threads that wait for each other stay awake: for milliseconds with
GNU's runtime, at each of a network's many small operations. Beside other work the thread that is waited for
may be without a core all that time, and the one that waits keeps it from one. So threads stay awake only
for as long as bridges two operations, and then sleep. How they wait changes no result. How many there are
changes sums in their last bits, so a run goes on with as many as it began with.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_WAITING = {
    "OMP_WAIT_POLICY": "PASSIVE",  # every runtime: sleep at once
    "GOMP_SPINCOUNT": "3000",  # GNU's, which goes by this one: sleep after some 50 to 150 microseconds
}
_OWN_CHOICE = (*_WAITING, "KMP_BLOCKTIME")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def share_cores() -> None:
    """Let the threads of this process, and of those that it starts, give way to other work.

    Every entry point calls it before it computes, and before PyTorch is imported where it can: the runtimes
    read the environment once. Where PyTorch is there already, GNU's runtime is given more threads than there
    are cores, since it then keeps its waiting short by itself. What the user set stays.
    """
    added = sharing_environment(os.environ)
    os.environ.update(added)
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if _WAITING.keys() <= added.keys():  # so PyTorch's runtime did not read it
        _crowd()
    if _THREADS[0] in added and torch.get_num_threads() > available_cores():
        torch.set_num_threads(available_cores())


def sharing_environment(given: Mapping[str, str], threads: int | None = None) -> dict[str, str]:
    """Return what to add to an environment so that a process started with it gives way to other work.

    Args:
        given: the environment, whose own way of waiting stays.
        threads: of the process. None: as many as the environment or else the runtimes choose, which is one
            for each core; where a control group allows fewer cores than the system shows, as many as those.
    """
    added = {} if any(name in given for name in _OWN_CHOICE) else dict(_WAITING)
    if threads is not None:
        return added | dict.fromkeys(_THREADS, str(threads))
    cores = available_cores()
    if cores < _visible_cores():
        added |= {name: str(cores) for name in _THREADS if name not in given}
    return added


def available_cores() -> int:
    """Return how many cores this process may keep busy: by its affinity and its control groups' quotas."""
    return min([_visible_cores(), *(max(1, round(quota)) for quota in _quotas())])


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads, and afterwards with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """Yield how many cores each control group that this process is in allows, versions 1 and 2."""
    groups: dict[str, str] = {"": "", "cpu": ""}  # within a container the path may be the host's: root too
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            groups |= {name: path.strip("/") for name in controllers.split(",")}
    for root, path, files in (
        (_CGROUP, groups[""], ("cpu.max",)),
        (_CGROUP / "cpu", groups["cpu"], ("cpu.cfs_quota_us", "cpu.cfs_period_us")),
    ):
        for group in (root / path, *(root / path).parents):
            if group.is_relative_to(root):
                with suppress(OSError, ValueError):  # no such version of control groups, or no limit ("max")
                    quota, period = " ".join(
                        (group / name).read_text(encoding="utf-8") for name in files
                    ).split()
                    if int(quota) > 0:
                        yield int(quota) / int(period)


def _crowd() -> None:
    """Let GNU's OpenMP runtime, where it is loaded, know of more threads than there are cores.

    It then waits awake for a hundred turns of its loop instead of 300,000. The threads belong to one that
    sleeps as long as the process lives, and do so too.
    """
    if not sys.platform.startswith("linux"):
        return
    runtime = ctypes.CDLL(None)
    if not hasattr(runtime, "GOMP_parallel"):
        return
    work = ctypes.cast(runtime.omp_get_thread_num, ctypes.c_void_p)  # which does nothing
    more_than_cores = ctypes.c_uint(_visible_cores() + 1)
    started = threading.Event()

    def crowd() -> None:
        runtime.GOMP_parallel(work, None, more_than_cores, ctypes.c_uint(0))
        started.set()
        threading.Event().wait()

    threading.Thread(target=crowd, name="threefold-crowd", daemon=True).start()
    started.wait()
