"""A report shows what a run or a study left, says what is missing, and needs nothing but its file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from threefold.cli.app import main
from threefold.cohorts.cohort import read_cohort
from threefold.cohorts.splits import Split, read_split, write_split
from threefold.errors import RunError, UsageError
from threefold.experiment import Experiment
from threefold.reporting.html import Code
from threefold.reporting.results import Part, write_part
from threefold.reporting.table import LEAK_MARK, LEAK_NOTE, Table
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_run, evaluate_run_on
from threefold.runs.page import leaks_of_runs, reproduction, typed
from threefold.studies.reports import report
from threefold.studies.study_folder import Outcome, StudyFolder
from threefold.studies.study_spec import load_study

from ..reporting.browser import browser
from ..reporting.test_html import Document

pytestmark = pytest.mark.drawn
NOTHING_OUTSIDE = ("#", "data:")
DECODED = "[...document.images].filter(image => image.naturalWidth > 0).length"


@pytest.fixture(scope="module")
def evaluated(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    copy = RunFolder(tmp_path_factory.mktemp("evaluated") / "my-run")
    shutil.copytree(run.path, copy.path)
    evaluate_run(copy)
    return copy


@pytest.fixture
def mine(evaluated: RunFolder, tmp_path: Path) -> RunFolder:
    """A run to be changed."""
    copy = RunFolder(tmp_path / "mine")
    shutil.copytree(evaluated.path, copy.path)
    return copy


def read(path: Path) -> Document:
    return Document(path.read_text())


def leave(folder: Path, part: str, tables: dict[str, str], pictures: tuple[str, ...] = ()) -> None:
    """Leave tables, by name and title, and pictures, as a command would."""
    for name in pictures:
        Image.new("RGB", (9, 9)).save(folder / "figures" / f"{name}.png")
    made = tuple(Table(title, ("a", "b"), (("1", "2"),), name=name) for name, title in tables.items())
    write_part(folder, part, Part({}, (), made, pictures))


def contents(document: Document) -> list[str]:
    return [address.removeprefix("#") for address in document.addresses if address.startswith("#")]


def test_every_part_of_an_evaluated_run_is_there(evaluated: RunFolder) -> None:
    counted: list[tuple[int, int]] = []
    found = read(report(evaluated.path, progress=lambda done, total: counted.append((done, total))))
    assert contents(found) == [
        "training-setup",
        "split-and-leaks",
        "results-by-site",
        "roc",
        "calibration",
        "prediction-sets-and-unfamiliar-images",
        "shift-between-sites",
        "segmentation-and-topology",
        "wrong-diagnoses",
        "training",
        "data-audit",
        "not-in-this-report",
        "environment",
        "how-to-reproduce",
    ]
    assert contents(found) == found.ids
    assert counted[-1][0] == counted[-1][1] > 0
    for words in (
        "No leak: split by patient",
        "Test cases by site, per case",
        "Shift: external against internal",
        "Best and worst cases by Dice",
        f"threefold explain {evaluated.path}",
        f"threefold train {evaluated.experiment}",
        json.loads(evaluated.cohort.read_text())["fingerprint"],
        json.loads(evaluated.environment.read_text())["packages"]["torch"],
        "needs structures, which this run does not have",
        "Not a medical device",
    ):
        assert words in found.words
    assert found.tags.count("img") == len(list(evaluated.figures.glob("*.png")))
    assert all(address.startswith(NOTHING_OUTSIDE) for address in found.addresses)


def test_cases_and_patients_are_counted_by_site_and_part(evaluated: RunFolder, cohort_folder: Path) -> None:
    found = read(report(evaluated.path))
    cohort, split = read_cohort(cohort_folder), read_split(evaluated.split)
    for part in ("train", "validation", "test"):
        cases = split.cases(cohort, part)
        assert f"{len(cases)}/{len({case.patient_id for case in cases})}" in found.words
    assert "site-05 external" in found.words


def test_what_explain_leaves_is_shown_under_its_headings(mine: RunFolder) -> None:
    tables = {"attention": "Attention by site", "counterfactuals": "Flips <i>", "surprise": "Unheard of"}
    leave(mine.path, "explain", tables, ("attention-internal",))
    found = read(report(mine.path))
    shown = contents(found)
    assert shown.index("attention") < shown.index("shortcut-use") < shown.index("further-tables-and-figures")
    assert {"Attention by site", "Flips <i>", "Unheard of"} <= set(found.text)
    assert f"threefold explain {mine.path}" not in found.words


def test_what_explain_was_asked_and_did_not_find_is_not_promised(mine: RunFolder) -> None:
    asked = f"threefold explain {mine.path}"
    assert f"Attention {asked} creates it." in read(report(mine.path)).words
    mine.evidence.write_text("case_id\n")
    leave(mine.path, "explain", {"probes": "Probes"})
    words = read(report(mine.path)).words
    assert f"Attention nothing to show: {asked} was run, and no test case has the required data." in words
    assert "creates it" not in words


def test_a_table_that_was_changed_is_not_shown(mine: RunFolder) -> None:
    text = mine.results.read_text()
    mine.results.write_text(text.replace('"n": ', '"n": 1', 1))
    with pytest.raises(RunError, match=r"results\.json: is not what was written.*threefold evaluate"):
        report(mine.path)


@pytest.mark.parametrize("name", ["split.csv", "experiment.yaml", "status.json"])
def test_a_report_is_of_the_settings_that_the_run_was_finished_with(mine: RunFolder, name: str) -> None:
    path = mine.path / name
    path.write_text(path.read_text() + "\n")
    with pytest.raises(RunError, match=rf"{name}: is not what was written"):
        report(mine.path)


def test_a_run_that_was_not_evaluated_says_so(run: RunFolder, tmp_path: Path) -> None:
    bare = RunFolder(tmp_path / "bare")
    shutil.copytree(run.path, bare.path, ignore=shutil.ignore_patterns("tables", "figures", "results.json"))
    found = read(report(bare.path))
    assert "The run has not been evaluated." in found.words
    assert found.tags.count("img") == 0
    assert f"ROC threefold evaluate {bare.path} creates it." in found.words


def test_an_unfinished_run_says_how_to_go_on(mine: RunFolder) -> None:
    mine.write_status(**{**mine.read_status(), "state": "interrupted", "epoch": 3, "epochs": 9})
    mine.results.unlink()
    found = read(report(mine.path))
    assert "The training has not finished: interrupted, 3 of 9 epochs." in found.words
    assert "the training has to finish first" in found.words


@pytest.mark.parametrize("name", ["predictions.csv", "structures.csv"])
def test_tables_that_are_older_than_the_predictions_are_called_old(mine: RunFolder, name: str) -> None:
    old = "are older than the predictions."
    mine.structures.touch()
    mine.evidence.write_text("case_id\n")
    newest = mine.evidence.stat().st_mtime + 1
    for made in (mine.tables / "metrics.csv", mine.evidence):
        os.utime(made, (newest, newest))
    assert old not in read(report(mine.path)).words
    os.utime(mine.path / name, (newest + 1, newest + 1))
    words = read(report(mine.path)).words
    for verb in ("evaluate", "explain"):
        said = f"The results of threefold {verb} {old} threefold {verb} {mine.path} updates them."
        assert words.index(said) < words.index("At a glance")


def test_a_leak_is_said_before_all_numbers(mine: RunFolder) -> None:
    split = read_split(mine.split)
    mine.settings.unlink(missing_ok=True)
    write_split(mine.split, Split("slice", split.parts, ("p<1>", "p2")))
    evaluate_run(mine)
    found = read(report(mine.path))
    assert found.words.index("Leak: 2 patients") < found.words.index("At a glance")
    assert "They are p<1>, p2." in found.words
    assert "No leak" not in found.words


def test_a_cohort_that_was_moved_or_changed_is_not_audited(mine: RunFolder, tmp_path: Path) -> None:
    described = json.loads(mine.cohort.read_text())
    mine.settings.unlink(missing_ok=True)
    mine.cohort.write_text(json.dumps({**described, "folder": str(tmp_path / "gone")}))
    found = read(report(mine.path))
    assert "Cases by part" in found.words
    assert "is no longer there" in found.words
    mine.cohort.write_text(json.dumps({**described, "fingerprint": "other"}))
    found = read(report(mine.path))
    assert "is another one now" in found.words
    assert "threefold check COHORT" in found.words


def test_another_cohorts_evaluation_has_its_own_section(mine: RunFolder, cohort_folder: Path) -> None:
    evaluate_run_on(mine, read_cohort(cohort_folder))
    found = read(report(mine.path))
    assert f"on-the-cohort-{cohort_folder.name}" in found.ids


def test_each_task_with_columns_of_its_own_has_a_section(mine: RunFolder) -> None:
    for name, title in (("age", "age"), ("findings", "findings"), ("findings/any", "Of any")):
        folder = mine.path / "tasks" / name
        (folder / "figures").mkdir(parents=True)
        leave(folder, "evaluate", {"main": title}, ("agreement",) if name == "age" else ())
    found = read(report(mine.path))
    assert {"task-age", "task-findings"} < {*found.ids}
    shown = found.words[found.words.index("Task findings", found.words.index("Agreement")) :]
    assert "any Of any" in shown


def test_what_is_neither_run_nor_study_is_refused(evaluated: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"neither a run .* a study .* Runs below it: .*my-run"):
        report(evaluated.path.parent)
    with pytest.raises(RunError, match="found nothing"):
        report(tmp_path / "nothing")
    with pytest.raises(RunError, match="is a folder"):
        report(evaluated.path, tmp_path)
    with pytest.raises(RunError, match="there is no folder"):
        report(evaluated.path, tmp_path / "nowhere" / "a.html")
    (evaluated.path.parent / "damaged").mkdir()
    damaged = RunFolder(evaluated.path.parent / "damaged")
    shutil.copytree(evaluated.path, damaged.path, dirs_exist_ok=True)
    for text, said in (
        ("{}", "expected version 1, found None"),
        ('{"version": 1, "parts": {"evaluate": 3}}', "parts"),
    ):
        damaged.results.write_text(text)
        with pytest.raises(RunError, match=rf"(?s)results\.json.*{said}"):
            report(damaged.path)


def test_the_command_says_where_the_file_is(
    evaluated: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["threefold", "report", str(evaluated.path), "--out", str(out)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == 0
    assert f"Report: {out}" in capsys.readouterr().out
    assert out.is_file()
    assert not (evaluated.path / out.name).exists()


def test_files_outside_of_the_cohort_and_evidence_are_part_of_how_to_reproduce(
    mine: RunFolder, experiment: Experiment, cohort_folder: Path, tmp_path: Path
) -> None:
    def commands(home: Path) -> list[str]:
        codes = [block.text for block in reproduction(mine, experiment, home) if isinstance(block, Code)]
        return codes[-1].splitlines()

    referring = tmp_path / "referring"
    referring.mkdir()
    shutil.copy(cohort_folder / "cohort.yaml", referring)
    table = pd.read_csv(cohort_folder / "cases.csv", dtype=str, keep_default_na=False)
    table["image"] = [str(cohort_folder / path) for path in table["image"]]
    table.to_csv(referring / "cases.csv", index=False)
    known = json.loads(mine.environment.read_text())
    for command, home, needed in (
        (["threefold", "train"], cohort_folder, False),
        (["threefold", "train"], referring, True),
        (["threefold", "train"], tmp_path / "gone", False),
        (["threefold", "train", "--allow-outside"], tmp_path / "gone", True),
    ):
        mine.environment.write_text(json.dumps({**known, "command": command}))
        assert commands(home)[0].endswith(" --allow-outside") == needed
    again = f"{mine.path}-again"
    assert commands(referring)[1:] == [f"threefold {verb} {again}" for verb in ("evaluate", "report")]
    mine.evidence.write_text("case_id\n")
    verbs = ("evaluate", "explain", "report")
    assert commands(referring)[1:] == [f"threefold {verb} {again}" for verb in verbs]


def test_a_command_is_shown_as_it_was_typed() -> None:
    assert typed(["/somewhere/bin/threefold", "train", "a b"]) == "threefold train 'a b'"
    assert typed(["/x/__main__.py", "demo"]) == "threefold demo"
    of_study = typed(["/x/studies/study_worker.py", "s", "c/v/split-0-seed-0"])
    assert of_study == "threefold study run s/study.yaml --out s --only c/v/split-0-seed-0"


STUDY = {
    "name": "tiny",
    "description": "Is it <so>?",
    "cohorts": {"a": {"phantom": "head-ct", "preset": "demo"}},
    "variants": {"one": {"recipe": "hematoma/demo"}, "two": {"recipe": "hematoma/demo"}},
    "seeds": [0, 1],
    "replicates": 50,
    "claims": [{"claim": "two & more", "variant": "two", "baseline": "one", "metric": "auc"}],
}


@pytest.fixture
def study(evaluated: RunFolder, tmp_path: Path) -> StudyFolder:
    """Two runs have finished, one has failed, one has not begun."""
    folder = StudyFolder(tmp_path / "my study")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    folder.write(load_study(str(tmp_path / "study.yaml")))
    for variant in ("one", "two"):
        ignored = shutil.ignore_patterns("report.html")
        shutil.copytree(evaluated.path, folder.run(f"a/{variant}/split-0-seed-0").path, ignore=ignored)
        folder.remember(Outcome(f"a/{variant}/split-0-seed-0", "finished", "", 60.0, 1.0))
    folder.remember(Outcome("a/one/split-0-seed-1", "failed", "first <line>\nsecond line", 6.0, 1.0))
    return folder


def compare(folder: StudyFolder) -> None:
    from threefold.studies.comparison import compare_study, write_comparison

    write_comparison(compare_study(folder), folder)


def test_a_study_before_it_is_compared(study: StudyFolder) -> None:
    found = read(report(study.path))
    assert "2 of 4 runs have finished (1 failed, 1 waiting)" in found.words
    assert (
        f"The runs have not been compared: no claim has a verdict yet. threefold study compare {study.path}"
        in (found.words)
    )
    assert "first <line> second line" in found.words
    first = "the-first-run-of-each-variant"
    assert contents(found) == [
        "protocol",
        "splits-and-leaks",
        first,
        "the-runs",
        "data-audit",
        "environment",
        "how-to-reproduce",
    ]
    assert "a/one, split 0, seed 0" in found.words
    assert "claims registered" not in found.words  # the folder does not say


def test_a_compared_study_has_claims_variants_pairs_and_links(study: StudyFolder, tmp_path: Path) -> None:
    study.protocol.write_text('{"lines": []}')  # of before there were claims
    compare(study)
    leave(study.path, "further", {"attention": "Attention by variant"})
    found = read(report(study.path))
    assert contents(found) == [
        "protocol",
        "splits-and-leaks",
        "verdict-of-each-claim",
        "variants",
        "pairs-of-runs",
        "further-tables-and-figures",
        "the-first-run-of-each-variant",
        "the-runs",
        "data-audit",
        "environment",
        "how-to-reproduce",
    ]
    assert "+00:00; 1 of 1 rows after results were visible" in found.words
    for words in (
        "Is it <so>?",
        "two & more",
        "unfinished, late",
        "Attention by variant",
        "AUC of each pair",
    ):
        assert words in found.words
    assert found.tags.count("img") == 1 + 2 * 4  # the claims, and of each variant's first run four
    links = [address for address in found.addresses if not address.startswith(NOTHING_OUTSIDE)]
    assert links == ["runs/a/one/split-0-seed-0", "runs/a/two/split-0-seed-0"]
    # From elsewhere they lead there too, and to a run's own report where it has one.
    report(study.run("a/one/split-0-seed-0").path)
    elsewhere = read(report(study.path, tmp_path / "elsewhere.html"))
    links = [address for address in elsewhere.addresses if not address.startswith(NOTHING_OUTSIDE)]
    assert links == [
        "my%20study/runs/a/one/split-0-seed-0/report.html",
        "my%20study/runs/a/two/split-0-seed-0",
    ]


def test_of_each_first_run_the_best_and_the_worst_are_shown(study: StudyFolder) -> None:
    first = study.run("a/one/split-0-seed-0")
    pictures = ("volumes-best", "volumes-worst", "volumes-disc", "volumes-disagreement")
    leave(first.path, "further", {"disagreements": "For review"}, pictures)
    words = read(report(study.path)).words
    shown = words[words.index("a/one, split 0, seed 0") : words.index("a/two, split 0, seed 0")]
    parts = (
        "Test cases by site, per case site positive F1 AUC",
        "n: cases/patients.",
        "ROC by site group",
        "Calibration by site group",
        "Metrics by site",
        "Shift: external against internal, per case",
        "Test cases by site group, from the best on the left to the worst on the right",
        "The best test case by Dice",
        "The worst test case by Dice",
        "Best and worst cases by Dice",
        "A case whose topology and classifier disagree",
        "For review",
    )
    places = [shown.index(part) for part in parts]
    assert places == sorted(places)
    assert "A typical test case" not in shown  # the run's own report has them
    assert LEAK_MARK not in words


def test_a_first_run_that_leaks_is_marked_beside_its_numbers(study: StudyFolder) -> None:
    leaking = study.run("a/two/split-0-seed-0")
    leaking.settings.unlink(missing_ok=True)
    write_split(leaking.split, Split("slice", read_split(leaking.split).parts, ("p1",)))
    evaluate_run(leaking)
    words = read(report(study.path)).words
    shown = words[words.index("a/two, split 0, seed 0 †") : words.rindex("The runs")]
    assert shown.startswith("a/two, split 0, seed 0 † Leak: 1 patient has cases in more than one part.")
    assert shown.count(LEAK_MARK) > 5
    assert "a/one, split 0, seed 0 †" not in words


def test_a_first_run_whose_tables_are_old_says_so(study: StudyFolder) -> None:
    run = study.run("a/two/split-0-seed-0")
    later = (run.tables / "metrics.csv").stat().st_mtime + 1
    os.utime(run.predictions, (later, later))
    words = read(report(study.path)).words
    assert "a/two, split 0, seed 0 The results of threefold evaluate are older than" in words
    assert words.count("are older than the predictions") == 1


def test_first_runs_without_tables_say_how_they_get_them(study: StudyFolder) -> None:
    for variant in ("one", "two"):
        run = study.run(f"a/{variant}/split-0-seed-0")
        shutil.rmtree(run.figures)
        if variant == "one":
            run.results.unlink()
    words = read(report(study.path)).words
    assert "Without tables and figures: a/one/split-0-seed-0. threefold evaluate RUN creates them" in words
    assert "a/two, split 0, seed 0 Test cases by site, per case" in words


def test_a_comparison_that_a_later_run_is_not_in_is_called_old(study: StudyFolder) -> None:
    compare(study)
    assert "A run has ended, or the study was changed, since" not in read(report(study.path)).words
    study.remember(Outcome("a/two/split-0-seed-1", "failed", "", 6.0, 1.0))
    assert "A run has ended, or the study was changed, since" in read(report(study.path)).words


def test_tables_of_a_study_without_claims_can_be_old_too(study: StudyFolder) -> None:
    study.study.write_text(yaml.safe_dump({**study.read().model_dump(mode="json"), "claims": []}))
    words = read(report(study.path)).words
    assert "The study makes no claim. The runs have not been compared: there are no means of the" in words
    compare(study)
    words = read(report(study.path)).words
    assert "The study makes no claim." in words
    assert "have not been compared" not in words
    assert "A run has ended, or the study was changed, since" not in words
    study.remember(Outcome("a/two/split-0-seed-1", "failed", "", 6.0, 1.0))
    assert "A run has ended, or the study was changed, since" in read(report(study.path)).words


def test_a_study_does_not_round_its_confidence(study: StudyFolder) -> None:
    assert "confidence 95%, over 50 replicates" in read(report(study.path)).words
    for confidence in (0.975, 0.999):
        study.study.write_text(
            yaml.safe_dump({**study.read().model_dump(mode="json"), "confidence": confidence})
        )
        assert f"confidence {confidence * 100:.1f}%, over" in read(report(study.path)).words


def test_a_study_says_whether_any_of_its_runs_leaks(study: StudyFolder) -> None:
    opening = "No leak: split by patient; no patient is in two parts of any of the 2 runs that have begun."
    found = read(report(study.path))
    assert found.words.index(opening) < found.words.index("Protocol")
    parts = read_split(study.run("a/one/split-0-seed-0").split).parts
    counts = " ".join(str([*parts.values()].count(part)) for part in ("train", "validation", "test"))
    assert f"a 0 patient none {counts} one, two 2" in found.words
    study.run("a/two/split-0-seed-0").settings.unlink(missing_ok=True)
    write_split(study.run("a/two/split-0-seed-0").split, Split("slice", parts, ("p1", "p2")))
    found = read(report(study.path))
    leak = (
        "Leak in 1 of the 2 runs that have begun. "
        "2 patients have cases in more than one part in a/two/split-0-seed-0."
    )
    assert found.words.index(leak) < found.words.index("Protocol")
    assert "No leak" not in found.words
    assert f"a 0 patient none {counts} one 1 a 0 slice 2 {counts} two 1" in found.words


def test_each_cohort_of_a_study_is_audited_where_it_is_there(
    study: StudyFolder, cohort_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(cohort_folder, tmp_path / "moved")
    asked = study.read().model_dump(mode="json")
    asked["cohorts"] |= {"unused": {"folder": str(tmp_path / "moved")}, "gone": {"folder": "/nowhere"}}
    study.study.write_text(yaml.safe_dump(asked))
    counted: list[tuple[int, int]] = []
    words = read(report(study.path, progress=lambda done, total: counted.append((done, total)))).words
    cases = len(read_cohort(cohort_folder).cases)
    assert counted == 2 * [(done, cases) for done in range(1, cases + 1)]
    audits = words[words.rindex("Data audit") :]
    assert audits.startswith("Data audit a Training can start: 0 to correct")
    assert "With the split of a/one/split-0-seed-0 and the targets of all variants." in audits
    assert audits.count(f"{cases} cases of") == 2
    assert "unused Training can start" in audits
    assert "gone No run on it has begun, and it is not in /nowhere yet." in audits


def test_a_cohort_that_a_study_has_no_more_is_not_audited(study: StudyFolder, tmp_path: Path) -> None:
    for variant in ("one", "two"):
        described = study.run(f"a/{variant}/split-0-seed-0").cohort
        described.write_text(json.dumps({**json.loads(described.read_text()), "folder": "cohort"}))
    words = read(report(study.path)).words
    home = study.path / "cohorts" / "a"
    assert f"The cohort is not in {home} as it was trained on" in words
    assert "Sites and findings" not in words


def test_of_many_leaking_runs_some_are_named() -> None:
    alone = Split("slice", {"c": "train"}, ("p",))
    said = leaks_of_runs({f"run-{number:02}": alone for number in range(12)}).text
    assert "Leak in 12 of the 12 runs" in said
    assert "1 patient has cases in more than one part in run-00, run-01," in said
    assert "run-09 and 2 more." in said
    assert LEAK_NOTE in said
    assert "of the one run that has begun." in leaks_of_runs({"one": Split("site", {"c": "train"})}).text


def test_a_study_of_which_nothing_has_run(study: StudyFolder) -> None:
    shutil.rmtree(study.path / "runs")
    shutil.rmtree(study.path / "outcomes")
    found = read(report(study.path))
    assert "None of the runs has finished: no claim has a verdict yet." in found.words
    assert "No run has begun." in found.words
    assert "No leak" not in found.words


def test_a_browser_shows_reports_and_asks_for_nothing(
    evaluated: RunFolder, study: StudyFolder, tmp_path: Path
) -> None:
    compare(study)
    figures = len(list(evaluated.figures.glob("*.png")))
    reports = ((report(evaluated.path), figures, "demo: my-run"), (report(study.path), 9, "Study tiny"))
    with browser(tmp_path / "profile") as page:
        for path, pictures, title in reports:
            for width, dark in ((1200, False), (390, False), (390, True)):
                page.open(path, width=width, height=800, dark=dark)
                outside = [address for address in page.requests if not address.startswith("data:")]
                assert outside == [path.resolve().as_uri()]
                assert page.evaluate("document.title") == title
                assert (
                    page.evaluate("[...document.images].filter(i => i.naturalWidth > 0).length") == pictures
                )
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (colour == "rgb(255, 255, 255)") != dark
            # Nothing is cut off in print: what is folded is open, what is wide is wrapped.
            page.open(path, width=718, height=1000, media="print")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            heights = page.evaluate("[...document.querySelectorAll('details')].map(d => d.offsetHeight)")
            assert min(heights) > 50


def test_the_browser_test_would_see_a_request(tmp_path: Path) -> None:
    leaky = tmp_path / "leaky.html"
    leaky.write_text("<title>t</title><img src='http://127.0.0.1:9/x.png'><p style='width:2000px'>wide</p>")
    with browser(tmp_path / "profile") as page:
        page.open(leaky, width=390, height=800)
        assert "http://127.0.0.1:9/x.png" in page.requests
        assert page.evaluate(DECODED) == 0
        assert not page.evaluate("document.documentElement.scrollWidth <= 390")


@pytest.mark.parametrize("name", ["claim", "tripod-ai"])
def test_a_guidelines_items_are_filled_as_far_as_the_run_knows(
    name: str, mine: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["threefold", "report", str(mine.path), "--checklist", name])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    found = read(mine.path / "report.html")
    assert f"{name}-checklist" in contents(found)
    counts = Counter(read_split(mine.split).parts.values())
    for told in (
        "of 42 items have something from this run",
        "bootstrap resamples of patients",
        "patients: none has cases in two parts",
        f"{counts['train']} train, {counts['validation']} validation, {counts['test']} test cases",
        json.loads(mine.environment.read_text())["packages"]["torch"],
        "to be written",
    ):
        assert told in found.words, told


def test_a_checklist_is_of_a_run(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "study")
    study.path.mkdir()
    study.study.write_text("name: x\n")
    with pytest.raises(UsageError, match="A checklist is filled from one run"):
        report(study.path, checklists=["claim"])
