"""Where the time of an epoch goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("data", "augmentation", "forward", "backward", "step", "validation")


class Clock:
    """Adds up wall-clock seconds per phase; on a GPU it waits for the work of a phase to be done."""

    def __init__(self, device: torch.device) -> None:
        self._wait = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time of the block to a phase."""
        start = time.perf_counter()
        yield
        if self._wait:
            torch.cuda.synchronize()
        self._seconds[phase] += time.perf_counter() - start

    def row(self) -> dict[str, float]:
        """Return seconds_<phase> for every phase."""
        return {f"seconds_{phase}": self._seconds[phase] for phase in PHASES}
