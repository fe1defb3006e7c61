"""Studies really run: resumed after a kill, failures reported, compared, and the same again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

from threefold.checksums import write_table
from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.cohorts.degradation import DegradationSpec
from threefold.errors import CohortError, ExperimentError, RunError, UsageError
from threefold.locks import alone_in
from threefold.reporting.study_figures import claim_figure
from threefold.studies import study_cohorts, study_pools
from threefold.studies.comparison import compare_study, write_comparison
from threefold.studies.protocol import Protocol, read_protocol, write_down
from threefold.studies.study import run_study
from threefold.studies.study_cohorts import pointed_at, prepare_cohort
from threefold.studies.study_folder import Outcome, StudyFolder
from threefold.studies.study_pools import LocalPool
from threefold.studies.study_spec import CohortSource, StudySpec, load_study
from threefold.studies.study_status import standing_of, status_table
from threefold.training.folder import is_held

from .tiny import CLS, OVERRIDES, SEG, Heard, run_here, until, write_study


@pytest.fixture(autouse=True, scope="module")
def _in_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_pools, "run_in_process", run_here)
        patch.setenv("THREEFOLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def run(study: StudySpec, out: Path, *only: str) -> tuple[list[Outcome], str]:
    """Run a study with one worker; return how its runs ended, and what was said."""
    pool, heard = LocalPool(out, 1, 1), Heard()
    try:
        return run_study(study, StudyFolder(out), pool, heard, only), heard.text
    finally:
        pool.close()


CLAIMS = [
    {"claim": "masks help abroad", "variant": "seg", "baseline": "cls", "group": "external"},
    {"claim": "they differ", "variant": "seg", "baseline": "cls", "metric": "brier", "expected": "different"},
]
VARIANTS = {
    "cls": {"recipe": CLS},
    "child": {"recipe": SEG, "init_from": "broken"},
    "broken": {"recipe": CLS, "overrides": ["training.optimiser.learning_rate=1.0e+30"]},
    "seg": {"recipe": SEG, "init_from": "cls"},
}


@pytest.fixture(scope="module")
def study(cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    home = tmp_path_factory.mktemp("study")
    return load_study(
        str(write_study(home / "tiny.yaml", cohort_folder, variants=VARIANTS, seeds=[0, 1], claims=CLAIMS))
    )


@pytest.fixture(scope="module")
def ended(
    study: StudySpec, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StudyFolder, list[Outcome], str]:
    out = tmp_path_factory.mktemp("out") / "study"
    ended, said = run(study, out)
    return StudyFolder(out), ended, said


def test_a_failing_variant_stops_only_what_starts_from_it(
    ended: tuple[StudyFolder, list[Outcome], str],
) -> None:
    folder, outcomes, said = ended
    states = {outcome.run: outcome.state for outcome in outcomes}
    assert states == {
        f"heads/{variant}/split-0-seed-{seed}": "finished" if variant in ("cls", "seg") else "failed"
        for variant in VARIANTS
        for seed in (0, 1)
    }
    messages = {outcome.run: outcome.message for outcome in outcomes}
    assert "not finite" in messages["heads/broken/split-0-seed-1"]
    assert messages["heads/child/split-0-seed-0"] == (
        "heads/broken/split-0-seed-0, whose weights it starts from, did not finish"
    )
    assert said.startswith("8 runs, 0 of them finished before\n")
    assert "4/8 heads/" in said
    assert not folder.run("heads/child/split-0-seed-0").path.exists()


def test_a_variant_starts_from_the_weights_of_its_seed(
    ended: tuple[StudyFolder, list[Outcome], str],
) -> None:
    folder, _, _ = ended
    for seed in (0, 1):
        content = yaml.safe_load(folder.run(f"heads/seg/split-0-seed-{seed}").experiment.read_text())
        start = folder.run(f"heads/cls/split-0-seed-{seed}").path.resolve()
        assert content["initial_weights"]["path"] == str(start)
        assert content["training"]["seed"] == seed


def test_the_status_says_each_runs_state(ended: tuple[StudyFolder, list[Outcome], str]) -> None:
    folder, _, _ = ended
    runs = list(standing_of(folder))
    table = status_table(runs)
    assert table.title == "8 runs: 4 finished, 4 failed"
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["heads/seg/split-0-seed-1"][:2] == ("finished", "2/2")
    assert rows["heads/broken/split-0-seed-0"][0] == "failed"
    assert "not finite" in rows["heads/broken/split-0-seed-0"][3]


def test_the_comparison_is_of_the_runs_tables(ended: tuple[StudyFolder, list[Outcome], str]) -> None:
    folder, _, _ = ended
    # A group without a test case can be asked for; nothing is made up for it.
    nowhere = {"claim": "nowhere", "variant": "seg", "baseline": "cls", "group": "site-99"}
    undrawn = {"claim": "masks", "variant": "seg", "baseline": "cls", "metric": "dice"}
    folder.write(changed(folder.read(), claims=[CLAIMS[0], undrawn, nowhere]))
    comparison = compare_study(folder)
    assert set(comparison.missing) == {
        f"heads/{v}/split-0-seed-{s}" for v in ("broken", "child") for s in (0, 1)
    }
    auc, dice, absent = comparison.claims
    positive, by_hand = positive_class(folder), {}
    for variant in ("cls", "seg"):
        for seed in (0, 1):
            table = pd.read_csv(folder.run(f"heads/{variant}/split-0-seed-{seed}").predictions)
            table = table[(table["part"] == "test") & (table["site_group"] == "external")]
            by_hand[variant, seed] = roc_auc_score(
                table["label"] == positive, table[f"probability_{positive}"]
            )
    expected = sum(by_hand["seg", seed] - by_hand["cls", seed] for seed in (0, 1)) / 2
    assert auc.effect.estimate.value == pytest.approx(expected)
    assert auc.baseline_mean.estimate.value == pytest.approx((by_hand["cls", 0] + by_hand["cls", 1]) / 2)
    assert auc.effect.each == pytest.approx([by_hand["seg", seed] - by_hand["cls", seed] for seed in (0, 1)])
    assert auc.variant_mean.each == pytest.approx([by_hand["seg", seed] for seed in (0, 1)])
    assert (auc.effect.runs, auc.pairs) == (2, 2)
    assert [(pair.seed, pair.difference.change.value) for pair in comparison.pairs] == [
        (seed, pytest.approx(by_hand["seg", seed] - by_hand["cls", seed])) for seed in (0, 1)
    ]
    # The classifier draws no masks, and there is no such site: said, not dropped and not an error.
    for row in (dice, absent):
        assert row.verdict == "not estimable"
        assert row.effect.estimate.n == 0
    assert {row.variant for row in comparison.means} == {"cls", "seg"}


def positive_class(folder: StudyFolder) -> str:
    header = folder.run("heads/cls/split-0-seed-0").predictions.read_text().splitlines()[0].split(",")
    return [name for name in header if name.startswith("probability_")][-1].removeprefix("probability_")


def test_the_comparisons_files_are_the_same_bytes_again(
    ended: tuple[StudyFolder, list[Outcome], str],
) -> None:
    folder, _, _ = ended

    def files() -> dict[str, bytes]:
        write_comparison(compare_study(folder), folder)
        return {
            path.name: path.read_bytes() for at in (folder.tables, folder.figures) for path in at.iterdir()
        }

    first = files()
    assert {*first} == {f"{n}.{k}" for n in ("claims", "variants", "pairs") for k in ("md", "csv")} | {
        "claims.png"
    }
    assert files() == first
    assert "n=" in first["claims.md"].decode()
    numbers = pd.read_csv(folder.tables / "claims.csv")
    effect = compare_study(folder).claims[0].effect
    assert numbers["effect.value"][0] == pytest.approx(effect.estimate.value)
    assert [float(one) for one in numbers["effect.each"][0].split()] == pytest.approx(effect.each)
    assert f"x2: {min(effect.each):+.3f} to {max(effect.each):+.3f}" in first["claims.md"].decode()


def test_a_study_run_again_gives_the_same_numbers_and_does_nothing_twice(
    study: StudySpec, ended: tuple[StudyFolder, list[Outcome], str], tmp_path: Path
) -> None:
    folder, _, _ = ended
    again, said = run(study, tmp_path / "again", "heads/seg/*-seed-1")
    assert [outcome.state for outcome in again] == ["finished"] * 2  # it and its start
    for variant in ("cls", "seg"):
        name = f"heads/{variant}/split-0-seed-1"
        mine, other = folder.run(name), StudyFolder(tmp_path / "again").run(name)
        weights, others = load_file(mine.weights), load_file(other.weights)
        assert {*weights} == {*others}
        assert all((weights[key] == others[key]).all() for key in weights)
        assert mine.predictions.read_bytes() == other.predictions.read_bytes()
    # Also after the folder was moved, though a run knows the full path of its start.
    (tmp_path / "again").rename(tmp_path / "moved")
    nothing, said = run(study, tmp_path / "moved", "heads/seg/*-seed-1")
    assert nothing == []
    assert "2 runs, 2 of them finished before" in said


def changed(study: StudySpec, **changes: Any) -> StudySpec:
    return StudySpec.model_validate({**study.model_dump(), **changes})


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"overrides": (*OVERRIDES, "training.epochs=3")}, RunError, "training.epochs: 2 in the run, 3 now"),
        ({"name": "other"}, RunError, "holds the study 'tiny', not 'other'"),
        ({"overrides": (*OVERRIDES, "training.devices=2")}, UsageError, "a study gives each run one device"),
        ({"overrides": (*OVERRIDES, "training.epoch=3")}, ExperimentError, "variant cls "),
        ({"cohorts": {"heads": {"folder": "/nowhere"}}}, CohortError, "/nowhere"),
        ({"overrides": (*OVERRIDES, "data.split.kind=column")}, RunError, "data.split.kind"),
    ],
)
def test_what_cant_go_on_is_refused_before_anything_is_changed(
    changes: dict[str, Any],
    error: type[Exception],
    said: str,
    study: StudySpec,
    ended: tuple[StudyFolder, list[Outcome], str],
) -> None:
    folder, _, _ = ended
    before = folder.study.read_bytes()
    with pytest.raises(error, match=said):
        run(changed(study, **changes), folder.path, "heads/cls/*")
    assert folder.study.read_bytes() == before


def test_a_run_whose_folder_was_removed_is_trained_anew(study: StudySpec, tmp_path: Path) -> None:
    name = "heads/cls/split-0-seed-0"
    out = StudyFolder(tmp_path / "out")
    out.write(study)
    out.remember(Outcome(name, "finished", "", 1.0, 0.1))
    assert {each.plan.id: each.state for each in standing_of(out)}[name] == "waiting"
    (outcome,), _ = run(study, out.path, name)
    assert outcome.state == "finished"


def test_two_commands_never_work_on_one_study(study: StudySpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with alone_in(out, "busy"), pytest.raises(RunError, match="another `threefold study run` is at work"):
        run(study, out)
    assert not (out / "runs").exists()


def test_a_file_in_the_studys_place_is_named(study: StudySpec, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(RunError, match=r"out: the folder can't be made \(File exists\)"):
        run(study, tmp_path / "out")


def test_a_folder_that_holds_something_else_is_refused(study: StudySpec, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/cases.csv").touch()
    with pytest.raises(RunError, match=r"out: is not empty and not a study .* Choose a new --out"):
        run(study, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cases.csv"]


def test_a_folder_that_a_kill_left_with_a_protocol_alone_is_gone_on_with(
    study: StudySpec, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "out")
    folder.path.mkdir()
    write_down(study, folder)
    assert [path.name for path in folder.path.iterdir()] == ["protocol.json"]
    (outcome,), _ = run(study, folder.path, "heads/cls/split-0-seed-0")
    assert outcome.state == "finished"
    assert all(line.finished_before == 0 for line in read_protocol(folder).lines)


def test_a_claim_has_no_verdict_before_all_of_its_pairs_have_finished(
    ended: tuple[StudyFolder, list[Outcome], str], tmp_path: Path
) -> None:
    whole, _, _ = ended
    shutil.copytree(whole.path, tmp_path / "study")
    folder = StudyFolder(tmp_path / "study")
    folder.write(changed(folder.read(), claims=CLAIMS))
    assert {line.verdict for line in compare_study(folder).claims} <= {"undecided", "not estimable"}
    folder.remember(Outcome("heads/seg/split-0-seed-1", "failed", "died", 1.0, 0.1))
    auc = compare_study(folder).claims[0]
    assert (auc.verdict, auc.effect.runs, auc.pairs) == ("unfinished", 1, 2)


def copy_of(folder: StudyFolder, out: Path, **changes: Any) -> StudyFolder:
    """Return a copy of a study's folder whose study says something else, as if it always had."""
    shutil.copytree(folder.path, out)
    copy = StudyFolder(out)
    copy.protocol.unlink()
    copy.write(changed(copy.read(), **changes))
    return copy


def make_seg_right(folder: StudyFolder) -> None:
    """Make seg nearly sure of every case, and right."""
    for seed in (0, 1):
        run = folder.run(f"heads/seg/split-0-seed-{seed}")
        run.settings.unlink(missing_ok=True)  # else what was changed is refused
        file = run.predictions
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        for name in (name for name in table if name.startswith("probability_")):
            right = table["label"] == name.removeprefix("probability_")
            table[name] = right.map({True: "0.9", False: "0.1"})
        write_table(file, table.to_csv(index=False))


def test_the_correction_counts_what_has_not_finished(
    ended: tuple[StudyFolder, list[Outcome], str], tmp_path: Path
) -> None:
    whole, _, _ = ended
    waiting = {"claim": "waits", "variant": "broken", "baseline": "cls", "metric": "brier"}
    folder = copy_of(whole, tmp_path / "study", claims=CLAIMS[1:])
    make_seg_right(folder)
    (alone,) = compare_study(folder).claims
    folder.write(changed(folder.read(), claims=[CLAIMS[1], waiting]))
    first, second = compare_study(folder).claims
    assert first.effect.p == alone.effect.p == alone.adjusted < 0.1
    assert first.adjusted == pytest.approx(2 * alone.adjusted)
    assert second.verdict == "unfinished"
    assert pd.isna(second.adjusted)


def test_a_claim_is_tested_against_the_difference_that_it_names(
    ended: tuple[StudyFolder, list[Outcome], str], tmp_path: Path
) -> None:
    claims = [{**CLAIMS[1], "expected": "higher", "beyond": beyond} for beyond in (-1.5, 1.5)]
    folder = copy_of(ended[0], tmp_path / "study", claims=claims)
    comparison = compare_study(folder)
    above, below = comparison.claims
    assert above.effect.estimate == below.effect.estimate  # p alone is of another difference
    # No two AUCs differ by 1.5: whatever was trained lies above the one and below the other.
    assert (above.effect.p, below.effect.p) == (pytest.approx(2 / 101, rel=1), pytest.approx(2 / 101, rel=1))
    (table, *_) = write_comparison(comparison, folder)
    assert [row[2].rpartition(", ")[2] for row in table.rows] == ["above -1.5", "above +1.5"]
    assert "that p is of, where it is not 0" in " ".join(table.notes)


def as_first_run(folder: StudyFolder, study: StudySpec, out: Path) -> StudyFolder:
    """Return a copy of a study's folder as it was before other tests wrote claims into it."""
    shutil.copytree(folder.path, out)
    copy = StudyFolder(out)
    lines = tuple(line for line in read_protocol(copy).lines if line.finished_before == 0)
    copy.protocol.write_text(Protocol(lines=lines).model_dump_json())
    copy.write(study)
    return copy


def test_a_claim_that_comes_after_its_runs_is_marked_and_one_withdrawn_still_counts(
    study: StudySpec, ended: tuple[StudyFolder, list[Outcome], str], tmp_path: Path
) -> None:
    folder = as_first_run(ended[0], study, tmp_path / "study")
    make_seg_right(folder)
    whole, (_, before) = compare_study(folder), compare_study(folder).claims
    assert (whole.withdrawn, [row.finished_before for row in whole.claims]) == ((), [0, 0])
    turned = {**CLAIMS[1], "claim": "they do harm", "expected": "higher"}
    now = changed(study, claims=[CLAIMS[1], turned])
    _, said = run(now, folder.path, "heads/seg/*")
    assert "late, as runs of theirs have finished, and marked so" in said
    assert "in the table of claims: they do harm. " in said
    comparison = compare_study(folder)
    first, second = comparison.claims
    assert comparison.withdrawn == (CLAIMS[0]["claim"],)
    assert (first.finished_before, second.finished_before) == (0, 4)
    assert first.effect == before.effect
    # Three lines count, not two.
    assert first.adjusted == second.adjusted == pytest.approx(3 * before.effect.p)
    tables = write_comparison(comparison, folder)
    # 100 replicates are enough for two rows and too few for three.
    assert "100 replicates are too few for 3 rows" in " ".join(tables[0].notes)
    assert [row[-1] for row in tables[0].rows] == [first.verdict, f"{second.verdict}, late"]
    labels = [text.get_text() for text in claim_figure(comparison.claims).axes[0].get_yticklabels()]
    assert [text.splitlines()[0] for text in labels] == ["they differ", "they do harm (late)"]
    notes = " ".join(tables[0].notes)
    assert "each row counts in the correction: masks help abroad." in notes
    assert "late: registered or changed after results" in notes


def test_late_claims_say_nothing_of_the_seeds_spread_in_the_others(
    study: StudySpec, ended: tuple[StudyFolder, list[Outcome], str], tmp_path: Path
) -> None:
    folder = as_first_run(ended[0], study, tmp_path / "study")
    further = [{**CLAIMS[1], "claim": group, "group": group} for group in ("internal", "external")]
    folder.write(changed(study, claims=CLAIMS[1:]))
    alone = compare_study(folder).claims[0]
    folder.write(changed(study, claims=[CLAIMS[1], *further]))
    first, *late = compare_study(folder).claims
    assert [row.is_late for row in (first, *late)] == [False, True, True]
    assert first.effect == alone.effect
    folder.protocol.unlink()
    assert compare_study(folder).claims[0].effect != alone.effect


def test_a_group_that_a_split_did_not_test_leaves_a_claim_without_an_estimate(
    ended: tuple[StudyFolder, list[Outcome], str], tmp_path: Path
) -> None:
    whole, _, _ = ended
    claim = {**CLAIMS[1], "group": "external"}
    folder = copy_of(whole, tmp_path / "study", splits=[{}, {"seed": 1}], claims=[claim])
    for variant in ("cls", "seg"):
        for seed in (0, 1):
            old, new = (f"heads/{variant}/split-{split}-seed-{seed}" for split in (0, 1))
            shutil.copytree(folder.run(old).path, folder.run(new).path)
            folder.remember(Outcome(new, "finished", "", 1.0, 0.1))
    tested = compare_study(folder).claims[0]
    assert (tested.verdict, tested.effect.runs) == ("undecided", 4)
    for variant in ("cls", "seg"):
        run = folder.run(f"heads/{variant}/split-1-seed-0")
        run.settings.unlink(missing_ok=True)
        write_table(run.predictions, run.predictions.read_text().replace("external", "elsewhere"))
    untested = compare_study(folder).claims[0]
    assert (untested.verdict, untested.effect.runs) == ("not estimable", 4)
    assert untested.effect.estimate.why == "the metric does not exist in 1 of 4 runs"


def test_a_claim_on_labels_that_cant_be_judged_does_not_wait_for_them(
    ended: tuple[StudyFolder, list[Outcome], str], tmp_path: Path
) -> None:
    whole, _, _ = ended
    claim = {"claim": "k", "variant": "seg", "baseline": "labels", "metric": "structure_dice"}
    (line,) = compare_study(copy_of(whole, tmp_path / "study", claims=[claim])).claims
    assert (line.verdict, line.effect.estimate.why) == ("not estimable", "no finished run was tested on it")


class _Ending:
    """A pool in which every run ends in the same way, at once."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome, self.submitted, self.returned = outcome, list[str](), 0

    def has_room(self, memory: float) -> bool:
        return True

    def submit(self, run: str, memory: float) -> None:
        self.submitted.append(run)

    def wait(self) -> list[Outcome]:
        ended = self.submitted[self.returned :]
        self.returned = len(self.submitted)
        return [replace(self.outcome, run=name) for name in ended]

    def stop(self) -> list[Outcome]:
        ended = self.submitted[self.returned :]
        return [replace(self.outcome, run=name, state="interrupted") for name in ended]

    def close(self) -> None:
        pass


class _Interrupted(_Ending):
    """A pool that is stopped while its runs are under way."""

    def wait(self) -> list[Outcome]:
        raise KeyboardInterrupt


def test_runs_under_way_when_a_study_is_stopped_are_written_down_as_interrupted(
    ended: tuple[StudyFolder, list[Outcome], str], tmp_path: Path
) -> None:
    whole, _, _ = ended
    name = "heads/seg/split-0-seed-0"
    folder = copy_of(whole, tmp_path / "study", claims=[])
    folder.remember(Outcome(name, "failed", "an earlier attempt", 1.0, 1.0))
    with pytest.raises(KeyboardInterrupt):
        run_study(folder.read(), folder, _Interrupted(Outcome("", "failed", "", 2.0, 0.5)), Heard(), [name])
    now = folder.outcome(name)
    assert now is not None
    assert (now.state, now.seconds, now.memory) == ("interrupted", 3.0, 1.0)


def test_a_run_that_is_killed_while_it_is_looked_into_stays_finished(
    study: StudySpec, ended: tuple[StudyFolder, list[Outcome], str], tmp_path: Path
) -> None:
    whole, _, _ = ended
    name = "heads/seg/split-0-seed-0"
    folder = copy_of(whole, tmp_path / "study", evidence=True, claims=[])
    took = folder.outcome(name)
    assert took is not None
    pool, heard = _Ending(Outcome("", "failed", "killed from outside", 60.0, 9.0)), Heard()
    outcomes = run_study(folder.read(), folder, pool, heard, ["heads/seg/*-seed-0"])
    assert heard.text.startswith(
        "2 runs, 2 of them finished before, of which 2 are still to be looked into\n"
    )
    assert pool.submitted == ["heads/cls/split-0-seed-0", name]
    assert {(each.state, each.message) for each in outcomes} == {
        ("finished", "no evidence: killed from outside")
    }
    now = folder.outcome(name)
    assert now is not None
    assert (now.seconds, now.memory) == (took.seconds + 60, 9.0)
    assert folder.is_finished(name)
    # Where there is nothing to compare, it failed.
    (folder.run(name).tables / "metrics.csv").unlink()
    pool = _Ending(Outcome("", "failed", "killed from outside", 60.0, 9.0))
    run_study(folder.read(), folder, pool, Heard(), [name])
    assert not folder.is_finished(name)


def test_runs_that_are_not_asked_for_must_be_the_studys_too(
    study: StudySpec, ended: tuple[StudyFolder, list[Outcome], str]
) -> None:
    folder, _, _ = ended
    before = folder.study.read_bytes()
    variants = {**study.model_dump()["variants"], "cls": {"recipe": CLS, "overrides": ["training.epochs=3"]}}
    said = r"training.epochs: 2 in the run, 3 now[\s\S]*remove .*cls/split-0-seed-0 first"
    with pytest.raises(RunError, match=said):
        run(changed(study, variants=variants), folder.path, "heads/broken/*")
    assert folder.study.read_bytes() == before


def test_a_users_cohort_takes_the_place_of_the_studys(
    cohort_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load_study("hematoma-sensitivity")
    mine = tmp_path / "my scans, 2024"
    mine.symlink_to(cohort_folder)
    shutil.copytree(cohort_folder, tmp_path / "real -- name")
    pointed = pointed_at(shipped, tmp_path / "real -- name")
    named = pointed.study
    assert [*named.cohorts] == ["real-name"]
    assert len(named.variants) == len(shipped.variants)
    # Claims of one cohort against another have no meaning on one.
    assert all(claim.variant != claim.baseline for claim in named.claims)
    assert pointed.left_out == shipped.claims[-3:]
    assert len(named.claims) == len({*named.claims}) == len(shipped.claims) - 3

    # Whatever the variants.
    across = {
        "claim": "k",
        "variant": "larger",
        "baseline": "cls-seg-rec",
        "baseline_cohort": "s0.5-masks-50",
    }
    crossing = changed(shipped, claims=[across, shipped.claims[0].model_dump()])
    assert [claim.claim for claim in pointed_at(crossing, cohort_folder).study.claims] == [
        shipped.claims[0].claim
    ]

    # Except where they are one cohort, made worse by several distances.
    moved = pointed_at(load_study("aortic-arch-degradation"), cohort_folder).study
    assert [source.degradation.displacement for source in moved.cohorts.values() if source.degradation] == [
        0.0,
        1.0,
        2.0,
        4.0,
    ]
    assert {source.folder for source in moved.cohorts.values()} == {str(cohort_folder.resolve())}
    assert moved.claims == load_study("aortic-arch-degradation").claims

    propagated = changed(
        shipped,
        cohorts={**shipped.model_dump()["cohorts"], "s0.5": {"folder": "x", "propagation": {"epochs": 1}}},
    )
    (source,) = pointed_at(propagated, cohort_folder).study.cohorts.values()
    assert source.propagation == {"epochs": 1}
    assert source.folder == str(cohort_folder.resolve())


TINY_HEADS = {
    "patients_per_site": 1,
    "external_patients_per_site": 1,
    "slices": [1, 1],
    "sites": 5,
    "size": 64,
}


def test_a_phantom_is_made_once_and_never_mistaken_for_another(study: StudySpec, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)

    def prepare(**changes: Any) -> tuple[int, str]:
        source = CohortSource.model_validate({"phantom": "head-ct", "settings": TINY_HEADS, **changes})
        heard = Heard()
        return len(prepare_cohort("p", source, study, folder, heard).cases), heard.text

    count, said = prepare()
    assert count == 5
    assert "making the phantom" in said
    assert prepare() == (5, f"{tmp_path / 'cohorts' / 'p'}: already there\n")
    for changes in ({"seed": 1}, {"settings": {**TINY_HEADS, "shortcut": 0.5}}):
        with pytest.raises(RunError, match=r"made from other settings than the study says now"):
            prepare(**changes)
    with pytest.raises(UsageError, match=r"cohorts.p: head-ct has no preset 'demmo'. Did you mean 'demo'"):
        prepare(preset="demmo")
    with pytest.raises(UsageError, match=r"cohorts.p:\n  shortcat: unknown key. Did you mean 'shortcut'"):
        prepare(settings={"shortcat": 1})


def test_references_are_moved_once_and_never_by_another_distance(
    study: StudySpec, cohort_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def degrade(cohort: Cohort, out: Path, spec: DegradationSpec, *, progress: object) -> Cohort:
        made.append(out)
        shutil.copytree(cohort.folder, out)
        return read_cohort(out)

    monkeypatch.setattr(study_cohorts, "degrade", degrade)

    def prepare(displacement: float) -> Cohort:
        source = CohortSource(
            folder=str(cohort_folder), degradation=DegradationSpec(displacement=displacement)
        )
        return prepare_cohort("h", source, study, StudyFolder(tmp_path), Heard())

    cases = prepare(2.0).cases
    assert len(prepare(2.0).cases) == len(cases)
    assert made == [tmp_path / "cohorts" / "h-degraded"]
    with pytest.raises(RunError, match="made from other settings than the study says now"):
        prepare(3.0)
    # Nor where its folder was removed, but a run on it is there.
    shutil.rmtree(made[0])
    (tmp_path / "runs/h/cls").mkdir(parents=True)
    with pytest.raises(RunError, match="was trained on it"):
        prepare(3.0)
    shutil.rmtree(tmp_path / "runs")
    prepare(3.0)
    assert made == [tmp_path / "cohorts" / "h-degraded"] * 2
    # Another cohort in its place is seen too.
    shutil.copytree(cohort_folder, tmp_path / "other")
    table = tmp_path / "other/cases.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    source = CohortSource(folder=str(tmp_path / "other"), degradation=DegradationSpec(displacement=3.0))
    with pytest.raises(RunError, match="made from other settings than the study says now"):
        prepare_cohort("h", source, study, StudyFolder(tmp_path), Heard())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "acu"}, "claim 'k': there is no metric 'acu' to compare. Did you mean 'auc'"),
        ({"metric": "log_loss"}, "claim 'k': there is no metric 'log_loss' to compare"),
        ({"metric": "dice:AO"}, "claim 'k': dice is not of one structure. Expected dice without ':AO'"),
        ({"baseline": "labels"}, "claim 'k': a cohort's own structures have no auc. Take a metric of str"),
        ({"metric": "share_inside"}, r"claim 'k': share_inside is measured only .* `evidence: true`"),
        ({"group": "externl"}, "claim 'k': .* no cases of group 'externl'. Did you mean 'external'"),
        ({"group": "shortcut=2"}, r"claim 'k': .* no cases of group 'shortcut=2'"),
        ({"metric": "psnr"}, "claim 'k': psnr needs a task reconstruction, which variant seg does not have"),
        ({"metric": "dice"}, "claim 'k': dice needs a task segmentation, which variant cls does not have"),
        ({"metric": "structure_dice"}, "structure_dice needs a task segmentation, which variant cls"),
        ({"baseline_group": "site-99", "group": "site-01"}, "of group 'site-99'. Did you mean 'site-"),
    ],
)
def test_a_claim_that_cant_be_tested_is_refused_before_anything_is_trained(
    study: StudySpec, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    claim = {"claim": "k", "variant": "seg", "baseline": "cls", **change}
    wrong = changed(study, claims=[claim])
    with pytest.raises(UsageError, match=message):
        run(wrong, tmp_path / "out")
    assert not (tmp_path / "out/runs").exists()


def test_a_study_that_is_killed_takes_its_run_along_and_goes_on_where_it_was(
    cohort_folder: Path, tmp_path: Path
) -> None:
    epochs = [*OVERRIDES[1:], "training.epochs=10"]
    variants = {"quick": {"recipe": CLS, "overrides": ["training.epochs=1"]}, "slow": {"recipe": CLS}}
    file = write_study(tmp_path / "s.yaml", cohort_folder, variants=variants, overrides=epochs)
    study, out = load_study(str(file)), tmp_path / "out"
    folder = StudyFolder(out)
    quick, slow = ("heads/quick/split-0-seed-0", "heads/slow/split-0-seed-0")
    run(study, out, quick)
    before = {path: path.stat().st_mtime_ns for path in folder.run(quick).path.rglob("*")}
    metrics = folder.run(slow).metrics

    command = [
        sys.executable,
        "-m",
        "threefold",
        "study",
        "run",
        str(file),
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 2)
        process.kill()
        process.wait(10)
        until(lambda: not is_held(folder.run(slow)))  # its run does not go on alone
    assert folder.run(slow).read_status()["state"] == "interrupted"
    assert {each.plan.id: each.state for each in standing_of(folder)} == {
        quick: "finished",
        slow: "interrupted",
    }
    rows = metrics.read_text().splitlines()
    assert 2 < len(rows) <= 10

    (outcome,), said = run(study, out)
    assert (outcome.run, outcome.state) == (slow, "finished")
    assert "2 runs, 1 of them finished before" in said
    assert {path: path.stat().st_mtime_ns for path in folder.run(quick).path.rglob("*")} == before
    # Times are among the columns: these epochs were not trained again.
    assert metrics.read_text().splitlines()[: len(rows) - 1] == rows[:-1]

    run(study, tmp_path / "unbroken", slow)
    whole = load_file(StudyFolder(tmp_path / "unbroken").run(slow).weights)
    weights = load_file(folder.run(slow).weights)
    assert all((weights[key] == whole[key]).all() for key in whole)


def test_labels_are_a_baseline_and_groups_are_compared(tmp_path: Path) -> None:
    """Vessels learned from displaced labels, against those labels; hard cases against the rest."""
    source = {
        "phantom": "fetal-heart",
        "preset": "demo",
        "settings": {
            "patients": [10, 4, 0],
            "size": 24,
            "spacing": 2.1,
            "deformation": 0.3,
            "vessel_scale": 1.0,
            "hard_share": 0.5,
        },
        "degradation": {"displacement": 3.0},
    }
    overrides = [
        "training.epochs=1",
        "data.preprocessing.size=[24,24,24]",
        "network.channels=[4,8]",
        "evaluation.replicates=20",
        "data.split.test=0.4",
    ]
    dice = {"variant": "seg", "metric": "structure_dice"}
    claims = [
        {**dice, "claim": "learned vessels are better than labels", "baseline": "labels"},
        {**dice, "claim": "hard is worse", "baseline": "seg", "group": "hard=1", "baseline_group": "hard=0"},
    ]
    study = write_study(
        tmp_path / "hearts.yaml",
        tmp_path,
        cohorts={"moved": source},
        variants={"seg": {"recipe": "aortic-arch/demo-seg"}},
        overrides=overrides,
        claims=claims,
    )
    _, said = run(load_study(str(study)), tmp_path / "out")
    assert "moved by 3 mm" in said
    folder = StudyFolder(tmp_path / "out")
    labels, hard = compare_study(folder).claims
    judged = pd.read_csv(folder.labels("moved").structures)
    assert labels.baseline_mean.estimate.value < 0.9
    assert labels.effect.estimate.n == labels.variant_mean.estimate.n == labels.baseline_mean.estimate.n
    assert labels.effect.estimate.n < judged["case_id"].nunique()  # only the run's test cases count
    assert hard.baseline_group == "hard=0"
    assert hard.effect.estimate.n == hard.variant_mean.estimate.n + hard.baseline_mean.estimate.n
    assert hard.effect.estimate.n < labels.effect.estimate.n  # without RAA, which has no hard cases
