"""`threefold schema`: the JSON schema of experiments, cohorts and studies, for editors."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer


class Subject(StrEnum):
    """What a schema describes."""

    EXPERIMENT = "experiment"
    COHORT = "cohort"
    STUDY = "study"


def schema(
    subject: Annotated[
        Subject, typer.Argument(help="experiment, cohort (cohort.yaml), or study.")
    ] = Subject.EXPERIMENT,
) -> None:
    """Print a JSON schema, for completion and validation of YAML files in editors.

    Example: `threefold schema experiment > experiment.schema.json`
    """
    from threefold.cohorts.cohort import CohortSpec
    from threefold.experiment import Experiment, Spec
    from threefold.studies.study_spec import StudySpec

    models: dict[Subject, type[Spec]] = {
        Subject.EXPERIMENT: Experiment,
        Subject.COHORT: CohortSpec,
        Subject.STUDY: StudySpec,
    }
    typer.echo(json.dumps(models[subject].model_json_schema(), indent=2))
