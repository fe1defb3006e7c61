"""A plan: what is resolved, what is refused, and that training is what was planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from threefold.cli.app import app
from threefold.cohorts.cohort import Cohort
from threefold.errors import CohortError, ExperimentError, UsageError
from threefold.experiments import experiment_yaml
from threefold.training.loop import TrainingContext
from threefold.training.plan import Plan, measure_cost, plan
from threefold.training.run import train

MakeCohort = Callable[..., Cohort]
MakeExperiment = Callable[..., Any]


def test_a_plan_holds_split_stages_and_targets(
    make_cohort: MakeCohort, make_experiment: MakeExperiment
) -> None:
    cohort = make_cohort()
    made = plan(make_experiment(epochs=1), cohort)
    (stage,) = made.stages
    assert stage.experiment == made.experiment
    assert [task.name for task in stage.tasks] == list(made.experiment.tasks)
    assert stage.targets == {"classification": "label", "segmentation": "mask"}
    parts = [made.cases(part) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(cohort.cases)
    with pytest.raises(AttributeError):
        made.split = None  # type: ignore[misc, assignment]


def test_what_is_planned_is_what_is_trained(
    make_cohort: MakeCohort, make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, seen = make_cohort(), []
    made = plan(make_experiment(epochs=1), cohort)
    monkeypatch.setattr("threefold.training.run.plan", lambda *_, **__: pytest.fail("planned twice"))
    monkeypatch.setattr("threefold.training.run.train_network", _kept(seen))
    with pytest.raises(_Seen):
        train(made, cohort, tmp_path / "run")
    assert seen[0].stage is made.stages[0]
    assert seen[0].train == made.cases("train")


def test_a_plan_of_another_cohort_is_refused(
    make_cohort: MakeCohort, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    cohort = make_cohort()
    made = plan(make_experiment(epochs=1), cohort)
    with pytest.raises(UsageError, match="the plan is of another cohort"):
        train(made, Cohort(cohort.folder, cohort.spec, cohort.cases[1:]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class _Seen(Exception):  # noqa: N818
    pass


def _kept(seen: list[TrainingContext]) -> Callable[[TrainingContext], Any]:
    def keep(context: TrainingContext) -> Any:
        seen.append(context)
        raise _Seen

    return keep


def test_a_plan_refuses_what_training_would(make_cohort: MakeCohort, make_experiment: MakeExperiment) -> None:
    cohort = make_cohort()
    one_sided = tuple(case for case in cohort.cases if case.label == 0)
    with pytest.raises(CohortError, match="not fit to train on"):
        plan(make_experiment(epochs=1), Cohort(cohort.folder, cohort.spec, one_sided))
    tasks = {"depth": {"kind": "regression", "target": "depth"}}
    with pytest.raises(ExperimentError, match="learns the target depth"):
        plan(make_experiment(epochs=1, tasks=tasks, selection={"metric": "loss"}), cohort)


def test_the_cost_counts_parameters_steps_and_memory(
    make_cohort: MakeCohort, make_experiment: MakeExperiment
) -> None:
    made: Plan = plan(make_experiment(epochs=1, batch_size=4), make_cohort())
    cost = measure_cost(made, made.stages[0])
    assert cost.parameters == cost.trained > 1000
    assert cost.steps == -(-len(made.cases("train")) // 4)
    assert cost.memory_bytes > 4 * cost.parameters
    assert cost.seconds_per_epoch > 0


def test_the_verb_prints_the_plan_and_writes_nothing(
    make_cohort: MakeCohort, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    cohort = make_cohort()
    (tmp_path / "mini.yaml").write_text(experiment_yaml(make_experiment(epochs=1)))
    before = sorted(tmp_path.rglob("*"))
    asked = ["plan", str(tmp_path / "mini.yaml"), "--cohort", str(cohort.folder)]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 0, said.output
    assert "train" in said.stdout
    assert "million parameters" in said.stdout
    content = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert content["parts"]["train"]["label"] > 0
    assert content["stages"][0]["tasks"]["segmentation"] == {"kind": "segmentation", "target": "mask"}
    assert sorted(tmp_path.rglob("*")) == before


def test_all_tasks_select_where_one_of_them_can_be_judged(
    make_cohort: MakeCohort, make_experiment: MakeExperiment
) -> None:
    cohort, asked = make_cohort(), make_experiment(epochs=1, selection={"metric": "tasks"})
    unlabelled = _without("label", cohort)
    assert plan(asked, unlabelled).cases("validation")
    with pytest.raises(CohortError, match=r"is tasks, but .* none is labelled 'no', none has a mask"):
        plan(asked, _without("mask", unlabelled))


def _without(target: str, cohort: Cohort) -> Cohort:
    """Return the cohort with that target known of no validation case."""
    cases = tuple(
        replace(case, targets={name: value for name, value in case.targets.items() if name != target})
        if case.split == "validation"
        else case
        for case in cohort.cases
    )
    return Cohort(cohort.folder, cohort.spec, cases)


def test_flips_by_axis_have_to_fit_the_grid(make_cohort: MakeCohort, make_experiment: MakeExperiment) -> None:
    experiment = make_experiment(epochs=1)
    data = experiment.data.model_dump() | {"augmentation": {"flip": [0.5, 0.5, 0.5]}}
    with pytest.raises(ExperimentError, match=r"flip has 3 probabilities, but .* has 2 sides"):
        plan(make_experiment(epochs=1, data=data), make_cohort())
