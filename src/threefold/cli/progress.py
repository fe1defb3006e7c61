"""Progress, interruption and failure messages of commands that process many cases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from threefold.interruption import exit_code_of, terminating_as_interrupt

if TYPE_CHECKING:
    from threefold.training.progress import TrainingProgress

Progress = Callable[[int, int], None]
"""Called with the number of finished cases and the total."""

_FEW = 20


@contextmanager
def progress_of(what: str) -> Iterator[Progress]:
    """Show progress on stderr: a bar on a terminal; when piped, a line for every tenth of many cases."""
    if not sys.stderr.isatty():

        def line(done: int, total: int) -> None:
            if total >= _FEW and done * 10 // total > (done - 1) * 10 // total:
                print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def resumable(
    progress: TrainingProgress,
    said: str | Callable[[], str] = "interrupted. Repeat the command to resume.",
) -> Iterator[None]:
    """Restore the terminal at the end; report an interruption in words and by the exit status."""
    with interruptible(said):
        try:
            yield
        finally:
            progress.stop()


@contextmanager
def interruptible(
    said: str | Callable[[], str] = "interrupted. Repeat the command to resume.",
) -> Iterator[None]:
    """Report a signal in words and by the exit status: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.

    Args:
        said: the message, or a function that returns it after the interruption.
    """
    import typer

    try:
        with terminating_as_interrupt():
            yield
    except KeyboardInterrupt as stop:
        typer.echo(said if isinstance(said, str) else said(), err=True)
        raise typer.Exit(exit_code_of(stop)) from None


def end_with_failures(folder: Path) -> None:
    """Report the cases that could not be added to a new cohort and exit with status 1; without any, return.

    Args:
        folder: of the cohort, with its provenance.json.
    """
    import json

    import typer

    failed = json.loads((folder / "provenance.json").read_text("utf-8")).get("failed", {})
    if failed:
        typer.echo(f"To retry the failed cases, remove {folder} and repeat the command.", err=True)
    end_with_left_out(failed, "provenance.json")


def end_with_left_out(failed: Mapping[str, str], where: str | None = None) -> None:
    """Report the cases that could not be used and exit with status 1; without any, return.

    Args:
        failed: the reason by case id.
        where: the file that lists all of them, if there is one.
    """
    import typer

    from threefold.cohorts.failures import listed

    for line in listed(failed):
        typer.echo(line, err=True)
    if failed:
        named = "" if where is None else f"; {where} lists them"
        typer.echo(f"Skipped {count(len(failed), 'case')} that could not be used{named}.", err=True)
        raise typer.Exit(1)


def count(number: int, what: str) -> str:
    """Return a number and what it counts: "1 epoch", "2 epochs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
