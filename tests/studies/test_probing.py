"""A finished run is probed into its folder, from the command line too; runs are compared by stage."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from threefold.checksums import write_table
from threefold.cli.app import main
from threefold.cohorts.cohort import read_cohort
from threefold.cohorts.failures import write_failures
from threefold.cohorts.splits import read_split
from threefold.errors import CohortError, PredictionsError, RunError, UsageError
from threefold.experiment import EvaluationSpec
from threefold.reporting.table import plain
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_run
from threefold.runs.probe import probe_run
from threefold.runs.similarity import compare_runs, distinct_names
from threefold.studies.chain import ChainReport
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import load_study
from threefold.studies.study_worker import execute

from .tiny import write_study


def _call(*arguments: str, code: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["threefold", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == code


@pytest.fixture
def copied(run: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(run.path, tmp_path / "copied")
    shutil.rmtree(tmp_path / "copied" / "tables", ignore_errors=True)
    return RunFolder(tmp_path / "copied")


def test_a_run_is_probed_into_its_folder(copied: RunFolder) -> None:
    told: list[tuple[int, int]] = []
    found = probe_run(copied, progress=lambda done, total: told.append((done, total)))
    names = {path.name for path in found.files}
    stems = ("shortcut", "calibration_temperature", "probes")
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("md", "csv")}
    assert found.notes == ()
    test = pd.read_csv(copied.predictions).query("part == 'test'")
    assert told[-1] == (len(test), len(test))
    probes = pd.read_csv(copied.tables / "probes.csv").query("of == 'probe' and metric == 'accuracy'")
    assert {*probes["target"]} == {"label", "shortcut", "site"}
    everyone = probes[probes["group"] == "all"].set_index("target")
    assert everyone.loc["label", "n"] == len(test)
    values = pd.read_csv(copied.tables / "shortcut.csv", dtype={"column_value": str})
    cells = values.query("within == 'all' and label == label and column_value in ['0', '1']")
    assert cells["n"].sum() == len(test)
    right = cells["value"] * cells["n"]
    both = values.query("within == 'all' and label != label and column_value in ['0', '1']")
    both = both[both["metric"] == "accuracy"]
    assert right.sum() == pytest.approx((both["value"] * both["n"]).sum())
    temperature = pd.read_csv(copied.tables / "calibration_temperature.csv")
    assert temperature.loc[0, "metric"] == "temperature"
    assert {*temperature["when"]} == {"fitted", "before", "after", "change"}
    for table in found.tables:
        assert "interval over 50 resamples" in plain(table)
        assert (copied.tables / "shortcut.md").read_text().startswith("## Test cases by shortcut")


def test_another_column_is_asked_for_by_name(copied: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    _call("probe", str(copied.path), "--shortcut", "site_group")
    printed = capsys.readouterr().out
    assert "Test cases by site_group" in printed
    assert "site_group internal, " in printed
    # The tables about the phantom's own shortcut keep their names.
    assert (copied.tables / "shortcut-site_group.csv").is_file()
    assert (copied.tables / "probes-site_group.md").is_file()
    assert not (copied.tables / "shortcut.csv").exists()
    assert f"Tables: {copied.tables}" in printed
    with pytest.raises(PredictionsError, match=r"no column 'shortcud'.*shortcut"):
        probe_run(copied, column="shortcud")


def test_the_site_as_the_column_is_probed_once(copied: RunFolder) -> None:
    probe_run(copied, column="site")
    probes = pd.read_csv(copied.tables / "probes-site.csv")
    assert {*probes["target"]} == {"label", "site"}
    assert not probes.duplicated().any()


def test_a_cohort_that_was_moved_or_changed_is_asked_for(
    copied: RunFolder, cohort_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = json.loads(copied.cohort.read_text())
    copied.settings.unlink(missing_ok=True)
    copied.cohort.write_text(json.dumps({**described, "folder": str(tmp_path / "gone")}))
    with pytest.raises(CohortError, match="--cohort"):
        probe_run(copied)
    assert not copied.tables.exists()
    probe_run(copied, cohort=read_cohort(cohort_folder))
    changed = tmp_path / "changed"
    shutil.copytree(cohort_folder, changed)
    rows = (changed / "cases.csv").read_text().splitlines()
    (changed / "cases.csv").write_text("\n".join(rows[:-1]) + "\n")
    _call("probe", str(copied.path), "--cohort", str(changed), code=1)
    assert "not the cohort that" in capsys.readouterr().err


def test_a_run_without_the_column_says_so(copied: RunFolder) -> None:
    table = pd.read_csv(copied.predictions, dtype=str, keep_default_na=False)
    copied.settings.unlink(missing_ok=True)
    write_table(copied.predictions, table.drop(columns="shortcut").to_csv(index=False))
    found = probe_run(copied)
    assert "--shortcut COLUMN" in found.notes[0]
    assert not (copied.tables / "shortcut.md").exists()
    assert (copied.tables / "probes.md").is_file()


def test_a_run_is_like_itself_and_less_like_another(
    run: RunFolder, copied: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import safetensors.torch
    import torch

    weights = safetensors.torch.load_file(copied.weights)
    other = RunFolder(tmp_path / "other")
    shutil.copytree(copied.path, other.path)
    torch.manual_seed(0)
    noisy = {name: w + 0.3 * torch.randn_like(w) for name, w in weights.items()}
    other.settings.unlink(missing_ok=True)
    safetensors.torch.save_file(noisy, other.weights)
    found = {(each.first, each.second, each.stage): each.found for each in compare_runs((run, copied, other))}
    stages = {stage for _, _, stage in found}
    assert "features" in stages
    assert "stage 1" in stages
    names = distinct_names((run, copied, other))
    for stage in stages:
        assert found[names[0], names[1], stage].value == pytest.approx(1)
        assert found[names[0], names[2], stage].value < 0.99
        assert found[names[0], names[2], stage].n > 4
    _call("similarity", str(run.path), str(other.path), "--out", str(tmp_path / "alike"))
    assert "stage 1" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "alike" / "similarity.csv")
    assert {*table["stage"]} == stages
    assert (tmp_path / "alike" / "similarity.png").stat().st_size > 1000
    assert "linear CKA" in (tmp_path / "alike" / "similarity.md").read_text()


def test_a_case_that_cant_be_read_costs_itself_alone(
    copied: RunFolder, cohort_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(cohort_folder, tmp_path / "broken"))
    bad, *others = read_split(copied.split).cases(read_cohort(broken), "test")
    bad.image.write_bytes(b"no image")
    _call("probe", str(copied.path), "--cohort", str(broken), code=1)
    assert f"failed: {bad.case_id}: " in capsys.readouterr().err
    probes = pd.read_csv(copied.tables / "probes.csv").query("group == 'all' and metric == 'accuracy'")
    assert {*probes[probes["of"] == "probe"]["n"]} == {len(others)}
    other = Path(shutil.copytree(copied.path, tmp_path / "other"))
    out = tmp_path / "alike"
    _call("similarity", str(copied.path), str(other), "--cohort", str(broken), "--out", str(out), code=1)
    assert f"failed: {bad.case_id}: " in capsys.readouterr().err
    assert {*pd.read_csv(out / "similarity.csv")["n"]} == {len(read_cohort(broken).cases) - 1}


def test_predictions_without_a_case_are_named_by_a_study_and_a_chain(
    copied: RunFolder,
    cohort_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied.settings.unlink(missing_ok=True)
    write_failures(copied.failed, {"lost": "lost.nii.gz: no such file"})
    study = load_study(str(write_study(tmp_path / "tiny.yaml", cohort_folder)))
    folder = StudyFolder(tmp_path / "study")
    folder.write(study)
    monkeypatch.setattr("threefold.training.run.train", lambda *_, **__: copied)
    said = execute(folder.path, "heads/seg/split-0-seed-0")
    assert said == "predictions without 1 cases: failed: lost: lost.nii.gz: no such file"
    report = evaluate_run(copied)
    chain = ChainReport({"segment": report}, (), EvaluationSpec(), tmp_path)
    monkeypatch.setattr("threefold.studies.chain.run_chain", lambda *_: chain)
    command = ("chain", "aortic-arch", "--cohort", str(cohort_folder), "--out", str(tmp_path / "chain"))
    _call(*command, code=1)
    printed = capsys.readouterr()
    assert "failed: lost: lost.nii.gz: no such file" in printed.err
    assert "segment: tables in" in printed.out


def test_runs_that_can_not_be_compared_are_refused(
    run: RunFolder, copied: RunFolder, cohort_folder: Path
) -> None:
    with pytest.raises(UsageError, match="two or more different runs"):
        compare_runs((run, run))
    split = copied.split.read_text()
    copied.settings.unlink(missing_ok=True)
    copied.split.write_text(split.replace(",test", ",validation"))
    with pytest.raises(RunError, match="no case is in the test part of all 2 runs"):
        compare_runs((run, copied))
    copied.split.write_text(split)
    described = json.loads(copied.cohort.read_text())
    copied.settings.unlink(missing_ok=True)
    copied.cohort.write_text(json.dumps({**described, "fingerprint": "another"}))
    with pytest.raises(RunError, match="trained on other cohorts"):
        compare_runs((run, copied))
    cohort = read_cohort(cohort_folder)
    found = compare_runs((run, copied), cohort=cohort)
    assert found[0].found.n == len(cohort.cases)


def test_patients_of_one_name_are_one_cluster_whatever_their_site(
    run: RunFolder, copied: RunFolder, cohort_folder: Path
) -> None:
    cohort = read_cohort(cohort_folder)
    names = dict(zip(dict.fromkeys(case.patient_id for case in cohort.cases), "ab" * 99, strict=False))
    twins = [replace(case, patient_id=names[case.patient_id]) for case in cohort.cases]
    assert len({(case.site, case.patient_id) for case in twins}) > 2
    found = compare_runs((run, copied), cohort=replace(cohort, cases=tuple(twins)))
    assert {each.found.patients for each in found} == {2}


def test_names_leave_out_what_is_shared() -> None:
    def names(*paths: str) -> tuple[str, ...]:
        return distinct_names([RunFolder(Path(path)) for path in paths])

    assert names("/r/cls/split-0", "/r/cls-seg/split-0") == ("cls", "cls-seg")
    assert names("/r/cls/seed-0", "/r/cls/seed-1") == ("seed-0", "seed-1")
    assert names("/r/a/x/seed-0", "/r/b/x/seed-1") == ("a/x/seed-0", "b/x/seed-1")
    assert len({*names("/r/run", "/r/run/before")}) == 2
