"""`threefold plan`: what a training would do, or why it would be refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold.cli.auto import asked_experiment, chosen_experiment
from threefold.cli.options import AllowOutside, Budget

if TYPE_CHECKING:
    from threefold.training.auto import Choice
    from threefold.training.plan import Plan


def plan(
    recipe: Annotated[
        str,
        typer.Argument(help="A recipe's name (`threefold recipes`), a YAML file, or auto: chosen for you."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides: key.path=value, for example training.epochs=3.")
    ] = None,
    *,
    cohort: Annotated[Path, typer.Option(help="The cohort's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    budget: Budget = None,
    allow_outside: AllowOutside = False,
) -> None:
    """Show what a training would do: parts by site and target, stages, network, memory, time per epoch.

    Writes nothing. Reports the errors with which training would stop. With auto, prints each
    choice with its reason.

    Example: `threefold plan auto --cohort my-cohort --budget 30m`

    Example: `threefold plan hematoma/demo --cohort my-cohort`
    """
    from threefold.cohorts.cohort import read_cohort
    from threefold.reporting.table import Table, show
    from threefold.training.plan import plan as make_plan
    from threefold.training.progress import terminal_progress

    changes = overrides or []
    choices: tuple[Choice, ...] = ()
    experiment = asked_experiment(recipe, changes, budget)
    cases = read_cohort(cohort, allow_outside=allow_outside)
    if experiment is None:
        experiment, choices = chosen_experiment(cases, changes, budget, quiet=as_json)
    progress = terminal_progress()
    try:
        made = make_plan(experiment, cases, progress=progress)
    finally:
        progress.stop()
    content = {**_described(made), **({"choices": [vars(choice) for choice in choices]} if choices else {})}
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    parts = content["parts"]
    columns = list(dict.fromkeys(name for part in parts.values() for name in part))
    show(
        Table(
            f"Parts of the {content['split']} split",
            ("part", *columns),
            tuple((name, *(str(part.get(column, 0)) for column in columns)) for name, part in parts.items()),
        )
    )
    for stage in content["stages"]:
        tasks = "; ".join(
            f"{name} ({task['kind']}" + (f" of {task['target']}" if task["target"] else "") + ")"
            for name, task in stage["tasks"].items()
        )
        typer.echo(f"{stage['name']}: {tasks}")
        typer.echo(
            f"  network {stage['network']}, {stage['parameters'] / 1e6:.2f} million parameters"
            f" ({stage['trained'] / 1e6:.2f} trained); about {stage['memory_bytes'] / 1e9:.2g} GB"
        )
        typer.echo(
            f"  {stage['epochs']} epochs of {stage['steps']} steps, about {stage['seconds_per_epoch']:.2g} s "
            "each on this machine at its current load"
        )
    lasting = f" --budget {budget}" if budget else ""
    typer.echo(f"Next: threefold train {recipe} --cohort {cohort} --out RUN{lasting}")


def _described(made: Plan) -> dict[str, Any]:
    """Return a plan as plain data."""
    from threefold.cohorts.splits import PARTS
    from threefold.training.plan import measure_cost

    stages = []
    for stage in made.stages:
        experiment, cost = stage.experiment, measure_cost(made, stage)
        stages.append(
            {
                "name": experiment.name,
                "network": experiment.network.kind,
                "tasks": {
                    name: {"kind": task.kind, "target": stage.targets.get(name)}
                    for name, task in experiment.tasks.items()
                },
                "epochs": experiment.training.epochs,
                **vars(cost),
            }
        )
    return {
        "experiment": made.experiment.name,
        "cohort": made.cohort.spec.name,
        "split": made.split.kind,
        "parts": {part: _counts(made, part) for part in PARTS},
        "stages": stages,
        "warnings": list(made.warnings),
    }


def _counts(made: Plan, part: str) -> dict[str, int]:
    """Return the numbers of cases and patients of a part, of cases by site, and of cases with each target."""
    cases = made.cases(part)
    sites = Counter(case.site for case in cases)
    targets = {name: sum(name in case.targets for case in cases) for name in made.cohort.spec.all_targets}
    patients = len({case.patient_id for case in cases})
    return {"cases": len(cases), "patients": patients, **targets, **dict(sorted(sites.items()))}
