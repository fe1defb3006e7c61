"""The program `threefold`: one file a verb, whose heavy imports happen when the verb runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from threefold import __version__
from threefold.cli.chain import chain
from threefold.cli.check import check
from threefold.cli.degrade import degrade
from threefold.cli.demo import demo
from threefold.cli.evaluate import evaluate
from threefold.cli.explain import explain
from threefold.cli.exporting import exporting
from threefold.cli.failures import explained
from threefold.cli.finish import finish
from threefold.cli.importing import importing
from threefold.cli.phantom import phantom
from threefold.cli.predict import predict
from threefold.cli.probe import probe
from threefold.cli.progress import interruptible
from threefold.cli.propagate import propagate
from threefold.cli.recipes import recipes
from threefold.cli.report import report
from threefold.cli.schema import schema
from threefold.cli.similarity import similarity
from threefold.cli.study import study
from threefold.cli.train import train
from threefold.threads import share_cores


class _Verbs(TyperGroup):
    """All verbs: each may be stopped by Ctrl-C, SIGTERM or SIGHUP, says so, and exits with its code."""

    def invoke(self, ctx: Any) -> Any:
        with interruptible("interrupted."):
            return super().invoke(ctx)


app = typer.Typer(
    name="threefold",
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"threefold {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Classify, segment and reconstruct medical images with one shared representation.

    Example: `threefold demo hematoma --out out/demo-hematoma`
    """


app.add_typer(demo, name="demo")
app.command()(check)
app.command()(propagate)
app.command()(degrade)
app.command()(train)
app.command()(finish)
app.command()(chain)
app.command()(evaluate)
app.command()(explain)
app.command()(probe)
app.command()(similarity)
app.command()(predict)
app.add_typer(study, name="study")
app.command()(report)
app.add_typer(recipes, name="recipes")
app.add_typer(phantom, name="phantom")
app.add_typer(importing, name="import")
app.add_typer(exporting, name="export")
app.command()(schema)


def main() -> None:
    """Run the program; an error is printed alone, with its exit code."""
    share_cores()
    with explained():
        app()
