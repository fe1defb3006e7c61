"""The program `threefold`: one file a verb, imported when it is called."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from threefold import __version__
from threefold.cli.failures import explained
from threefold.cli.verbs import Verbs
from threefold.interruption import deaf_at_the_end
from threefold.threads import share_cores

app = typer.Typer(
    name="threefold",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(asked: bool) -> None:
    if asked:
        from threefold.cli.extras import extras_line

        typer.echo(f"threefold {__version__}\n{extras_line()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the version and the installed extras.",
        ),
    ] = False,
) -> None:
    """Classify, segment and reconstruct medical images with one shared representation.

    Example: `threefold demo hematoma --out out/demo-hematoma`
    """


def program() -> None:
    """Be the program of a process: `main`, after which no signal changes the exit code any more."""
    with explained(), deaf_at_the_end():
        main()


def main() -> None:
    """Run the program; an error is printed alone, with its exit code."""
    _speak_utf8()
    share_cores()
    with explained():
        app()


def _speak_utf8() -> None:
    """Start anew in Python's UTF-8 mode where the locale's encoding is another: it can't name every case."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # the processes that it starts have it, too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
