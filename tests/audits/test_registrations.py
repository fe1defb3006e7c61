"""Structures of a registration that is to be checked are warned of before they train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from threefold.audits.table_checks import check_registrations

from ..balls import write_balls


def test_doubtful_structures_are_warned_of(tmp_path: Path) -> None:
    cohort = write_balls(tmp_path / "cohort", "abc", side=8)
    states = {"a": "ok", "b": "check", "c": "check"}
    cases = tuple(
        replace(
            case,
            targets=dict(case.targets) | ({"structures": case.image} if case.case_id != "c" else {}),
            extra={"registration": states[case.case_id]},
        )
        for case in cohort.cases
    )
    (finding,) = check_registrations(replace(cohort, cases=cases))
    assert (finding.severity, finding.cases) == ("warn", ("b",))  # c was emptied by hand
    assert "1 case(s) have structures of a registration that is to be checked: b." in finding.message
    assert list(check_registrations(cohort)) == []
