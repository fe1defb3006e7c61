"""The study folder: the one place that knows the names of a study's files.

STUDY/
  study.yaml           the study as it was last run
  protocol.json        when each of its claims was written down, those withdrawn among them
  cohorts/NAME         a cohort that the study made; NAME.json says from what
  labels/COHORT        tables of a cohort's own structures, where a claim is held against them
  runs/COHORT/VARIANT/split-K-seed-S   the run folders
  outcomes/            how each run ended, what it took (JSON)
  logs/                what each run said
  tables/  figures/    what `study compare` made
  report.html          what `report` made of all this
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from threefold.errors import RunError, bounded
from threefold.run import RESULTS_NAME, RunFolder, make_folder, write_atomically
from threefold.studies.study_spec import CohortSource, StudySpec, load_study
from threefold.validation import read_json

OutcomeState = Literal["finished", "failed", "interrupted"]
GIB = 2**30


@dataclass(frozen=True)
class Outcome:
    """How a run of a study ended.

    Attributes:
        run: its id.
        state: finished, failed or interrupted.
        message: what it died of, or why a finished one has no evidence; else empty.
        seconds: wall time of this attempt.
        memory: largest resident memory, GiB.
    """

    run: str
    state: OutcomeState
    message: str
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    memory: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class StudyFolder:
    """Paths of a study's files."""

    path: Path

    @property
    def study(self) -> Path:
        """The study as it was last run."""
        return self.path / "study.yaml"

    @property
    def protocol(self) -> Path:
        """When each claim was written down."""
        return self.path / "protocol.json"

    @property
    def results(self) -> Path:
        """Every number, table and picture of the comparison (JSON)."""
        return self.path / RESULTS_NAME

    @property
    def tables(self) -> Path:
        """Tables of the comparison."""
        return self.path / "tables"

    @property
    def figures(self) -> Path:
        """Figures of the comparison."""
        return self.path / "figures"

    def run(self, run_id: str) -> RunFolder:
        """Return a run's folder."""
        return RunFolder(self.path / "runs" / run_id)

    def runs(self, cohort: str) -> Path:
        """Return where the runs on a cohort lie."""
        return self.path / "runs" / cohort

    def log(self, run_id: str) -> Path:
        """Return what a run said."""
        return self.path / "logs" / f"{_flat(run_id)}.log"

    def made_cohort(self, name: str) -> Path:
        """Return where a cohort that the study makes lies."""
        return self.path / "cohorts" / name

    def cohort(self, name: str, source: CohortSource) -> Path:
        """Return where a cohort lies that its runs are trained on."""
        if source.propagation is not None:
            return self.path / "cohorts" / f"{name}-propagated"
        if source.degradation is not None:
            return self.path / "cohorts" / f"{name}-degraded"
        return self.made_cohort(name) if source.folder is None else Path(source.folder)

    def labels(self, name: str) -> RunFolder:
        """Return the folder of the tables of a cohort's own structures."""
        return RunFolder(self.path / "labels" / name)

    def read(self) -> StudySpec:
        """Return the study.

        Raises:
            RunError: if the folder is not a study.
        """
        if not self.study.is_file():
            raise RunError(
                f"{self.path}: not a study folder (no {self.study.name}). Expected a folder that "
                "`threefold study run ... --out FOLDER` left."
            )
        return load_study(str(self.study))

    def write(self, study: StudySpec) -> None:
        """Write the study as it is run, making the folder; a file that says the same is left as it is."""
        make_folder(self.path)
        content = json.loads(study.model_dump_json())
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        if not self.study.is_file() or self.study.read_text(encoding="utf-8") != text:
            write_atomically(self.study, text)

    def outcome(self, run_id: str) -> Outcome | None:
        """Return how a run ended last; None where it has not."""
        path = self.outcome_file(run_id)
        if not path.is_file():
            return None
        remedy = "Remove it: the run is looked at anew."
        content = read_json(path, RunError, remedy)
        try:
            return TypeAdapter(Outcome).validate_python(content)
        except ValidationError as error:
            raise RunError(f"{path}: not how a run ended ({bounded(str(error))}). {remedy}") from None

    def is_finished(self, run_id: str) -> bool:
        """Whether a run ended well, and what it left is there."""
        outcome = self.outcome(run_id)
        return outcome is not None and outcome.state == "finished" and self.run(run_id).predictions.is_file()

    def remember(self, outcome: Outcome) -> None:
        """Write down how a run ended."""
        path = self.outcome_file(outcome.run)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(outcome), indent=2) + "\n")

    def outcome_file(self, run_id: str) -> Path:
        """Return where it is written how a run ended."""
        return self.path / "outcomes" / f"{_flat(run_id)}.json"


def variant_of(run_id: str) -> str:
    """Return the variant in a run's id."""
    return run_id.split("/")[1]


def expected_memory(plan: str, known: Mapping[str, Outcome], default: float) -> float:
    """Return what a run is taken to need, GiB.

    The most that runs of its variant needed; before one has finished, the most that any run needed, and at
    least the default. What a run held that was killed or failed is less than it needed.
    """
    alike = [each for each in known.values() if variant_of(each.run) == variant_of(plan)]
    if any(each.state == "finished" for each in alike):
        return max(each.memory for each in alike)
    finished = [each for each in known.values() if each.state == "finished"]
    return max([default, *(each.memory for each in (*finished, *alike))])


def _flat(run_id: str) -> str:
    return run_id.replace("/", "--")
