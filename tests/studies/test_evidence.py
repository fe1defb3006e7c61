"""Runs are looked into: numbers against brute force, files, and studies that ask for it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from threefold.cli.app import main
from threefold.cohorts.cohort import fingerprint, read_cohort
from threefold.errors import CohortError, PredictionsError, RunError
from threefold.evaluation.intervals import FEWEST_PATIENTS
from threefold.evaluation.metrics import shown_in
from threefold.experiment import SegmentationSpec
from threefold.images.reading import read_header, read_label_map
from threefold.images.writing import write_nifti
from threefold.inference.evidence import Explainer
from threefold.inference.predictor import Predictor
from threefold.phantoms.head_ct import CaseParameters, render_case
from threefold.phantoms.parameters_file import read_parameters
from threefold.run import RunFolder
from threefold.runs.evaluate import cohort_of_run
from threefold.runs.explain import Explanation, explain_run, read_evidence
from threefold.studies.comparison import read_tables
from threefold.studies.study import run_study
from threefold.studies.study_folder import Outcome, StudyFolder
from threefold.studies.study_spec import StudySpec
from threefold.studies.study_worker import execute
from threefold.tasks.questions import questions_of
from threefold.training.progress import Lines

SOME_FIT = 7.5
"""mm at which some of the heads are larger than 32 pixels."""


@pytest.fixture(scope="module")
def mine(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("evidence") / "run"
    shutil.copytree(run.path, folder)
    return RunFolder(folder)


@pytest.fixture(scope="module")
def explained(mine: RunFolder) -> Explanation:
    return explain_run(mine)


def test_every_test_case_of_every_site_is_measured(mine: RunFolder, explained: Explanation) -> None:
    table = pd.read_csv(mine.predictions)
    test = table[table["part"] == "test"]
    assert {*explained.evidence.index} == {*test["case_id"]}
    assert {*test["site"]} > {"site-05", "site-06"}  # whose masks are in the phantom's truth alone
    assert explained.evidence.drop(columns=[*shown_in("attention")]).notna().all(axis=None)
    seen = explained.evidence["zero_map"] == 0
    assert (explained.evidence[[*shown_in("attention")]].notna().eq(seen, axis=0)).all(axis=None)
    assert explained.evidence["share_inside_random"][seen].between(0, 0.2).all()
    assert all(path.stat().st_size > 0 for path in explained.files)
    assert {
        "attention.md",
        "truth.md",
        "counterfactuals.md",
        "shortcut.md",
        "probes.md",
        "calibration_temperature.md",
    } <= {path.name for path in explained.files}
    pd.testing.assert_frame_equal(read_evidence(mine), explained.evidence)


def test_masks_are_held_against_the_truth_at_every_site(
    mine: RunFolder, explained: Explanation, cohort_folder: Path
) -> None:
    """At sites with masks in the cohort the number is the run's own; elsewhere it is there too."""
    table = pd.read_csv(mine.predictions).set_index("case_id").loc[explained.evidence.index]
    found = explained.evidence["truth_dice"]
    assert found.between(0, 1).all()
    known = table["mask_truth_voxels"].notna()
    assert 0 < known.sum() < len(table)
    dice = 2 * table["mask_overlap_voxels"] / (table["mask_truth_voxels"] + table["mask_predicted_voxels"])
    assert np.allclose(found[known], dice[known])
    name = str(found.index[~known][0])
    truth, predicted = (
        read_label_map(folder / f"{name}.nii.gz").array > 0
        for folder in (cohort_folder / "truth/hematoma", mine.masks)
    )
    assert found[name] == pytest.approx(2 * (truth & predicted).sum() / (truth.sum() + predicted.sum()))


@pytest.mark.parametrize("thing", ["shortcut", "marker"])
def test_counterfactuals_are_those_of_files_rendered_again(
    thing: str, mine: RunFolder, explained: Explanation, cohort_folder: Path, tmp_path: Path
) -> None:
    """By hand: render the case, write it, predict the file."""
    predictor = Predictor.from_run(mine.path)
    known = {case.case_id: case for case in read_parameters(cohort_folder, CaseParameters)}
    threshold = mine.read_status()["threshold"]
    for name in [str(name) for name in explained.evidence.index[::5]]:
        case = known[name]
        place = read_header(cohort_folder / "images" / f"{name}.nii.gz").affine
        found = {}
        for there in (False, True):
            if thing == "shortcut":
                other = replace(case, acquisition=replace(case.acquisition, shortcut=there))
            else:
                other = replace(case, hematoma=replace(case.hematoma, marker=there))
            write_nifti(tmp_path / "x.nii.gz", render_case(other).hu, place)
            (prediction,) = predictor.predict(tmp_path / "x.nii.gz")
            found[there] = prediction.probabilities["hypodensity"]
        row = explained.evidence.loc[name]
        assert row[f"{thing}_change"] == pytest.approx(found[True] - found[False], abs=1e-5)
        assert row[f"{thing}_flip"] == ((found[True] >= threshold) != (found[False] >= threshold))


def test_tables_hold_the_means_with_their_n(mine: RunFolder, explained: Explanation) -> None:
    assert [table.name for table in explained.tables] == ["attention", "counterfactuals", "truth"]
    long = pd.concat(pd.read_csv(mine.tables / f"{table.name}.csv") for table in explained.tables)
    table = pd.read_csv(mine.predictions).set_index("case_id").query("part == 'test'")
    external = table.index[table["site_group"] == "external"]
    for group, cases in (("all", table.index), ("external", external)):
        for metric in ("share_inside_centred", "zero_map", "marker_change"):
            there = explained.evidence.loc[cases, metric].dropna().index
            patients = table.loc[there, "patient_id"].nunique()
            (row,) = long[(long["metric"] == metric) & (long["group"] == group)].itertuples()
            assert row.value == pytest.approx(explained.evidence.loc[there, metric].mean())
            assert (row.n, row.patients) == (len(there), patients)
            if metric == "zero_map" and row.value in (0, 1):  # a share, whose interval few patients have too
                assert row.low <= row.value <= row.high
                assert "exact binomial" in row.note
            elif patients < FEWEST_PATIENTS:
                assert np.isnan([row.low, row.high]).all()
                assert "fewer than" in row.note
            else:
                assert row.low <= row.value <= row.high
    assert (
        "the shortcut (the clip) or the marker (the hypodensities)"
        in (mine.tables / "counterfactuals.md").read_text()
    )
    text = (mine.tables / "attention.md").read_text()
    assert "random maps" in text
    zero = explained.evidence["zero_map"]
    assert (f"all {zero.sum():.0f} of {len(table)}, " in text) == bool(zero.any())
    assert f"n={(zero[external] == 0).sum()}/" in text


def test_masks_and_nothing_rendered_without_the_phantoms_truth(
    mine: RunFolder, cohort_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cohort"
    shutil.copytree(cohort_folder, folder)
    for name in ("truth.csv", "parameters.json"):
        (folder / name).unlink()
    shutil.copytree(mine.path, tmp_path / "run")
    moved = RunFolder(tmp_path / "run")
    moved.settings.unlink(missing_ok=True)
    moved.cohort.write_text(
        json.dumps({**json.loads(moved.cohort.read_text()), "folder": str(tmp_path / "gone")})
    )
    with pytest.raises(CohortError, match="--cohort"):
        explain_run(moved)
    evidence = explain_run(moved, read_cohort(folder)).evidence
    assert not [name for name in evidence.columns if "flip" in name]
    sites = evidence.index.str[:7]
    measured = evidence["zero_map"].notna()
    assert measured[sites <= "site-04"].all()
    assert not measured[sites >= "site-05"].any()
    pd.testing.assert_series_equal(
        evidence["share_inside"][measured], read_evidence(mine)["share_inside"][measured]
    )


def test_a_run_of_which_nothing_can_be_measured_says_so_and_keeps_nothing_of_an_earlier_call(
    mine: RunFolder, explained: Explanation, cohort_folder: Path, tmp_path: Path
) -> None:
    folder, run = tmp_path / "cohort", RunFolder(tmp_path / "run")
    shutil.copytree(cohort_folder, folder)
    shutil.copytree(mine.path, run.path)
    for name in ("truth.csv", "parameters.json"):
        (folder / name).unlink()
    table = pd.read_csv(folder / "cases.csv", dtype=str)
    table.assign(mask="").to_csv(folder / "cases.csv", index=False)
    cohort = read_cohort(folder)
    known = json.loads(run.cohort.read_text())
    run.settings.unlink(missing_ok=True)
    run.cohort.write_text(json.dumps({**known, "fingerprint": fingerprint(cohort)}))
    names = [f"{table.name}.{end}" for table in explained.tables for end in ("md", "csv")]
    earlier = [run.figures / "attention.png", *(run.tables / name for name in names)]
    assert all(path.is_file() for path in earlier)
    found = explain_run(run, cohort)
    assert not any(path.exists() for path in earlier)
    assert (run.tables / "probes.md").is_file()
    assert found.tables == ()
    assert found.notes == ("No test case has a known lesion, and the cohort can't be rendered again.",)


@pytest.mark.parametrize(("spacing", "some"), [(1.0, False), (SOME_FIT, True)])
def test_images_larger_than_the_grid_are_counted(
    mine: RunFolder,
    tmp_path: Path,
    spacing: float,
    some: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(mine.path, run.path)
    written = yaml.safe_load(run.experiment.read_text())
    written["data"]["preprocessing"]["spacing"] = spacing
    run.settings.unlink(missing_ok=True)
    run.experiment.write_text(yaml.safe_dump(written))
    monkeypatch.setattr(sys, "argv", ["threefold", "explain", str(run.path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    evidence = read_evidence(run)
    larger = len(evidence) if not some else int(evidence["zero_map"].isna().sum())
    assert 0 < larger < len(evidence) or not some
    said = f"note: {larger} of {len(evidence)} test cases are larger than the network's grid (32 x 32)"
    assert said in printed
    assert "a known lesion" not in printed  # each has one
    assert ("shortcut_flip" in evidence) == some
    if some:
        assert f"Excluded: {larger} test cases" in (run.tables / "attention.md").read_text()


def test_what_cannot_be_explained_is_refused(mine: RunFolder, cohort_folder: Path, tmp_path: Path) -> None:
    predictor, cohort = Predictor.from_run(mine.path), read_cohort(cohort_folder)
    segmenter = predictor.experiment.model_copy(update={"tasks": {"segmentation": SegmentationSpec()}})
    asked = questions_of(segmenter, predictor.cohort)
    with pytest.raises(RunError, match="no classification task"):
        Explainer.of(replace(predictor, experiment=segmenter, questions=asked), cohort, mine.masks)
    shutil.copytree(mine.path, tmp_path / "run")
    changed = RunFolder(tmp_path / "run")
    changed.settings.unlink(missing_ok=True)
    changed.cohort.write_text(changed.cohort.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(CohortError, match="changed since"):
        cohort_of_run(changed)


def test_evidence_that_is_absent_or_damaged(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert read_evidence(run).empty
    for content in ("case_id,x\na,1\na,2\n", "case_id,x\na,high\n", "x\n1\n"):
        run.evidence.write_text(content)
        with pytest.raises(PredictionsError, match="Remove it and run `threefold explain"):
            read_evidence(run)


def test_command(
    mine: RunFolder,
    explained: Explanation,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["threefold", "explain", str(mine.path), "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    content = json.loads(capsys.readouterr().out)[str(mine.path)]
    values = {row["metric"]: row["value"] for row in content["attention"] if row["group"] == "all"}
    assert values["share_inside_random"] == pytest.approx(explained.evidence["share_inside_random"].mean())


def test_a_case_that_cant_be_read_costs_itself_alone(
    mine: RunFolder,
    explained: Explanation,
    cohort_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken, copied = tmp_path / "cohort", RunFolder(tmp_path / "run")
    shutil.copytree(cohort_folder, broken)
    shutil.copytree(mine.path, copied.path)
    bad = str(explained.evidence.index[1])
    next(case for case in read_cohort(broken).cases if case.case_id == bad).image.write_bytes(b"no image")
    command = ["threefold", "explain", str(copied.path), "--cohort", str(broken), "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert [*json.loads(said.out)[str(copied.path)]["left_out"]] == [bad]
    assert f"failed: {bad}: case {bad}: " in said.err
    others = explained.evidence.drop(bad)
    pd.testing.assert_frame_equal(read_evidence(copied), others, rtol=1e-4, check_dtype=False)
    assert pd.read_csv(copied.tables / "evidence_failed.csv")["case_id"].tolist() == [bad]


ENCODER = {"size": "mini", "embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 4}


@dataclass
class HerePool:
    """Executes runs in this process, one after the other."""

    folder: Path
    ended: list[Outcome] = field(default_factory=list)

    def has_room(self, memory: float) -> bool:
        return not self.ended

    def submit(self, run: str, memory: float) -> None:
        self.ended.append(Outcome(run, "finished", execute(self.folder, run), 1.0, 0.1))

    def wait(self) -> list[Outcome]:
        ended, self.ended = self.ended, []
        return ended

    def stop(self) -> list[Outcome]:
        return []  # nothing runs


@pytest.fixture
def study_of(cohort_folder: Path) -> Callable[[bool], StudySpec]:
    def make(evidence: bool) -> StudySpec:
        return StudySpec.model_validate(
            {
                "name": "tiny",
                "cohorts": {"c": {"folder": str(cohort_folder)}},
                "variants": {
                    "demo": {"recipe": "hematoma/demo"},
                    "seg": {"recipe": "hematoma/swin-unet-seg"},
                },
                "overrides": [
                    "training.epochs=1",
                    "training.selection.metric=loss",
                    f"network.encoder={json.dumps(ENCODER)}",
                    "data.preprocessing.size=[32, 32]",
                    "evaluation.replicates=50",
                ],
                "seeds": [0],
                "evidence": evidence,
            }
        )

    return make


def test_a_study_looks_into_runs_that_classify_and_goes_on_with_those_that_lack_it(
    study_of: Callable[[bool], StudySpec], tmp_path: Path
) -> None:
    folder, pool = StudyFolder(tmp_path / "study"), HerePool(tmp_path / "study")
    names = {f"c/{variant}/split-0-seed-0" for variant in ("demo", "seg")}

    def go(evidence: bool) -> set[str]:
        return {each.run for each in run_study(study_of(evidence), folder, pool, Lines())}  # type: ignore[arg-type]

    assert go(False) == names
    classifier = folder.run("c/demo/split-0-seed-0")
    weights = classifier.weights.stat().st_mtime_ns
    assert not classifier.evidence.exists()
    assert go(True) == {"c/demo/split-0-seed-0"}  # the other one classifies nothing
    assert go(True) == set()
    assert classifier.weights.stat().st_mtime_ns == weights
    evidence = read_tables(folder, "c/demo/split-0-seed-0").evidence
    assert np.isfinite(evidence["shortcut_flip"]).all()
    assert read_tables(folder, "c/seg/split-0-seed-0").evidence.empty


def test_a_run_that_cant_be_looked_into_is_finished_all_the_same(
    study_of: Callable[[bool], StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pool = StudyFolder(tmp_path / "study"), HerePool(tmp_path / "study")
    name = "c/demo/split-0-seed-0"

    def go() -> Outcome:
        (outcome,) = run_study(study_of(True), folder, pool, Lines(), [name])  # type: ignore[arg-type]
        return outcome

    def refuse(*_: object, **__: object) -> None:
        raise CohortError("the truth is damaged")

    with monkeypatch.context() as patch:
        patch.setattr("threefold.runs.explain.explain_run", refuse)
        outcome = go()
    assert (outcome.state, outcome.message) == ("finished", "no evidence: the truth is damaged")
    assert folder.is_finished(name)
    assert not read_tables(folder, name).predictions.table.empty
    # The same command makes up for it.
    assert (go().message, folder.run(name).evidence.is_file()) == ("", True)
