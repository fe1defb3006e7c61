"""When claims were written down: late ones are told from those that came before their runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from threefold.errors import RunError
from threefold.studies.protocol import WrittenLine, line_of, lines_of, protocol_of, read_protocol, write_down
from threefold.studies.study_folder import Outcome, StudyFolder
from threefold.studies.study_spec import StudySpec, plan_runs

FIRST = {"claim": "first", "variant": "b", "baseline": "a"}
SECOND = {"claim": "second", "variant": "c", "baseline": "a", "metric": "brier", "expected": "lower"}
AGAINST_LABELS = {"claim": "structures", "variant": "a", "baseline": "labels", "metric": "structure_dice"}


def study_of(*claims: dict[str, Any], **changes: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "tiny",
            "cohorts": {"here": {"folder": "x"}, "there": {"folder": "y"}},
            "variants": {name: {"recipe": name} for name in "abc"},
            "seeds": [0, 1],
            "claims": claims,
            **changes,
        }
    )


def finish(folder: StudyFolder, study: StudySpec, *variants: str) -> None:
    """Leave what finished runs leave."""
    for plan in plan_runs(study):
        if plan.variant in variants:
            folder.remember(Outcome(plan.id, "finished", "", 1.0, 0.1))
            predictions = folder.run(plan.id).predictions
            predictions.parent.mkdir(parents=True, exist_ok=True)
            predictions.touch()


def late_of(folder: StudyFolder, study: StudySpec) -> list[int | None]:
    """Return how many runs of each claim's line in the first cohort had finished."""
    lines = {each.line: each.finished_before for each in protocol_of(study, folder).lines}
    return [lines[line_of(study, claim, "here")] for claim in study.claims]


def begin(study: StudySpec, folder: StudyFolder) -> Sequence[WrittenLine]:
    """Do as `study run` does."""
    late = write_down(study, folder)
    folder.write(study)
    return late


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path)


def test_claims_that_were_there_before_their_runs_are_never_late(folder: StudyFolder) -> None:
    study = study_of(FIRST, SECOND, AGAINST_LABELS)
    assert begin(study, folder) == []
    before = json.loads(folder.protocol.read_bytes())["lines"]
    assert [(line["finished_before"], line["seen"]) for line in before] == [(0, False)] * 6
    finish(folder, study, "a", "b", "c")
    assert begin(study, folder) == []
    after = json.loads(folder.protocol.read_bytes())["lines"]
    assert after == [{**line, "seen": True} for line in before]
    assert late_of(folder, study) == [0, 0, 0]
    # Words decide nothing, and no order does.
    worded = study_of(SECOND, {**FIRST, "claim": "in other words"})
    assert begin(worded, folder) == []
    assert late_of(folder, worded) == [0, 0]
    assert withdrawn(folder, worded) == ["structures"] * 2
    turned = study_of(FIRST, SECOND, AGAINST_LABELS, seeds=[1, 0])
    assert begin(turned, folder) == []
    assert (late_of(folder, turned), withdrawn(folder, turned)) == ([0, 0, 0], [])


@pytest.mark.parametrize(
    ("claim", "changes", "late"),
    [
        ({**FIRST, "metric": "brier"}, {}, 4),
        ({**FIRST, "group": "external"}, {}, 4),
        ({**FIRST, "baseline_group": "external"}, {}, 4),
        ({**FIRST, "expected": "lower"}, {}, 4),
        ({**FIRST, "baseline_cohort": "there"}, {}, 4),
        (FIRST, {"confidence": 0.9}, 4),
        (FIRST, {"margin": 0.01}, 4),
        ({**FIRST, "beyond": -0.02}, {}, 4),
        (FIRST, {"seeds": [0, 1, 2]}, 4),
        (FIRST, {"seeds": [0]}, 2),
        (FIRST, {"splits": [{}, {"seed": 1}]}, 4),
        (SECOND, {}, 2),
        (AGAINST_LABELS, {}, 2),
        (FIRST, {"replicates": 500}, 0),
    ],
)
def test_what_decides_a_verdict_makes_a_claim_late_when_it_changes(
    folder: StudyFolder, claim: dict[str, Any], changes: dict[str, Any], late: int
) -> None:
    """Of a and b all runs have finished, of c none: a second claim rests on half of its runs."""
    begin(study_of(FIRST), folder)
    finish(folder, study_of(), "a", "b")
    study = study_of(claim, **changes)
    # By hand and not run: the comparison tells it as well.
    folder.write(study)
    assert late_of(folder, study) == [late]
    found = {each.line: each.finished_before for each in begin(study, folder)}
    assert found.get(line_of(study, study.claims[0], "here"), 0) == late
    finish(folder, study, "a", "b", "c")
    assert late_of(folder, study) == [late]


def withdrawn(folder: StudyFolder, study: StudySpec) -> list[str]:
    """Return the claims of the lines that a study no longer has."""
    now = {*lines_of(study)}
    return [each.claim for each in protocol_of(study, folder).lines if each.line not in now]


def test_withdrawn_lines_are_kept_once_runs_of_theirs_have_finished(folder: StudyFolder) -> None:
    both, one = study_of(FIRST, SECOND), study_of(FIRST)
    begin(both, folder)
    begin(one, folder)  # in good time
    assert withdrawn(folder, one) == []
    assert len(json.loads(folder.protocol.read_bytes())["lines"]) == 2
    begin(both, folder)
    finish(folder, both, "c")
    begin(one, folder)
    assert withdrawn(folder, one) == ["second"] * 2  # a line in each cohort
    finish(folder, both, "a", "b")
    turned = study_of({**FIRST, "expected": "lower"})
    begin(turned, folder)
    assert sorted(withdrawn(folder, turned)) == ["first"] * 2 + ["second"] * 2
    # What comes back was written before.
    begin(both, folder)
    assert withdrawn(folder, both) == ["first"] * 2
    assert late_of(folder, both) == [0, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [2, 3]},
        {"cohorts": {"there": {"folder": "y"}}},
        {"variants": {"a": {"recipe": "a"}, "c": {"recipe": "c"}}, "claims": [SECOND]},
    ],
)
def test_withdrawn_lines_count_though_the_study_has_their_runs_no_more(
    folder: StudyFolder, changes: dict[str, Any]
) -> None:
    study = study_of(FIRST)
    begin(study, folder)
    finish(folder, study, "a", "b")
    without = StudySpec.model_validate({**study.model_dump(), **changes})
    assert "first" in withdrawn(folder, without)
    begin(without, folder)
    shutil.rmtree(folder.path / "runs")
    assert "first" in withdrawn(folder, without)
    shutil.rmtree(folder.path / "outcomes")
    assert "first" in withdrawn(folder, without)


def test_runs_whose_folders_were_removed_have_been_seen(folder: StudyFolder) -> None:
    study = study_of(FIRST)
    begin(study, folder)
    finish(folder, study, "a", "b")
    shutil.rmtree(folder.path / "runs")
    turned = study_of({**FIRST, "expected": "lower"})
    assert (late_of(folder, turned), withdrawn(folder, turned)) == ([4], ["first"] * 2)


def test_of_a_folder_without_a_protocol_nothing_is_said_of_its_claims(folder: StudyFolder) -> None:
    study = study_of(FIRST)
    folder.write(study)
    finish(folder, study, "a", "b")
    assert late_of(folder, study) == [None]
    assert [line.claim for line in begin(study_of(FIRST, SECOND), folder)] == ["second", "second"]
    assert late_of(folder, study_of(FIRST, SECOND)) == [None, 2]


def test_a_damaged_protocol_is_told(folder: StudyFolder) -> None:
    begin(study_of(FIRST), folder)
    folder.protocol.write_text('{"lines": [{"claim": "first"}]}')
    with pytest.raises(RunError, match=r"protocol.json: can't be read [\s\S]*when each claim was written"):
        read_protocol(folder)
    with pytest.raises(RunError, match=r"protocol\.json"):
        begin(study_of(FIRST), folder)
