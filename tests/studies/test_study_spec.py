"""What a study says: its runs, their order and names, and what is refused before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.errors import ExperimentError, RunError
from threefold.studies.study_claims import require_metrics, require_tasks
from threefold.studies.study_folder import Outcome, StudyFolder, expected_memory
from threefold.studies.study_spec import (
    StudySpec,
    claim_cohorts,
    load_study,
    plan_runs,
    study_names,
)
from threefold.studies.study_worker import experiment_of

BASE: dict[str, Any] = {
    "name": "tiny",
    "cohorts": {"one": {"phantom": "head-ct"}, "two": {"folder": "two"}},
    "variants": {"cls": {"recipe": "hematoma/swin-cls"}, "seg": {"recipe": "hematoma/mtl-cls-seg"}},
    "seeds": [0, 1],
}


def write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def load(folder: Path, **changes: Any) -> StudySpec:
    return load_study(write(folder, {**BASE, **changes}))


def test_every_cohort_variant_split_and_seed_is_a_run_with_its_keys(tmp_path: Path) -> None:
    study = load(
        tmp_path,
        overrides=["training.epochs=3"],
        splits=[{"seed": 0}, {"seed": 1, "kind": "site"}],
        variants={
            "cls": {
                "recipe": "hematoma/swin-cls",
                "overrides": ["training.batch_size=2"],
                "cohorts": ["one"],
            },
            "rate": {
                "recipe": "own/mini.yaml",
                "key": "training.optimiser.learning_rate",
                "values": [0.1, 1e-5],
            },
        },
    )
    plans = {plan.id: plan for plan in plan_runs(study)}
    assert {plan.rpartition("/")[0] for plan in plans} == {
        "one/cls",
        "one/rate=0.1",
        "one/rate=1e-05",
        "two/rate=0.1",
        "two/rate=1e-05",
    }
    assert len(plans) == 5 * 2 * 2
    assert plans["one/cls/split-1-seed-1"].overrides == (
        "training.epochs=3",
        "training.batch_size=2",
        "data.split.seed=1",
        'data.split.kind="site"',
        "training.seed=1",
    )
    assert plans["two/rate=1e-05/split-0-seed-0"].overrides[1] == "training.optimiser.learning_rate=1e-05"
    assert plans["one/rate=0.1/split-0-seed-0"].recipe == str(tmp_path / "own" / "mini.yaml")


def test_the_keys_reach_the_experiment(tmp_path: Path) -> None:
    study = load(
        tmp_path,
        variants={
            "v": {"recipe": "hematoma/mtl-cls-seg", "key": "balancing.method", "values": ["uncertainty"]},
            "w": {"recipe": "hematoma/swin-cls", "key": "training.optimiser.learning_rate", "values": [1e-5]},
        },
        splits=[{"seed": 4, "kind": "site"}],
    )
    folder = StudyFolder(tmp_path / "out")
    first, second = (experiment_of(folder, plan_runs(study, [f"one/{v}*/*-seed-1"])[0]) for v in "vw")
    assert first.balancing.method == "uncertainty"
    assert (first.data.split.seed, first.data.split.kind, first.training.seed) == (4, "site", 1)
    assert second.training.optimiser.learning_rate == 1e-5


def test_a_variants_mistake_is_told_with_its_name(tmp_path: Path) -> None:
    study = load(tmp_path, variants={"v": {"recipe": "hematoma/swin-cls", "overrides": ["training.epoch=3"]}})
    said = r"variant v \(with the overrides(.|\n)*epoch: unknown key. Did you mean 'epochs'"
    with pytest.raises(ExperimentError, match=said):
        experiment_of(StudyFolder(tmp_path), plan_runs(study)[0])


def test_runs_come_seed_by_seed_each_after_its_start(tmp_path: Path) -> None:
    study = load(
        tmp_path,
        cohorts={"one": {"folder": "one"}},
        variants={
            "last": {"recipe": "hematoma/swin-cls", "init_from": "middle"},
            "middle": {"recipe": "hematoma/swin-cls", "init_from": "rate=0.1"},
            "rate": {"recipe": "hematoma/swin-cls", "key": "training.weight", "values": [0.1, 0.2]},
        },
        seeds=[1, 0],
        splits=[{}, {"seed": 1}],
    )
    plans = plan_runs(study)
    names = [plan.id for plan in plans]
    assert len(names) == len({*names}) == 16
    for plan in plans:
        if plan.start is not None:
            assert names.index(plan.start) < names.index(plan.id)
    assert [(plan.seed, plan.split) for plan in plans] == sorted((plan.seed, plan.split) for plan in plans)
    chosen = [plan.id for plan in plan_runs(study, ["*/last/split-1-seed-0"])]
    assert chosen == [f"one/{name}/split-1-seed-0" for name in ("rate=0.1", "middle", "last")]


def test_the_start_is_the_run_of_the_same_cohort_split_and_seed(tmp_path: Path) -> None:
    variants = {"a": BASE["variants"]["cls"], "b": {"recipe": "hematoma/swin-cls", "init_from": "a"}}
    study = load(tmp_path, variants=variants)
    plan = plan_runs(study, ["two/b/*-seed-1"])[-1]
    assert plan.start == "two/a/split-0-seed-1"
    experiment = experiment_of(StudyFolder(tmp_path / "out"), plan)
    assert experiment.initial_weights is not None
    assert Path(experiment.initial_weights.path) == tmp_path / "out" / "runs" / "two" / "a" / "split-0-seed-1"


def test_patterns_choose_runs(tmp_path: Path) -> None:
    study = load(tmp_path)
    assert [plan.id for plan in plan_runs(study, ["*/cls/*-seed-0", "two/*-seed-1"])] == [
        "one/cls/split-0-seed-0",
        "two/cls/split-0-seed-0",
        "two/cls/split-0-seed-1",
        "two/seg/split-0-seed-1",
    ]
    assert len(plan_runs(study, ["t?o/*"])) == 4
    with pytest.raises(ExperimentError, match=r"no run matches 'three/.*for example one/cls/split-0-seed-0"):
        plan_runs(study, ["three/*"])


RECIPE = {"recipe": "hematoma/swin-cls"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"varants": {}}, "varants: unknown key. Did you mean 'variants'"),
        ({"cohorts": {}}, "cohorts: "),
        ({"cohorts": {"one": {}}}, "cohorts.one: expected either folder or phantom"),
        ({"cohorts": {"one": {"folder": "f", "phantom": "head-ct"}}}, "expected either folder or phantom"),
        ({"cohorts": {"a/b": {"folder": "f"}}}, "cohorts"),
        ({"cohorts": {"a--b": {"folder": "f"}}}, "cohorts"),
        ({"variants": {"a": {**RECIPE, "key": "x"}}}, "expected key and values together"),
        (
            {"variants": {"a": {**RECIPE, "init_from": "bb"}, "b": RECIPE}},
            "there is no 'bb'. Did you mean 'b'",
        ),
        ({"variants": {"a": {**RECIPE, "cohorts": ["on"]}}}, "there is no 'on'. Did you mean 'one'"),
        ({"variants": {"a": {**RECIPE, "init_from": "a"}}}, "starts from itself (a -> a)"),
        (
            {"variants": {"a": {**RECIPE, "init_from": "b"}, "b": {**RECIPE, "init_from": "a"}}},
            "starts from itself (a -> b -> a)",
        ),
        (
            {"variants": {"a": {**RECIPE, "key": "x", "values": [1, 2], "init_from": "a=1"}}},
            "starts from itself (a=1 -> a=1)",
        ),
        ({"variants": {"a": {**RECIPE, "key": "recipe", "values": ["x/y"]}}}, "can't be a part of a path"),
        ({"variants": {"a": {**RECIPE, "key": "x", "values": [1, 1]}}}, "variants: a=1 is there twice"),
        ({"variants": {"a": {**RECIPE, "key": "x", "values": [1]}, "a=1": RECIPE}}, "a=1 is there twice"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 is there twice"),
        ({"splits": [{"seed": 1}, {"seed": 1}]}, "splits: {'seed': 1} is there twice"),
        ({"seeds": []}, "seeds"),
        ({"claims": [{"claim": "c", "variant": "sg", "baseline": "cls"}]}, "no 'sg'. Did you mean 'seg'"),
        ({"claims": [{"claim": "c", "variant": "seg", "baseline": "clss"}]}, "no 'clss'. Did you mean 'cls'"),
        (
            {"claims": [{"claim": "c", "variant": "seg", "baseline": "cls", "cohorts": ["tow"]}]},
            "no 'tow'. Did you mean 'two'",
        ),
        (
            {"claims": [{"claim": "c", "variant": "seg", "baseline": "seg"}]},
            "seg against seg can't be tested in any cohort. Expected two different trainings",
        ),
        (
            {
                "claims": [
                    {
                        "claim": "c",
                        "variant": "seg",
                        "baseline": "cls",
                        "expected": "different",
                        "beyond": 0.1,
                    }
                ]
            },
            "beyond needs a direction: expected higher or lower",
        ),
        ({"variants": {"labels": RECIPE}}, "variants.labels: the name means a cohort's own structures"),
        (
            {"cohorts": {"a": {"folder": "f", "propagation": {}, "degradation": {"displacement": 1}}}},
            "cohorts.a: expected propagation or degradation",
        ),
        ({"variants": {"a": {"recip": "x"}}}, "variants.a.recip: unknown key. Did you mean 'recipe'"),
        (
            {
                "variants": {"cls": {**RECIPE, "cohorts": ["one"]}, "seg": RECIPE},
                "claims": [{"claim": "c", "variant": "seg", "baseline": "cls", "cohorts": ["two"]}],
            },
            "can't be tested in two",
        ),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_mistakes_are_told_with_the_key_and_the_nearest_name(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ExperimentError) as problem:
        load(tmp_path, **changes)
    assert said in str(problem.value)


def test_a_start_that_is_not_trained_on_the_cohort_is_refused(tmp_path: Path) -> None:
    study = load(tmp_path, variants={"a": {**RECIPE, "cohorts": ["one"]}, "b": {**RECIPE, "init_from": "a"}})
    with pytest.raises(
        ExperimentError, match=r"variants.b: starts from two/a/split-0-seed-0, which the study"
    ):
        plan_runs(study)


def test_a_claim_is_tested_where_both_are_trained(tmp_path: Path) -> None:
    claim = {"claim": "c", "variant": "seg", "baseline": "cls"}
    study = load(
        tmp_path,
        variants={"cls": {**RECIPE, "cohorts": ["two"]}, "seg": RECIPE},
        claims=[
            claim,
            {**claim, "baseline_cohort": "two"},
            {**claim, "baseline": "seg", "baseline_cohort": "two"},
            {**claim, "baseline": "seg", "group": "internal", "baseline_group": "external"},
            {**claim, "baseline": "labels", "metric": "structure_dice"},
        ],
    )
    assert [claim_cohorts(study, each) for each in study.claims] == [
        ("two",),
        ("one", "two"),
        ("one",),
        ("one", "two"),
        ("one", "two"),
    ]


def test_a_written_study_reads_as_it_was(tmp_path: Path) -> None:
    study = load(
        tmp_path,
        variants={
            "rate": {
                **RECIPE,
                "recipe": "own.yaml",
                "key": "x",
                "values": [1, 1.0, 1e-7, True, "yes"],
            }
        },
        splits=[{"kind": "site", "seed": 1}, {}],
        overrides=['network.encoder={"size": "mini"}', "a='2'"],
        description="α: two\nlines",
    )
    folder = StudyFolder(tmp_path / "elsewhere")
    folder.write(study)
    assert folder.read() == study
    assert plan_runs(folder.read()) == plan_runs(study)
    assert study.cohorts["two"].folder == str(tmp_path / "two")


def test_a_folder_that_is_no_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a study folder \(no study.yaml\)"):
        StudyFolder(tmp_path).read()
    with pytest.raises(ExperimentError, match="no such file"):
        load_study(str(tmp_path / "nowhere.yaml"))


def test_shipped_studies_are_valid_down_to_each_experiment(tmp_path: Path) -> None:
    for name in study_names():
        study = load_study(name)
        assert study.name == name
        assert study.claims
        for plan in plan_runs(study):
            experiment_of(StudyFolder(tmp_path), plan)
    with pytest.raises(ExperimentError, match=r"no study 'hematoma-claim'. Did you mean 'hematoma-claims'"):
        load_study("hematoma-claim")


def outcome(run: str, memory: float, state: Any = "finished") -> Outcome:
    return Outcome(run, state, "", 1.0, memory)


def test_a_run_is_taken_to_need_what_its_kind_needed() -> None:
    known = {
        name: outcome(name, memory, state)
        for name, memory, state in (
            ("one/a/split-0-seed-0", 1.0, "finished"),
            ("one/a/split-0-seed-1", 1.5, "finished"),
            ("one/b/split-0-seed-0", 9.0, "failed"),
        )
    }
    assert expected_memory("two/a/split-0-seed-0", known, 4.0) == 1.5
    assert expected_memory("one/c/split-0-seed-1", known, 4.0) == 4.0
    assert expected_memory("one/c/split-0-seed-1", known, 1.0) == 1.5
    assert expected_memory("one/c/split-0-seed-1", {}, 4.0) == 4.0
    # One that was killed held less than it needed.
    assert expected_memory("one/b/split-0-seed-1", known, 4.0) == 9.0
    known["one/b/split-1-seed-0"] = outcome("one/b/split-1-seed-0", 2.0)
    assert expected_memory("one/b/split-0-seed-1", known, 4.0) == 9.0


def test_outcomes_are_remembered_and_damaged_ones_told(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    run = "one/a/split-0-seed-0"
    assert folder.outcome(run) is None
    folder.remember(outcome(run, 1.0))
    assert folder.outcome(run) == outcome(run, 1.0)
    assert not folder.is_finished(run)  # its folder is gone
    folder.run(run).path.mkdir(parents=True)
    folder.run(run).predictions.write_text("case_id\n")
    assert folder.is_finished(run)
    (tmp_path / "outcomes" / "one--a--split-0-seed-0.json").write_text("{")
    with pytest.raises(RunError, match=r"can't be read.*Remove it"):
        folder.outcome(run)


@pytest.mark.parametrize("name", study_names())
def test_the_shipped_claims_are_on_metrics_that_are_measured(name: str, tmp_path: Path) -> None:
    study = load_study(name)
    require_metrics(study)
    folder = StudyFolder(tmp_path)
    plans = {plan.variant: plan for plan in plan_runs(study)}
    require_tasks(study, {variant: experiment_of(folder, plan).tasks for variant, plan in plans.items()})
