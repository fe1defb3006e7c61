"""A recipe in folds: each case predicted by a network that has not seen its patient; and ensembles."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import threefold as tf
from threefold.cli.app import main
from threefold.cohorts.cohort import read_cohort
from threefold.cohorts.splits import Split, read_split
from threefold.errors import CohortError, RunError, UsageError
from threefold.reporting.results import read_results
from threefold.reporting.run_report import Report
from threefold.run import RunFolder
from threefold.runs.crossvalidated import folds_of
from threefold.runs.ensembles import EnsembleFolder
from threefold.studies import study_pools
from threefold.studies.crossvalidation import CrossValidation, crossvalidate, plan_crossvalidation
from threefold.studies.reports import report
from threefold.studies.study_folder import Outcome
from threefold.studies.study_pools import LocalPool

from ..cohorts.test_splits import _case, _cohort
from .tiny import CLS, OVERRIDES, SEG, Heard, run_here

TINY = [*OVERRIDES, "training.epochs=1"]


def _not_evaluated(run: RunFolder) -> SimpleNamespace:
    return SimpleNamespace(predictions=SimpleNamespace(left_out={}))


@pytest.fixture(autouse=True, scope="module")
def _in_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_pools, "run_in_process", run_here)
        patch.setattr("threefold.runs.evaluate.evaluate_run", _not_evaluated)  # each fold by itself
        patch.setattr("threefold.training.plan._audited", lambda *_: [])
        patch.setenv("THREEFOLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class Ended:
    asked: CrossValidation
    outcomes: list[Outcome]
    report: Report


def _run(asked: CrossValidation) -> Ended:
    outcomes, found = crossvalidate(asked, lambda folder: LocalPool(folder, 1, 1), Heard())
    assert found is not None, outcomes
    return Ended(asked, outcomes, found)


@pytest.fixture(scope="module")
def ended(cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    cohort, out = read_cohort(cohort_folder), tmp_path_factory.mktemp("cv") / "folds-of-heads"
    return _run(plan_crossvalidation(SEG, cohort, out, folds=2, overrides=TINY))


def test_every_case_is_predicted_once_by_a_network_that_has_not_seen_its_patient(
    ended: Ended, cohort_folder: Path
) -> None:
    cohort = read_cohort(cohort_folder)
    table = pd.read_csv(ended.asked.out / "predictions.csv", dtype={"fold": str})
    assert [*table["case_id"]] == [case.case_id for case in cohort.cases]
    assert set(table["part"]) == {"test"}
    runs = EnsembleFolder(ended.asked.out).members()
    assert len(runs) == 2
    patients = {case.case_id: case.patient_id for case in cohort.cases}
    for name, run in zip(ended.asked.names, runs, strict=True):
        own, known = table[table["fold"] == name], read_split(run.split).parts
        assert {known[case] for case in own["case_id"]} == {"test"}
        seen = {patients[case] for case, part in known.items() if part != "test"}
        assert not seen & {patients[case] for case in own["case_id"]}
        alone = pd.read_csv(run.predictions).set_index("case_id")
        column = "probability_hypodensity"
        assert [*own[column]] == [*alone.loc[[*own["case_id"]], column]]
    groups = table.groupby("site_group")["fold"].nunique()
    assert [*groups.loc[["external", "internal"]]] == [2, 2]
    masks = {path.name for path in (ended.asked.out / "masks").iterdir()}
    assert len(masks) == len(table)


def test_the_numbers_are_of_all_folds_together_and_of_each(ended: Ended) -> None:
    table = pd.read_csv(ended.asked.out / "predictions.csv", dtype={"fold": str})
    auc = roc_auc_score(table["label"] == "hypodensity", table["probability_hypodensity"])
    assert ended.report.evaluation.find("auc").value == pytest.approx(auc)
    thresholds = [run.read_status()["threshold"] for run in EnsembleFolder(ended.asked.out).members()]
    assert ended.report.evaluation.threshold == pytest.approx(sum(thresholds) / 2)
    parts = read_results(ended.asked.out)
    by_fold = {
        entry.about["fold"]: entry.estimate.value
        for entry in parts["crossvalidate"].numbers
        if entry.about and entry.estimate.metric == "auc" and entry.estimate.level == "case"
    }
    for name, rows in table.groupby("fold"):
        expected = roc_auc_score(rows["label"] == "hypodensity", rows["probability_hypodensity"])
        assert by_fold[name] == pytest.approx(expected)
    (shown,) = parts["crossvalidate"].tables
    assert shown.columns == ("metric", "fold 0", "fold 1", "all")
    assert any("out of fold" in note.lower() for note in ended.report.evaluation.notes)


def test_repeated_it_trains_nothing_and_comes_to_the_same(ended: Ended) -> None:
    out = ended.asked.out
    before = {path: path.read_bytes() for path in out.glob("*.*") if path.is_file()}
    again = _run(ended.asked)
    assert again.outcomes == []
    assert again.report.evaluation.table.equals(ended.report.evaluation.table)
    assert {path: path.read_bytes() for path in before} == before


def test_it_predicts_and_is_evaluated_as_an_ensemble(
    ended: Ended, cohort_folder: Path, tmp_path: Path
) -> None:
    run = tf.load_run(ended.asked.out)
    cohort = read_cohort(cohort_folder)
    (prediction,) = run.predict(cohort.cases[0].image)
    members = [member.predict(cohort.cases[0].image)[0] for member in run.members]
    mean = sum(one.probabilities["hypodensity"] for one in members) / 2
    assert prediction.probabilities["hypodensity"] == pytest.approx(mean)
    found = run.evaluate(cohort)
    assert found.evaluation.leaks  # its patients trained the members
    page = report(ended.asked.out, tmp_path / "page.html").read_text(encoding="utf-8")
    for said in ("Out of fold, by fold", "The runs that predict together", "On the cohort cohort"):
        assert said in page
    assert "threefold crossvalidate hematoma/mtl-cls-seg" in page
    with pytest.raises(UsageError, match="--weights is for one run"):
        run.evaluate(weights="best")


def test_an_ensemble_of_runs_has_no_test_part_of_its_own(ended: Ended, tmp_path: Path) -> None:
    from threefold.runs.ensembles import make_ensemble

    made = make_ensemble([ended.asked.out], tmp_path / "together")
    with pytest.raises(RunError, match="without a test part of its own"):
        tf.load_run(made.path).evaluate()
    page = report(made.path).read_text(encoding="utf-8")
    assert "The ensemble has not been evaluated." in page


def test_a_changed_question_is_refused(ended: Ended, cohort_folder: Path, tmp_path: Path) -> None:
    cohort, out = read_cohort(cohort_folder), ended.asked.out
    more = plan_crossvalidation(SEG, cohort, out, folds=3, overrides=TINY)
    with pytest.raises(RunError, match="holds the study 'mtl-cls-seg-2-folds', not 'mtl-cls-seg-3-folds'"):
        _run(more)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is no cross-validation"):
        _run(plan_crossvalidation(SEG, cohort, tmp_path / "other", overrides=TINY))
    with pytest.raises(CohortError, match="can't be divided into 60 folds"):
        plan_crossvalidation(SEG, cohort, tmp_path / "new", folds=60, overrides=TINY)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="the folds say how the cases are split"):
        plan_crossvalidation(SEG, cohort, out, overrides=["data.split.test=0.3"])


def test_a_fold_that_fails_leaves_the_others(cohort_folder: Path, tmp_path: Path) -> None:
    cohort = read_cohort(cohort_folder)
    asked = plan_crossvalidation(
        SEG, cohort, tmp_path / "cv", folds=2, overrides=[*TINY, "training.optimiser.learning_rate=1.0e+30"]
    )
    outcomes, found = crossvalidate(asked, lambda folder: LocalPool(folder, 1, 1), Heard())
    assert found is None
    assert [outcome.state for outcome in outcomes] == ["failed", "failed"]
    assert not EnsembleFolder(tmp_path / "cv").exists


def test_by_site_each_site_is_a_fold(cohort_folder: Path, tmp_path: Path) -> None:
    cohort = read_cohort(cohort_folder)
    asked = plan_crossvalidation(
        SEG, cohort, tmp_path, by="site", overrides=["data.split.hold_out=[site-06]"]
    )
    assert asked.names == tuple(f"site-0{number}" for number in range(1, 6))
    assert [split["fold"] for split in asked.study.splits] == [0, 1, 2, 3, 4]
    assert {split["kind"] for split in asked.study.splits} == {"leave-one-site-out"}
    one_site = cohort.cases[0].site
    alone = type(cohort)(cohort.folder, cohort.spec, tuple(c for c in cohort.cases if c.site == one_site))
    with pytest.raises(CohortError, match="at least 2 sites"):
        plan_crossvalidation(SEG, alone, tmp_path, by="site")


def test_who_is_tested_by_several_folds_is_predicted_by_one() -> None:
    cases = [_case(f"{p}-{s}", f"p{p}", "ab"[s]) for p in range(40) for s in range(2)]
    splits = [Split("x", {case.case_id: "test" for case in cases}) for _ in range(2)]
    folds = folds_of(_cohort(cases), splits)
    assert all(folds[f"{p}-0"] == folds[f"{p}-1"] for p in range(40))
    assert 24 < sum(folds.values()) < 56
    only_first = [splits[0], Split("x", {case.case_id: "train" for case in cases})]
    assert set(folds_of(_cohort(cases), only_first).values()) == {0}
    with pytest.raises(RunError, match="case 0-0 is in the test part of no fold"):
        folds_of(_cohort(cases), only_first[1:])


def test_the_recipe_of_an_ensemble_trains_its_members(
    cohort_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, recipe = tmp_path / "deployed", tmp_path / "two.yaml"
    recipe.write_text(f"name: two\nmembers: [{{recipe: {CLS}, seed: 3}}, {{recipe: {CLS}, seed: 4}}]\n")

    def train(*more: str) -> int:
        words = ["train", str(recipe), "--cohort", str(cohort_folder), "--out", str(out), *TINY, *more]
        monkeypatch.setattr(sys, "argv", ["threefold", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    assert train() == 0
    assert "an ensemble of 2 runs" in capsys.readouterr().out
    assert train() == 1
    assert "Resume what is there with --resume" in capsys.readouterr().err
    assert train("--resume") == 0
    assert train("--devices", "2") == 2
    run, cohort = tf.load_run(out), read_cohort(cohort_folder)
    assert [member.experiment.training.seed for member in run.members] == [3, 4]
    results = run.evaluate()  # on the test part that the members have in common
    assert not results.evaluation.leaks
    test = read_split(RunFolder(run.members[0].path).split).cases(cohort, "test")
    assert results.evaluation.test_cases == {case.case_id for case in test}
