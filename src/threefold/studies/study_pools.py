"""Where the runs of a study are computed: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from threefold.errors import UsageError
from threefold.studies.study_folder import GIB, Outcome
from threefold.studies.study_worker import run_in_process

SPARE = 0.5
"""GiB that are left free."""


class Pool(Protocol):
    """Computes runs."""

    def has_room(self, memory: float) -> bool:
        """Whether a run that needs `memory` GiB can be submitted now."""
        ...

    def submit(self, run: str, memory: float) -> None:
        """Start a run, or queue it; `memory` GiB is what it is taken to need."""
        ...

    def wait(self) -> list[Outcome]:
        """Wait until a run ends; return those that did."""
        ...

    def stop(self) -> None:
        """Interrupt what is running, and wait until it has written its state."""
        ...


class LocalPool:
    """Processes of this machine, as many as its cores or GPUs serve and its memory holds."""

    def __init__(self, folder: Path, threads: int, workers: int, gpus: int = 0) -> None:
        self._folder, self._threads, self._workers = folder, threads, workers
        self._threadpool = ThreadPoolExecutor(workers)
        self._running: dict[Future[Outcome], tuple[str, float]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._gpus = list(range(gpus))
        self._gpu_of: dict[str, int] = {}

    def has_room(self, memory: float) -> bool:
        """Whether a worker is free and the memory suffices; with nothing running it always does."""
        if not self._running:
            return True
        claims = [(expected, self._resident(run)) for run, expected in self._running.values()]
        return len(self._running) < self._workers and fits(memory, free_memory(), claims)

    def submit(self, run: str, memory: float) -> None:
        """Start a run."""
        gpu = self._gpus.pop(0) if self._gpus else None
        if gpu is not None:
            self._gpu_of[run] = gpu

        def started(process: subprocess.Popen[bytes]) -> None:
            self._processes[run] = process

        future = self._threadpool.submit(
            run_in_process, self._folder, run, self._threads, gpu=gpu, started=started
        )
        self._running[future] = (run, memory)

    def wait(self) -> list[Outcome]:
        """Wait until a run ends; return those that did."""
        ended, _ = wait(self._running, return_when=FIRST_COMPLETED)
        return [self._collect(future) for future in ended]

    def stop(self) -> None:
        """Interrupt the processes, and wait until they have written their state."""
        for process in list(self._processes.values()):
            if process.returncode is None:
                process.terminate()
        wait(self._running)

    def _collect(self, future: Future[Outcome]) -> Outcome:
        run, _ = self._running.pop(future)
        self._processes.pop(run, None)
        if run in self._gpu_of:
            self._gpus.append(self._gpu_of.pop(run))
        return future.result()

    def _resident(self, run: str) -> float:
        process = self._processes.get(run)
        return 0.0 if process is None else resident_memory(process.pid)


class RayPool:
    """Workers of a Ray cluster, which see the study's folder under the same path."""

    def __init__(self, folder: Path, threads: int, address: str, gpus: float = 0) -> None:
        self._ray = _ray()
        if not self._ray.is_initialized():
            self._ray.init(address=None if address == "local" else address, log_to_driver=False)
        self._folder, self._threads, self._gpus = folder, threads, gpus
        self._task = self._ray.remote(run_in_process)
        self._running: list[Any] = []

    def has_room(self, memory: float) -> bool:
        """Whether it can be queued: always, Ray starts it where cores and memory are free."""
        return True

    def submit(self, run: str, memory: float) -> None:
        """Queue a run."""
        task = self._task.options(
            num_cpus=self._threads, num_gpus=self._gpus, memory=int(memory * GIB), max_retries=0
        )
        self._running.append(task.remote(self._folder.resolve(), run, self._threads))

    def wait(self) -> list[Outcome]:
        """Wait until a run ends; return those that did."""
        ended, self._running = self._ray.wait(self._running)
        return list(self._ray.get(ended))

    def stop(self) -> None:
        """Cancel what is queued, interrupt what is running."""
        for task in self._running:
            self._ray.cancel(task)
        self._ray.wait(self._running, num_returns=len(self._running))
        self._running = []


def fits(needed: float, free: float, running: list[tuple[float, float]]) -> bool:
    """Whether a run fits beside those that are running, each of which may still grow to what it needs.

    Args:
        needed: GiB of the new run.
        free: GiB that are free now.
        running: what each is taken to need and what it holds now, GiB.
    """
    promised = sum(max(0.0, expected - resident) for expected, resident in running)
    return free - promised - SPARE >= needed


def free_memory() -> float:
    """Return the memory that can be taken without swapping, GiB; what the control group leaves, if less."""
    with Path("/proc/meminfo").open() as stream:
        fields = dict(line.split(":", 1) for line in stream)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free / GIB


def resident_memory(process: int) -> float:
    """Return the resident memory of a process, GiB; 0 where it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / GIB


def local_workers(threads: int, gpus: int) -> int:
    """Return how many runs go at once on this machine: one a GPU, else as many as its cores have threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return gpus or max(1, cores // threads)


def _ray() -> Any:
    if find_spec("ray") is None:
        raise UsageError("--ray needs Ray, which is not installed: pip install 'threefold[ray]'.")
    import ray

    return ray
