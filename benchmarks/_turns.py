"""Contestants in processes of their own that take turns: what else the machine does meets all alike."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch

from threefold.threads import sharing_environment


class Turns:
    """Processes that answer requests in JSON lines, each with the seconds that one call took."""

    def __init__(self, commands: Mapping[str, Sequence[str]]) -> None:
        """Start a process for each name."""
        self._children = {
            name: subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **sharing_environment(os.environ)},
            )
            for name, command in commands.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._children.values():
            process.communicate()

    def medians(self, rounds: int, **request: Any) -> dict[str, float]:
        """Return each contestant's median seconds, after a call to warm up; every other round is reversed."""
        names = list(self._children)
        for name in names:
            self._ask(name, request)
        times: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                times[name].append(self._ask(name, request))
        return {name: statistics.median(values) for name, values in times.items()}

    def _ask(self, name: str, request: Mapping[str, Any]) -> float:
        process = self._children[name]
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(request), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{name}: ended without an answer; its standard error says why")
        return float(json.loads(answer))


def now() -> float:
    """Seconds to measure by: with one thread the processor's, which other work does not lengthen."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def serve(make: Callable[[], Callable[..., float]]) -> None:
    """Answer requests on standard input, until there are no more.

    What the contestant prints, when it is made and when it runs, goes to stderr.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    run = make()
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)


def ask_once(command: Sequence[str]) -> Any:
    """Return what a process printed last, as JSON."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory() -> float:
    """Return this process's peak resident memory so far, MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def matrix_peaks(precisions: Sequence[str] = ("fp32", "bf16")) -> dict[str, float]:
    """GFLOP/s of the fastest of ten square matrix products of 2048, by precision."""
    peaks = {}
    for name in precisions:
        square = torch.randn(2048, 2048).to({"fp32": torch.float32, "bf16": torch.bfloat16}[name])
        times = []
        for _ in range(10):
            start = now()
            square @ square
            times.append(now() - start)
        peaks[name] = 2 * 2048**3 / min(times) / 1e9
    return peaks
