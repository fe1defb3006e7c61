"""`threefold models`: the trained models that the package ships."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from threefold.errors import UsageError
from threefold.models.store import (
    description_in,
    is_model,
    model_names,
    read_card,
    run_path,
    warning_in,
)
from threefold.run import RunFolder

models = typer.Typer(
    help="Trained models of the package: list them, show one. Example: `threefold models list`",
    no_args_is_help=True,
)


@models.command("list")
def list_models(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of names and descriptions.")
    ] = False,
) -> None:
    """List the models, one per line.

    Example: `threefold models list`
    """
    cards = {name: read_card(RunFolder(run_path(name))) for name in model_names()}
    if as_json:
        rows = [{"name": name, "description": description_in(card)} for name, card in cards.items()]
        typer.echo(json.dumps(rows, indent=2))
        return
    width = max(map(len, cards), default=0)
    for name, card in cards.items():
        typer.echo(f"{name:<{width}}  {description_in(card)}")


@models.command("show")
def show_model(
    model: Annotated[str, typer.Argument(help="A model's name (`threefold models list`).")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the model reads and answers as JSON.")
    ] = False,
) -> None:
    """Print a model's card: purpose, training data, measured accuracy, warning.

    Example: `threefold models show threefold/head-ct`
    """
    folder = RunFolder(run_path(model))
    if not is_model(model):
        raise UsageError(f"{model}: is no model of the package, but {', '.join(model_names())}.")
    card = read_card(folder)
    typer.echo(json.dumps(_facts(model, folder, card), indent=2) if as_json else card.rstrip())


def _facts(name: str, folder: RunFolder, card: str) -> dict[str, Any]:
    """Return what a program may want to know of a model before it uses it."""
    from threefold.experiments import read_experiment
    from threefold.validation import read_json

    experiment, cohort = read_experiment(folder.experiment), folder.read_cohort()["spec"]
    return {
        "name": name,
        "description": description_in(card),
        "warning": warning_in(card),
        "folder": str(folder.path),
        "bytes": folder.weights.stat().st_size,
        "modality": cohort["modality"],
        "unit": cohort["intensity"]["unit"],
        "preprocessing": experiment.data.preprocessing.model_dump(mode="json"),
        "network": experiment.network.model_dump(mode="json"),
        "tasks": list(experiment.tasks),
        "classes": cohort["classes"],
        "threshold": folder.read_status().get("threshold"),
        "trained_on": read_json(folder.trained_on, UsageError, ""),
    }
