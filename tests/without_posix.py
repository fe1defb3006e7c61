"""What test_portability.py runs: the package where there is nothing of POSIX, as on Windows."""

from __future__ import annotations

import importlib
import importlib.abc
import os
import pathlib
import pkgutil
import signal
import sys
from typing import Any

# What other packages need of POSIX, where they see it, is loaded before it is hidden.
PACKAGES = (
    "cc3d filelock lightning matplotlib.pyplot nibabel pandas PIL.Image pydicom safetensors.torch "
    "scipy.ndimage scipy.stats skimage.measure torch._dynamo torch.distributed torch.multiprocessing typer"
)
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}
FUNCTIONS = {
    os: (
        "fork forkpty wait wait3 wait4 waitid WNOHANG sysconf getuid geteuid getgid getegid getpgid getpgrp "
        "setsid setpgid killpg mkfifo mknod chown lchown fchown fchmod sched_getaffinity sched_setaffinity "
        "statvfs fstatvfs nice uname getloadavg sync fdatasync pread pwrite posix_fallocate lockf "
        "O_DIRECTORY O_NOFOLLOW"
    ),
    signal: (
        "SIGKILL SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGCHLD SIGSTOP SIGCONT SIGQUIT alarm setitimer pause "
        "pthread_sigmask pthread_kill sigwait"
    ),
}


class Hidden(importlib.abc.MetaPathFinder):
    """Finds none of the modules that are to be hidden."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide() -> None:
    """Take from this process what Windows has not: modules, functions, /proc, folders that can be opened."""
    for name in PACKAGES.split():
        importlib.import_module(name)
    sys.meta_path.insert(0, Hidden())
    for name in MODULES:
        sys.modules.pop(name, None)
    for module, names in FUNCTIONS.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    open_path, open_file = pathlib.Path.open, os.open

    def without_proc(self: pathlib.Path, *arguments: Any, **options: Any) -> Any:
        if self.as_posix().startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return open_path(self, *arguments, **options)

    def files_only(path: Any, *arguments: Any, **options: Any) -> int:
        if pathlib.Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *arguments, **options)

    pathlib.Path.open, os.open = without_proc, files_only  # type: ignore[method-assign]


def import_all() -> None:
    """Import every module of the package."""
    import threefold

    for module in pkgutil.walk_packages(threefold.__path__, "threefold."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def use(folder: pathlib.Path) -> None:
    """Lock, write, ask the system, and run a process."""
    from threefold.images.cache import available_memory_bytes
    from threefold.locks import alone_in
    from threefold.run import RunFolder
    from threefold.studies.study_pools import free_memory, local_workers, resident_memory
    from threefold.studies.study_worker import run_in_process
    from threefold.training.folder import is_held
    from threefold.training.launch import terminating_as_interrupt

    with alone_in(folder, "busy"), terminating_as_interrupt():
        assert is_held(RunFolder(folder))
        RunFolder(folder).write_status(state="finished")
    assert not is_held(RunFolder(folder))
    assert RunFolder(folder).read_status() == {"state": "finished"}
    assert available_memory_bytes() > 0
    assert free_memory() == float("inf")
    assert resident_memory(os.getpid()) == 0
    assert local_workers(1, 0) >= 1
    outcome = run_in_process(folder, "cohort/variant/split-0-seed-0", 1)
    assert (outcome.state, outcome.memory) == ("failed", 0.0), outcome
    assert "not a study folder" in outcome.message, outcome


if __name__ == "__main__":
    hide()
    assert not [name for name in sys.modules if name.startswith("threefold")]
    import_all()
    use(pathlib.Path(sys.argv[1]))
