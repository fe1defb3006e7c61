"""`threefold demo`: a published system from data to results, on a synthetic cohort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.progress import resumable
from threefold.cli.reports import show_chain
from threefold.experiments import load_experiment

_OUT = Path("out/demo-hematoma")
_OUT_ARCH = Path("out/demo-aortic-arch")
_CHAIN = "aortic-arch-demo"

demo = typer.Typer(
    help="Demos: phantom, training, evaluation and figures. Example: `threefold demo hematoma`",
    no_args_is_help=True,
)


@demo.callback()
def _group() -> None:
    """Run a published system from data to results, on a synthetic cohort."""


@demo.command()
def hematoma(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the recipe hematoma/demo: key.path=value ...")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for cohort and run; an interrupted demo resumes.")] = _OUT,
    seed: Annotated[int, typer.Option(help="Random seed of phantom, split and training.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON at the end.")] = False,
) -> None:
    """Train MTL-Swin-Unet (cls + seg + rec) on a small head-CT phantom and evaluate it by hospital.

    Example: `threefold demo hematoma --out out/demo-hematoma --seed 1`
    """
    experiment = load_experiment(
        "hematoma/demo", [f"training.seed={seed}", f"data.split.seed={seed}", *(overrides or [])]
    )

    from threefold.reporting.table import show
    from threefold.reporting.tables import evaluation_json, evaluation_tables
    from threefold.studies.demos import hematoma_demo
    from threefold.training.progress import terminal_progress

    progress = terminal_progress()
    with resumable(progress):
        report = hematoma_demo(experiment, out, seed=seed, progress=progress)
    if as_json:
        typer.echo(json.dumps(evaluation_json(report.evaluation), indent=2))
        return
    show(evaluation_tables(report.evaluation)[0])
    typer.echo(f"Tables: {report.tables[0].parent}\nFigures: {report.figures[0].parent}")
    typer.echo(f"Pictures of the cohort: {out / 'cohort' / 'previews'}")
    typer.echo(f"Report: threefold report {report.tables[0].parents[1]}")


@demo.command("aortic-arch")
def aortic_arch(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Overrides of the chain {_CHAIN}: STAGE.key.path=value, propagation.key=value, or "
            "key.path=value for every training."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for cohorts and runs; an interrupted demo resumes.")
    ] = _OUT_ARCH,
    seed: Annotated[int, typer.Option(help="Random seed of all steps.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON at the end.")] = False,
) -> None:
    """Propagate atlas labels to a small fetal-heart phantom, then train segmenter and classifier jointly.

    Example: `threefold demo aortic-arch --out out/demo-aortic-arch --seed 1`
    """
    from threefold.studies.chain_spec import load_chain, stage_experiments

    chain = load_chain(_CHAIN)
    changes = [
        f"training.seed={seed}",
        f"data.split.seed={seed}",
        f"propagation.seed={seed}",
        *(overrides or []),
    ]
    stage_experiments(chain, changes, out / "runs")  # report errors before importing anything slow

    from threefold.studies.chain import plan_chain
    from threefold.studies.demos import aortic_arch_demo
    from threefold.training.progress import terminal_progress

    progress = terminal_progress()
    with resumable(progress):
        report = aortic_arch_demo(plan_chain(chain, changes, out), seed=seed, progress=progress)
    show_chain(report, as_json=as_json)
    typer.echo(f"Pictures of the cohort: {out / 'cohort' / 'previews'}", err=as_json)
    last = [*report.stages.values()][-1].tables[0].parents[1]
    typer.echo(f"Report of the last run: threefold report {last}", err=as_json)
