"""`threefold plugins`: the components available by name, and those that failed to load."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from threefold.core.registry import GROUPS, Plugin, listed


def plugins(
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON list of group, name, place, source and problem."),
    ] = False,
) -> None:
    """List the networks, tasks, metrics, phantoms and readers that have a short name, built in or from
    installed packages, with their location and source, and the error if they failed to load.

    Your own need no short name: `network.kind`, `kind` of a task, `evaluation.metrics`, the name of a phantom
    and the environment variable THREEFOLD_READERS accept MODULE:NAME.

    Example: `threefold plugins`
    """
    found = [plugin for group in GROUPS for plugin in listed(group, load=True)]
    if as_json:
        typer.echo(json.dumps([asdict(plugin) for plugin in found], indent=2))
        return
    for group in dict.fromkeys(plugin.group for plugin in found):
        typer.echo(f"{group}:")
        _print([plugin for plugin in found if plugin.group == group])


def _print(plugins: list[Plugin]) -> None:
    name, place = (max(len(getattr(one, key)) for one in plugins) for key in ("name", "place"))
    for one in plugins:
        typer.echo(f"  {one.name:<{name}}  {one.place:<{place}}  {one.source}")
        if one.problem:
            typer.echo(f"    can't be loaded: {one.problem}")
