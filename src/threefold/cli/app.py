"""The program `threefold`: one file a verb, whose heavy imports happen when the verb runs."""

from __future__ import annotations

import sys

import typer

from threefold.errors import ThreefoldError

app = typer.Typer(
    name="threefold",
    help="Classify, segment and reconstruct medical images with one shared representation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Run the program; an error that a user can act on is printed alone, with its exit code."""
    try:
        app()
    except ThreefoldError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
