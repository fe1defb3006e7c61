"""Where the runs of a study are computed: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from threefold.errors import UsageError
from threefold.images.readers import READERS
from threefold.studies.study_folder import GIB, Outcome
from threefold.studies.study_worker import run_in_process
from threefold.threads import available_cores, control_groups

SPARE = 0.5
"""GiB that are left free."""

_MEMORY_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of a control group, by controller (version 2 has none): its limit, what is used, what can be dropped."""


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

    def stop(self) -> list[Outcome]:
        """Interrupt what is running, wait until it has written its state, and return how it ended."""
        ...

    def close(self) -> None:
        """Give back what the pool holds, when nothing runs any more."""
        ...


class LocalPool:
    """Processes of this machine, as many as its cores or GPUs serve and its memory holds."""

    def __init__(self, folder: Path, threads: int, workers: int, gpus: Sequence[str] = ()) -> None:
        self._folder, self._threads, self._workers, self._gpus = folder, threads, workers, gpus
        self._threadpool = ThreadPoolExecutor(workers)
        self._running: dict[Future[Outcome], tuple[str, float]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._gpu_of: dict[str, str] = {}
        self._stopping = False

    def has_room(self, memory: float) -> bool:
        """Whether a worker is free and the memory suffices; with nothing running it always does."""
        if not self._running:
            return True
        claims = [(expected, self._resident(run)) for run, expected in self._running.values()]
        return len(self._running) < self._workers and fits(memory, free_memory(), claims)

    def submit(self, run: str, memory: float) -> None:
        """Start a run, on the GPU with the fewest."""
        gpu = min(self._gpus, key=[*self._gpu_of.values()].count, default=None)
        if gpu is not None:
            self._gpu_of[run] = gpu

        def started(process: subprocess.Popen[bytes]) -> None:
            self._processes[run] = process
            if self._stopping:  # it came too late to be stopped with the others
                process.terminate()

        future = self._threadpool.submit(
            run_in_process, self._folder, run, self._threads, gpu=gpu, started=started
        )
        self._running[future] = (run, memory)

    def wait(self) -> list[Outcome]:
        """Wait until a run ends; return those that did."""
        ended, _ = wait(self._running, return_when=FIRST_COMPLETED)
        return [self._collect(future) for future in ended]

    def stop(self) -> list[Outcome]:
        """Interrupt the processes, wait until they have written their state, and return how they ended."""
        self._stopping = True
        for process in list(self._processes.values()):
            if process.returncode is None:
                process.terminate()
        ended, _ = wait(self._running)
        return [self._collect(future) for future in ended]

    def close(self) -> None:
        """End the threads that wait for processes."""
        self._threadpool.shutdown()

    def _collect(self, future: Future[Outcome]) -> Outcome:
        run, _ = self._running.pop(future)
        self._processes.pop(run, None)
        self._gpu_of.pop(run, None)
        try:
            return future.result()
        except OSError as error:  # the system starts no process now, or the log can't be written
            return Outcome(run, "failed", f"it could not be started: {error}", 0.0, 0.0)

    def _resident(self, run: str) -> float:
        process = self._processes.get(run)
        return 0.0 if process is None else resident_memory(process.pid)


class RayPool:
    """Workers of a Ray cluster, which see the study's folder under the same path, and the working folder too
    where networks, tasks or metrics are imported from it.

    Args:
        folder: the study's.
        threads: CPU threads of a run.
        address: of the cluster (auto, ray://HOST:PORT); `local` starts one of this machine.

    Raises:
        UsageError: Ray is not installed, the cluster does not answer, or no node has so many cores.
    """

    def __init__(self, folder: Path, threads: int, address: str) -> None:
        self._ray = _ray()
        self._owned = not self._ray.is_initialized()
        if self._owned:
            try:
                self._ray.init(address=address, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(
                    f"--ray {address}: no cluster answers ({error}). Start one (`ray start --head`), or use "
                    "--ray local."
                ) from error
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores = max(node.get("CPU", 0) for node in nodes)
        if cores < threads:
            self.close()
            raise UsageError(
                f"the study's `threads` is {threads}, but no node of the Ray cluster has more than "
                f"{cores:.0f} cores. Lower it, or add a larger node."
            )
        self._largest = int(max(node.get("memory", 0) for node in nodes))
        self._gpus = int(any(node.get("GPU", 0) >= 1 for node in nodes))
        self._folder, self._home, self._threads = folder.resolve(), Path.cwd(), threads
        self._settings = {name: os.environ[name] for name in (READERS,) if name in os.environ}
        self._task = self._ray.remote(_interruptible(run_in_process))
        self._running: dict[Any, str] = {}

    def has_room(self, memory: float) -> bool:
        """Whether it can be queued: up to twice as many as the cluster's cores or GPUs serve.

        That keeps the cluster busy and lets one that grows by demand grow, and those that come later ask for
        the memory that was learned by then.
        """
        there = self._ray.cluster_resources()
        slots = there.get("GPU", 0.0) if self._gpus else there.get("CPU", 0.0) // self._threads
        return bool(len(self._running) < 2 * max(1, slots))

    def submit(self, run: str, memory: float) -> None:
        """Queue a run; one that needs more memory than any node has gets the largest node for itself."""
        task = self._task.options(
            num_cpus=self._threads,
            num_gpus=self._gpus,
            memory=min(int(memory * GIB), self._largest),
            max_retries=0,
        )
        self._running[task.remote(self._folder, run, self._threads, self._home, self._settings)] = run

    def wait(self) -> list[Outcome]:
        """Wait until a run ends; return those that did."""
        ended, _ = self._ray.wait(list(self._running))
        return [self._collect(task) for task in ended]

    def stop(self) -> list[Outcome]:
        """Cancel what is queued, interrupt what is running, wait until it has written its state, and return
        how it ended."""
        stopped = dict(self._running)
        for task in stopped:
            self._ray.cancel(task)
        if stopped:
            self._ray.wait(list(stopped), num_returns=len(stopped))
        self._running = {}
        return [Outcome(run, "interrupted", "stopped by a signal", 0.0, 0.0) for run in stopped.values()]

    def close(self) -> None:
        """Leave the cluster; end it where it is this process's own."""
        if self._owned:
            self._ray.shutdown()

    def _collect(self, task: Any) -> Outcome:
        run = self._running.pop(task)
        try:
            outcome: Outcome = self._ray.get(task)
        except self._ray.exceptions.RayError as error:  # its node or worker died, which is the run's failure
            return Outcome(run, "failed", f"the Ray worker was lost: {error}", 0.0, 0.0)
        return outcome


def pool_of(folder: Path, threads: int, workers: int | None, ray: str | None) -> Pool:
    """Return what computes the runs of a study: processes of this machine, or a Ray cluster.

    Args:
        folder: the study's.
        threads: CPU threads of a run.
        workers: runs at a time on this machine; None: one a GPU, else as many as its cores have threads.
        ray: address of a cluster; None: this machine.

    Raises:
        UsageError: as `RayPool`.
    """
    if ray is not None:
        return RayPool(folder, threads, ray)
    import torch

    gpus = torch.cuda.device_count()
    return LocalPool(folder, threads, workers or local_workers(threads, gpus), visible_gpus(gpus))


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
    """Return the memory that can be taken without swapping, GiB; what the control group leaves, if less.

    Infinite where the system does not tell (no /proc): the number of workers alone is the limit then.
    """
    available = _fields(Path("/proc/meminfo")).get("MemAvailable")
    free = math.inf if available is None else available * 1024
    for controller, (limit, used, cached) in _MEMORY_FILES.items():
        for group in control_groups(controller):
            try:
                allowed, taken = (int((group / name).read_text(encoding="utf-8")) for name in (limit, used))
            except (OSError, ValueError):  # no such version of control groups, or no limit ("max")
                continue
            # Pages of files that were read count as used, and go when memory is asked for.
            free = min(free, allowed - taken + _fields(group / "memory.stat").get(cached, 0))
    return free / GIB


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file of lines `name number` or `name: number unit`; none where it is absent."""
    try:
        words = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) for line in words if len(line) > 1}


def resident_memory(process: int) -> float:
    """Return the resident memory of a process, GiB; 0 where it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / GIB


def visible_gpus(count: int) -> tuple[str, ...]:
    """Return the names that CUDA_VISIBLE_DEVICES knows the GPUs by; a scheduler may have given only some."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(given.split(",")[:count]) if given else tuple(map(str, range(count)))


def local_workers(threads: int, gpus: int) -> int:
    """Return how many runs go at once on this machine: one a GPU, else as many as its cores have threads."""
    return gpus or max(1, available_cores() // threads)


def _interruptible(work: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Return what Ray can cancel: it interrupts the worker.

    A node that a script starts in the background ignores interrupts, and its workers inherit that.
    """

    def told(folder: Path, run: str, threads: int, home: Path, settings: Mapping[str, str]) -> Outcome:
        os.environ.update(settings)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return work(folder, run, threads, home=home)

    return told


def _ray() -> Any:
    if find_spec("ray") is None:
        raise UsageError("--ray needs Ray, which is not installed: pip install 'threefold[ray]'.")
    import ray

    return ray
