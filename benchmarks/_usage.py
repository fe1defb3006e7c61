"""What one command takes of the processor and the memory, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

_SCRIPT = "import sys; from threefold.cli.app import main; sys.argv = ['threefold', *sys.argv[1:]]; main()"


def usage_of(*arguments: str) -> tuple[float, float]:
    """Return the CPU seconds and the peak MiB (ru_maxrss) of one command of the program.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-c", _SCRIPT, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
