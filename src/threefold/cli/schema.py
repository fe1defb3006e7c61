"""`threefold schema`: the JSON schema of experiments and cohorts, for editors."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer


class Subject(StrEnum):
    """What a schema describes."""

    EXPERIMENT = "experiment"
    COHORT = "cohort"


def schema(
    subject: Annotated[
        Subject, typer.Argument(help="experiment, or cohort (cohort.yaml).")
    ] = Subject.EXPERIMENT,
) -> None:
    """Print a JSON schema; editors complete and check YAML files with it.

    Example: `threefold schema experiment > experiment.schema.json`
    """
    from threefold.cohorts.cohort import CohortSpec
    from threefold.experiment import Experiment

    model = Experiment if subject is Subject.EXPERIMENT else CohortSpec
    typer.echo(json.dumps(model.model_json_schema(), indent=2))
