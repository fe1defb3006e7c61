"""Stopping by a signal: a scheduler's SIGTERM is answered as Ctrl-C is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def terminating_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM (a scheduler's stop) as Ctrl-C; outside the main thread nothing changes.

    Once: what follows is the writing down of what was done, which a second SIGTERM does not disturb.
    """

    def interrupt(signum: int, frame: FrameType | None) -> Any:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM while a few lines are written; outside the main thread nothing changes.

    A signal to a process group, and the starter's own signal to its processes, come twice.
    """
    asked = (signal.SIGINT, signal.SIGTERM)
    try:
        previous = [signal.signal(each, signal.SIG_IGN) for each in asked]
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for each, handler in zip(asked, previous, strict=True):
            signal.signal(each, handler)
