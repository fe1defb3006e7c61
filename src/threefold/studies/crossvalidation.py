"""Cross-validation: a recipe trained once a fold, as a study, and each case predicted out of fold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.cohorts.splits import foldable_sites
from threefold.errors import RunError, UsageError
from threefold.experiments import load_experiment
from threefold.interruption import undisturbed
from threefold.locks import alone_in
from threefold.reporting.run_report import Report
from threefold.run import make_folder
from threefold.runs.crossvalidated import evaluate_crossvalidated, gather
from threefold.studies.study import run_study
from threefold.studies.study_cohorts import name_of
from threefold.studies.study_folder import Outcome, StudyFolder
from threefold.studies.study_pools import Pool
from threefold.studies.study_spec import StudySpec, plan_runs
from threefold.training.plan import require_split
from threefold.training.progress import TrainingProgress
from threefold.validation import parse_spec

By = Literal["patient", "site"]
_OURS = ("kind", "folds", "fold", "test")
_SPLIT = "data.split."


@dataclass(frozen=True)
class CrossValidation:
    """A recipe in folds.

    Attributes:
        out: its folder.
        study: the trainings, one a split.
        names: of the folds: their numbers, or the sites that are left out.
    """

    out: Path
    study: StudySpec
    names: tuple[str, ...]

    @property
    def folder(self) -> StudyFolder:
        """The folder of the study underneath."""
        return StudyFolder(self.out / "folds")


def plan_crossvalidation(
    recipe: str,
    cohort: Cohort,
    out: Path,
    *,
    folds: int = 5,
    by: By = "patient",
    overrides: Sequence[str] = (),
) -> CrossValidation:
    """Return what is trained to cross-validate a recipe.

    Sites that the recipe's split holds out (data.split.hold_out; by patient, the site group `external` unless
    it says otherwise) train in no fold. Each of their patients is predicted by one fold's network, as any
    other.

    Args:
        recipe: a recipe's name, or a YAML file.
        cohort: the cases.
        out: the folder that gets it all.
        folds: by patient, how many.
        by: patient: folds of patients, stratified as a split is. site: each fold leaves one site out.
        overrides: `key.path=value` for every training.

    Raises:
        ExperimentError: the recipe does not exist, or an override is not valid.
        UsageError: an override says how the cases are split.
        CohortError: the cohort can't be divided so, or a fold lacks the cases for training or selection.
    """
    for override in overrides:
        key = override.partition("=")[0].removeprefix(_SPLIT)
        if override.startswith(_SPLIT) and key in _OURS:
            raise UsageError(
                f"{override}: the folds say how the cases are split. Use --folds and --by; "
                "data.split.hold_out, validation and seed can be set."
            )
    asked = load_experiment(recipe, list(overrides))
    if by == "site":
        names = foldable_sites(cohort, asked.data.split)
        splits = [{"kind": "leave-one-site-out", "folds": None, "fold": fold} for fold in range(len(names))]
    else:
        names = tuple(map(str, range(folds)))
        splits = [{"kind": "patient", "folds": folds, "fold": fold} for fold in range(folds)]
    for split in splits:  # before the folder is made
        keys = [f"{_SPLIT}{key}={json.dumps(value)}" for key, value in split.items()]
        require_split(load_experiment(recipe, [*overrides, *keys]), cohort)
    is_file = recipe.endswith((".yaml", ".yml"))
    variant = name_of(Path(recipe).stem if is_file else recipe.rpartition("/")[2], "recipe")
    content = {
        "name": f"{variant}-{'by-site' if by == 'site' else f'{folds}-folds'}",
        "description": f"{recipe} in {len(names)} folds by {by}.",
        "cohorts": {
            name_of(cohort.folder.resolve().name, "cohort"): {"folder": str(cohort.folder.resolve())}
        },
        "variants": {variant: {"recipe": str(Path(recipe).resolve()) if is_file else recipe}},
        "overrides": tuple(overrides),
        "seeds": (asked.training.seed,),
        "splits": tuple(splits),
    }
    study = parse_spec(StudySpec, content, where="crossvalidate", error=UsageError)
    return CrossValidation(out, study, names)


def crossvalidate(
    asked: CrossValidation, make_pool: Callable[[Path], Pool], progress: TrainingProgress
) -> tuple[list[Outcome], Report | None]:
    """Train what of the folds has not finished; predict out of fold, make the ensemble and evaluate.

    Repeated after a kill, the call goes on where it was.

    Args:
        asked: what to do.
        make_pool: gives what computes the trainings, from the study's folder; closed here.
        progress: told of the trainings.

    Returns:
        How the trainings of this call ended; and the evaluation, None where a fold has not finished.

    Raises:
        RunError: the folder holds something else, or another process is at work there.
        ThreefoldError: as `run_study`.
    """
    out, folder = asked.out, asked.folder
    if out.exists() and not folder.path.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: exists and is no cross-validation. Nothing was changed: name another --out.")
    make_folder(out)
    with alone_in(out, f"{out}: another `threefold crossvalidate` is at work there. Wait until it ends."):
        pool = make_pool(folder.path)
        try:
            ended = run_study(asked.study, folder, pool, progress)
        finally:
            pool.close()
        plans = plan_runs(asked.study)
        if not all(folder.is_finished(plan.id) for plan in plans):
            return ended, None
        (source,) = asked.study.cohorts.values()
        assert source.folder is not None
        progress.say("predicting out of fold and evaluating by hospital")
        cohort = read_cohort(Path(source.folder), allow_outside=True)
        with undisturbed():
            gather([folder.run(plan.id) for plan in plans], asked.names, cohort, out)
        return ended, evaluate_crossvalidated(out)
