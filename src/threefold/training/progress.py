"""Progress of a training: a bar on a terminal, a line an epoch when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class TrainingProgress(Protocol):
    """What a training tells while it runs. It is sent to the process that trains: nothing is open before."""

    def start(self, epochs: int, done: int) -> None:
        """Training starts; `done` of `epochs` epochs were trained before."""
        ...

    def step(self, stage: str, done: int, total: int) -> None:
        """A stage (for example `preparing`, `epoch 3/20`) came forward."""
        ...

    def epoch(self, row: Mapping[str, float], metric: str, seconds_left: float) -> None:
        """An epoch ended; `row` is its line of metrics.csv, `metric` the monitored column."""
        ...

    def say(self, text: str) -> None:
        """Say a sentence."""
        ...

    def stop(self) -> None:
        """Training ended, well or not."""
        ...


class Lines:
    """A plain line an epoch, on standard error."""

    def __init__(self) -> None:
        self._epochs = 0

    def start(self, epochs: int, done: int) -> None:
        """Keep the number of epochs."""
        self._epochs = epochs

    def step(self, stage: str, done: int, total: int) -> None:
        """Say nothing: steps are too many for a log."""

    def epoch(self, row: Mapping[str, float], metric: str, seconds_left: float) -> None:
        """Print loss, monitored metric and the time left."""
        self.say(epoch_line(row, metric, self._epochs, seconds_left))

    def say(self, text: str) -> None:
        """Print the sentence."""
        print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Nothing is open."""


class Bar:
    """A progress bar of the current stage, and a line an epoch above it."""

    def __init__(self) -> None:
        self._epochs = 0
        self._bar: Progress | None = None

    def start(self, epochs: int, done: int) -> None:
        """Open the bar."""
        self._epochs = epochs
        self._open()

    def step(self, stage: str, done: int, total: int) -> None:
        """Move the bar."""
        bar = self._open()
        bar.update(bar.task_ids[0], description=stage, completed=done, total=total)

    def epoch(self, row: Mapping[str, float], metric: str, seconds_left: float) -> None:
        """Print the epoch's line above the bar."""
        self.say(epoch_line(row, metric, self._epochs, seconds_left))

    def say(self, text: str) -> None:
        """Print the sentence above the bar."""
        self._open().console.print(text, highlight=False, markup=False)

    def stop(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open(self) -> Progress:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task("starting", total=None)
            self._bar.start()
        return self._bar


class Silence:
    """Says nothing."""

    def start(self, epochs: int, done: int) -> None:
        """Say nothing."""

    def step(self, stage: str, done: int, total: int) -> None:
        """Say nothing."""

    def epoch(self, row: Mapping[str, float], metric: str, seconds_left: float) -> None:
        """Say nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def stop(self) -> None:
        """Say nothing."""


def terminal_progress() -> TrainingProgress:
    """Return a bar where standard error is a terminal, else plain lines."""
    return Bar() if sys.stderr.isatty() else Lines()


def epoch_line(row: Mapping[str, float], metric: str, epochs: int, seconds_left: float) -> str:
    """Return `epoch 3/20  loss 0.512  validation auc 0.81  left 2 min`."""
    name = metric.removeprefix("validation_").replace("_", " ")
    width = len(str(epochs))
    return (
        f"epoch {int(row['epoch']):>{width}}/{epochs}  loss {row['train_loss']:.4f}  "
        f"validation {name} {row[metric]:.4f}  left {_duration(seconds_left)}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Remaining:
    """Estimates the seconds left from the epochs trained so far in this process."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._trained = 0

    def after_epoch(self, epochs_left: int) -> float:
        """Count an epoch; return the seconds left."""
        self._trained += 1
        return (time.monotonic() - self._start) / self._trained * epochs_left
