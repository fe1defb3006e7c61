"""What a verb that goes through many cases says."""

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
"""Called with the number of cases that are done and the number of all."""

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
    said: str | Callable[[], str] = "interrupted. The same command goes on where it was.",
) -> Iterator[None]:
    """Give the terminal back at the end; an interruption is answered in words and by the exit status."""
    with interruptible(said):
        try:
            yield
        finally:
            progress.stop()


@contextmanager
def interruptible(
    said: str | Callable[[], str] = "interrupted. The same command goes on where it was.",
) -> Iterator[None]:
    """Answer a signal in words and by the exit status: 130 of Ctrl-C, 143 of SIGTERM, 129 of SIGHUP.

    Args:
        said: the words; or what finds them once it is known how far the work came.
    """
    import typer

    try:
        with terminating_as_interrupt():
            yield
    except KeyboardInterrupt as stop:
        typer.echo(said if isinstance(said, str) else said(), err=True)
        raise typer.Exit(exit_code_of(stop)) from None


def end_with_failures(folder: Path) -> None:
    """Name the cases that could not be brought into a new cohort, and end with exit status 1; else nothing.

    Args:
        folder: of the cohort, with its provenance.json.
    """
    import json

    import typer

    failed = json.loads((folder / "provenance.json").read_text("utf-8")).get("failed", {})
    if failed:
        typer.echo(f"To try again what failed, remove {folder} and repeat the command.", err=True)
    end_with_left_out(failed, "provenance.json")


def end_with_left_out(failed: Mapping[str, str], where: str | None = None) -> None:
    """Name the cases that could not be used, and end with exit status 1; nothing where there are none.

    Args:
        failed: why, by case id.
        where: the file that names them all, if there is one.
    """
    import typer

    from threefold.cohorts.failures import listed

    for line in listed(failed):
        typer.echo(line, err=True)
    if failed:
        named = "" if where is None else f"; {where} says which"
        typer.echo(f"{count(len(failed), 'case')} could not be used, and left out{named}.", err=True)
        raise typer.Exit(1)


def count(number: int, what: str) -> str:
    """Return a number and what it counts: "1 epoch", "2 epochs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
