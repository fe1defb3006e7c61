"""When claims were written down: late ones are told from those that came before their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from threefold.errors import RunError
from threefold.studies.protocol import line_of, read_protocol, write_down
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


def late_of(folder: StudyFolder, study: StudySpec) -> list[int]:
    """Return how many runs of each claim's line in the first cohort had finished."""
    protocol = read_protocol(folder)
    finished = {plan.id for plan in plan_runs(study) if folder.is_finished(plan.id)}
    return [protocol.finished_before(line_of(study, claim, "here"), finished) for claim in study.claims]


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study")


def test_claims_that_were_there_before_their_runs_are_never_late(folder: StudyFolder) -> None:
    study = study_of(FIRST, SECOND, AGAINST_LABELS)
    assert write_down(study, folder) == []
    before = folder.protocol.read_bytes()
    assert [line["finished"] for line in json.loads(before)["lines"]] == [0] * 6
    finish(folder, study, "a", "b", "c")
    assert write_down(study, folder) == []
    assert folder.protocol.read_bytes() == before
    assert late_of(folder, study) == [0, 0, 0]
    # Words decide nothing, and an order neither.
    worded = study_of(SECOND, {**FIRST, "claim": "in other words"})
    assert write_down(worded, folder) == []
    assert late_of(folder, worded) == [0, 0]


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
    write_down(study_of(FIRST), folder)
    finish(folder, study_of(), "a", "b")
    study = study_of(claim, **changes)
    # By hand and not run: the comparison tells it as well.
    folder.write(study)
    assert late_of(folder, study) == [late]
    found = {line.says: line.finished for line in write_down(study, folder)}
    assert found.get(line_of(study, study.claims[0], "here"), 0) == late
    finish(folder, study, "a", "b", "c")
    assert late_of(folder, study) == [late]


def test_withdrawn_lines_are_counted_once_runs_of_theirs_have_finished(folder: StudyFolder) -> None:
    def withdrawn(study: StudySpec) -> int:
        write_down(study, folder)
        finished = {plan.id for plan in plan_runs(study) if folder.is_finished(plan.id)}
        return read_protocol(folder).withdrawn(study, finished)

    both, one = study_of(FIRST, SECOND), study_of(FIRST)
    write_down(both, folder)
    assert withdrawn(one) == 0  # in good time
    assert len(json.loads(folder.protocol.read_bytes())["lines"]) == 2
    write_down(both, folder)
    finish(folder, both, "c")
    assert withdrawn(one) == 2  # a line in each cohort
    assert withdrawn(study_of({**FIRST, "expected": "lower"})) == 2
    finish(folder, both, "a", "b")
    assert withdrawn(study_of()) == 4
    # What comes back was written before.
    assert withdrawn(both) == 2
    assert late_of(folder, both) == [4, 0]


def test_of_a_folder_without_a_protocol_nothing_is_said_of_its_claims(folder: StudyFolder) -> None:
    study = study_of(FIRST)
    folder.write(study)
    finish(folder, study, "a", "b")
    assert late_of(folder, study) == [0]
    assert [line.claim for line in write_down(study_of(FIRST, SECOND), folder)] == ["second", "second"]
    assert late_of(folder, study_of(FIRST, SECOND)) == [0, 2]


def test_a_damaged_protocol_is_told(folder: StudyFolder) -> None:
    write_down(study_of(FIRST), folder)
    folder.protocol.write_text('{"lines": [{"claim": "first"}]}')
    with pytest.raises(RunError, match=r"protocol.json: can't be read [\s\S]*when each claim was written"):
        read_protocol(folder)
    with pytest.raises(RunError, match=r"protocol\.json"):
        write_down(study_of(FIRST), folder)
