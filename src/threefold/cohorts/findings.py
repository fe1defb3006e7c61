"""What an audit finds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from threefold.errors import some

Severity = Literal["refuse", "warn", "note"]
SEVERITIES: tuple[Severity, ...] = ("refuse", "warn", "note")
_EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is to be known of a cohort before training on it.

    Attributes:
        severity: refuse: training would be wrong or stop; warn: it would run, and its numbers could
            mislead; note: worth knowing.
        check: the name of the check that found it.
        message: what was expected, what was found and what to do.
        cases: ids of the cases it is about; empty where it is about the cohort.
    """

    severity: Severity
    check: str
    message: str
    cases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """What a check found at one case; `gather` joins alike ones into a finding.

    Attributes:
        summary: the same words for every case that has it.
        detail: what was found at this case.
        advice: what to do, the same words for every case.
    """

    severity: Severity
    check: str
    case_id: str
    summary: str
    detail: str
    advice: str = ""


def gather(problems: Iterable[Problem]) -> list[Finding]:
    """Join the problems that share severity, check and summary; the first few details are shown."""
    alike: dict[tuple[Severity, str, str, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        alike[problem.severity, problem.check, problem.summary, problem.advice].append(problem)
    findings: list[Finding] = []
    for (severity, check, summary, advice), found in alike.items():
        first = [f"{problem.case_id}: {problem.detail}" for problem in found[:_EXAMPLES]]
        shown = some(first, _EXAMPLES, total=len(found), between="; ")
        message = f"{summary} ({shown}).{' ' + advice if advice else ''}"
        cases = tuple(dict.fromkeys(problem.case_id for problem in found))
        findings.append(Finding(severity, check, message, cases))
    return findings
