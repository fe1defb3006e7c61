"""Stopping by a signal: Ctrl-C, a scheduler's SIGTERM and a closed terminal are answered alike."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ASKED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal stopped the program; `exit_code` says which, as shells do: 130, 143, 129."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def exit_code_of(stop: KeyboardInterrupt) -> int:
    """Return the exit code that says which signal stopped the program."""
    return stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT


@contextmanager
def terminating_as_interrupt() -> Iterator[None]:
    """Raise `Stopped` on the first SIGINT, SIGTERM or SIGHUP; outside the main thread nothing changes.

    On the first alone: what follows writes down what was done, which a second signal does not disturb. A
    signal that this process ignores (as `nohup` wants it) stays ignored. A forked process that inherits this
    does not raise: its work is the parent's to end.
    """
    previous: dict[int, Any] = {}
    try:
        _raise_on_the_first(previous)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


@contextmanager
def deaf_at_the_end() -> Iterator[None]:
    """As `terminating_as_interrupt`, around all that a process does: once it is done, signals change nothing.

    The interpreter takes a second to end, in which a signal would otherwise end a finished command as if it
    had failed.
    """
    previous: dict[int, Any] = {}
    _raise_on_the_first(previous)
    try:
        yield
    finally:
        for each in previous:
            signal.signal(each, signal.SIG_IGN)


def _raise_on_the_first(previous: dict[int, Any]) -> None:
    """Answer the first signal with `Stopped`; `previous` gets the handlers that were there.

    Raises:
        ValueError: this is not the main thread.
    """
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> Any:
        if os.getpid() != owner:
            return
        for each in previous:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    for each in _ASKED:
        handler = signal.getsignal(each)
        outer = getattr(handler, "__qualname__", None) == stop.__qualname__
        if outer or handler in (None, signal.SIG_IGN):
            continue  # an outer call's, another library's, or ignored on purpose
        previous[each] = signal.signal(each, stop)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore signals that ask to stop while a few lines are written; outside the main thread nothing changes.

    A signal to a process group, and the starter's own signal to its processes, come twice.
    """
    try:
        previous = {
            each: signal.signal(each, signal.SIG_IGN)
            for each in _ASKED
            if signal.getsignal(each) is not None  # another library's, which could not be put back
        }
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def leave_quietly(worker: int = 0) -> None:
    """Let a process that serves another leave the signals to that: Ctrl-C is not its own, SIGTERM ends it.

    A worker that dies of a signal to the whole group looks like one that crashed, and the work like failed.
    """
    for each in _ASKED:
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
