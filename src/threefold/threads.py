"""Threads that share a machine with other work.

How they wait for each other changes no result (`waiting`). How many there are changes sums in their last
bits, so a run goes on with as many as it began with.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from threefold.waiting import can_watch, watch_cores

_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}
_OWN_CHOICE = (*_ASLEEP, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ALONE = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy's threads stay awake whatever the machine does, and its products here are too small to need them."""
_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def share_cores() -> None:
    """Let the threads of this process, and of those that it starts, give way to other work.

    Every entry point calls it before it computes, and before PyTorch is imported where it can: the runtimes
    read the environment once. What the user set stays.
    """
    added = sharing_environment(os.environ)
    if can_watch() and not any(name in os.environ for name in _OWN_CHOICE):
        watch_cores()
    os.environ.update(added)
    torch = sys.modules.get("torch")
    if torch is not None and _THREADS[0] in added and torch.get_num_threads() > available_cores():
        torch.set_num_threads(available_cores())
    if "numpy" in sys.modules and _ALONE.items() <= added.items():
        _limit_numpy()


def sharing_environment(given: Mapping[str, str], threads: int | None = None) -> dict[str, str]:
    """Return what to add to an environment so that a process started with it gives way to other work.

    Args:
        given: the environment, whose own way of waiting stays; without one, threads that wait sleep at once
            where it can't be watched whether the machine is busy.
        threads: of the process. None: as many as the environment or else the runtimes choose, which is one
            for each core; where a control group allows fewer cores than the system shows, as many as those.
    """
    added = {name: number for name, number in _ALONE.items() if name not in given}
    if not can_watch() and not any(name in given for name in _OWN_CHOICE):
        added |= _ASLEEP
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


def _limit_numpy() -> None:
    """Let NumPy (not PyTorch), which has read the environment by now, compute with one thread."""
    from threadpoolctl import ThreadpoolController

    ThreadpoolController().select(prefix="libscipy_openblas").limit(limits=1)


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """Yield how many cores each control group that this process is in allows, versions 1 and 2."""
    for controller, files in (("", ("cpu.max",)), ("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"))):
        for group in control_groups(controller):
            with suppress(OSError, ValueError):  # no such version of control groups, or no limit ("max")
                quota, period = " ".join((group / name).read_text(encoding="utf-8") for name in files).split()
                if int(quota) > 0:
                    yield int(quota) / int(period)


def control_groups(controller: str) -> Iterator[Path]:
    """Yield the control group that this process is in, and those that it is in: each may have a limit.

    Args:
        controller: of version 1, such as cpu or memory; empty: of version 2, whose groups have all of them.
    """
    own = ""
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                own = path.strip("/")
    root = _CGROUP / controller
    group = root / own
    # Within a container the path may be the host's, of which only the root is there.
    for folder in dict.fromkeys((group, *group.parents, root)):
        if folder.is_relative_to(root):
            yield folder
