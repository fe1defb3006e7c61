"""`threefold recipes`: the shipped experiments."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from threefold.experiments import experiment_yaml, load_ensemble, load_experiment, recipe_names

recipes = typer.Typer(
    help="Recipes: list them, show one. Example: `threefold recipes list`", no_args_is_help=True
)


@recipes.command("list")
def list_recipes(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of names and descriptions.")
    ] = False,
) -> None:
    """List the recipes, one per line.

    Example: `threefold recipes list`
    """
    experiments = {name: load_ensemble(name) or load_experiment(name) for name in recipe_names()}
    if as_json:
        rows = [{"name": name, "description": e.description} for name, e in experiments.items()]
        typer.echo(json.dumps(rows, indent=2))
        return
    width = max(len(name) for name in experiments)
    for name, experiment in experiments.items():
        typer.echo(f"{name:<{width}}  {experiment.description}")


@recipes.command("show")
def show_recipe(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Print an experiment with all defaults, as a starting point for your own.

    Example: `threefold recipes show hematoma/mtl-cls-seg-rec training.epochs=50`
    """
    together = None if overrides else load_ensemble(recipe)
    experiment = together or load_experiment(recipe, overrides or [])
    typer.echo(experiment.model_dump_json(indent=2) if as_json else experiment_yaml(experiment).rstrip())
