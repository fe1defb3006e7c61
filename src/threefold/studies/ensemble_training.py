"""Training the members of an ensemble's recipe, as a study, and letting them predict together.

OUT/
  ensemble.json   the members as an ensemble (`runs.ensembles`)
  members/        the study of their trainings
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from threefold.cohorts.cohort import Cohort
from threefold.errors import RunError, UsageError
from threefold.experiment import EnsembleSpec
from threefold.locks import alone_in
from threefold.run import make_folder
from threefold.runs.ensembles import EnsembleFolder, write_members
from threefold.studies.study import run_study
from threefold.studies.study_cohorts import name_of
from threefold.studies.study_folder import Outcome, StudyFolder
from threefold.studies.study_pools import Pool
from threefold.studies.study_spec import RunPlan, StudySpec, plan_runs, run_id
from threefold.training.progress import TrainingProgress
from threefold.validation import parse_spec


@dataclass(frozen=True)
class EnsembleTraining:
    """The members of an ensemble that is to be trained.

    Attributes:
        out: its folder.
        study: the recipes and seeds of all members.
        members: the trainings that are members, in order.
    """

    out: Path
    study: StudySpec
    members: tuple[RunPlan, ...]


def plan_ensemble(
    recipe: EnsembleSpec, cohort: Cohort, out: Path, overrides: Sequence[str] = ()
) -> EnsembleTraining:
    """Return what is trained for an ensemble's recipe.

    Args:
        recipe: the recipe.
        cohort: the cases.
        out: the folder that gets it all.
        overrides: `key.path=value` for every training.

    Raises:
        ExperimentError: a member's recipe does not exist, or an override is not valid.
    """
    recipes = {
        name_of(member.recipe.rpartition("/")[2], "member"): member.recipe for member in recipe.members
    }
    variants = {of: name for name, of in recipes.items()}
    place = name_of(cohort.folder.resolve().name, "cohort")
    content = {
        "name": name_of(recipe.name, "ensemble"),
        "description": recipe.description,
        "cohorts": {place: {"folder": str(cohort.folder.resolve())}},
        "variants": {name: {"recipe": of} for name, of in recipes.items()},
        "overrides": tuple(overrides),
        "seeds": tuple(dict.fromkeys(member.seed for member in recipe.members)),
    }
    study = parse_spec(StudySpec, content, where=recipe.name, error=UsageError)
    ids = [run_id(place, variants[member.recipe], 0, member.seed) for member in recipe.members]
    plans = {plan.id: plan for plan in plan_runs(study, ids)}
    return EnsembleTraining(out, study, tuple(plans[each] for each in ids))


def train_ensemble(
    asked: EnsembleTraining, make_pool: Callable[[Path], Pool], progress: TrainingProgress
) -> tuple[list[Outcome], EnsembleFolder | None]:
    """Train what of the members has not finished, and make the ensemble.

    Repeated after a kill, the call goes on where it was.

    Args:
        asked: what to do.
        make_pool: gives what computes the trainings, from the study's folder; closed here.
        progress: told of the trainings.

    Returns:
        How the trainings of this call ended; and the ensemble, None where a member has not finished.

    Raises:
        RunError: the folder holds something else, or another process is at work there.
        ThreefoldError: as `run_study`.
    """
    out, folder = asked.out, StudyFolder(asked.out / "members")
    if out.exists() and not folder.path.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"{out}: exists and is no ensemble's training. Nothing was changed: name another --out."
        )
    make_folder(out)
    with alone_in(out, f"{out}: another process trains this ensemble. Wait until it ends."):
        pool = make_pool(folder.path)
        try:
            ended = run_study(asked.study, folder, pool, progress, [plan.id for plan in asked.members])
        finally:
            pool.close()
        if not all(folder.is_finished(plan.id) for plan in asked.members):
            return ended, None
        ensemble = EnsembleFolder(out)
        write_members([folder.run(plan.id) for plan in asked.members], ensemble)
        return ended, ensemble
