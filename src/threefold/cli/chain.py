"""`threefold chain`: label propagation and the trainings that build on it, as one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside
from threefold.cli.progress import end_with_left_out, resumable
from threefold.cli.reports import show_chain
from threefold.cohorts.cohort import read_cohort


def chain(
    name: Annotated[
        str, typer.Argument(help="A chain's name (aortic-arch, aortic-arch-demo) or a YAML file.")
    ],
    cohort: Annotated[
        Path, typer.Option(help="Folder with cohort.yaml (which declares atlases) and cases.csv.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the propagated cohort and the runs.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Overrides: STAGE.key.path=value, propagation.key=value, or key.path=value of all trainings."
        ),
    ] = None,
    allow_outside: AllowOutside = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers as JSON: stages, gains.")
    ] = False,
) -> None:
    """Propagate atlas labels, then train segmenter, classifier and both jointly, each from the one before.

    The same command resumes an interrupted chain and skips finished stages. A case that has become unreadable
    is excluded from the results of a stage and reported; the exit status is then 1.

    Example: `threefold chain aortic-arch --cohort my-cohort --out my-chain joint.training.epochs=50`
    """
    from threefold.studies.chain_spec import load_chain, stage_experiments

    spec, changes = load_chain(name), overrides or []
    # Report errors in the arguments before importing anything slow.
    stage_experiments(spec, changes, out / "runs")
    cases = read_cohort(cohort, allow_outside=allow_outside)

    from threefold.studies.chain import plan_chain, run_chain
    from threefold.training.progress import terminal_progress

    progress = terminal_progress()
    with resumable(progress):
        report = run_chain(plan_chain(spec, changes, out), cases, progress)
    show_chain(report, as_json=as_json)
    stages = report.stages.values()
    end_with_left_out({case: why for each in stages for case, why in each.predictions.left_out.items()})
