"""The audit of a report's cohorts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from threefold.cohorts.audit import Audit, audit
from threefold.cohorts.cohort import Cohort
from threefold.cohorts.splits import Split
from threefold.errors import some
from threefold.reporting.audit_texts import association_line, site_rows, split_line, verdict
from threefold.reporting.html import Block, Notice, Text
from threefold.reporting.table import Table

AUDIT = "Data audit"
"""The section's title."""
_CASES_SHOWN = 6


def audit_blocks(
    cohort: Cohort | None,
    home: Path,
    split: Split | None,
    targets: Collection[str] | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Block, ...]:
    """Return what an audit of a cohort finds now, its headers read but not its voxels.

    Args:
        cohort: as trained on; None where it was moved or changed.
        home: where it was.
        split: a run's; None: the cohort's own column, where it is filled.
        targets: what the training asked for; None: all that the cohort speaks of.
        progress: told of each case.
    """
    if cohort is None:
        text = (
            f"The cohort is not in {home} as it was trained on: it was moved or changed, or the study was "
            "packed, which leaves images out. `threefold check COHORT` audits it where it is."
        )
        return (Notice("note", text),)
    return tuple(_blocks(audit(cohort, split=split, targets=targets, read_voxels=False, progress=progress)))


def _blocks(found: Audit) -> list[Block]:
    header, rows = site_rows(found)
    blocks: list[Block] = [
        Notice("bad" if found.refused else "good", f"{verdict(found)}."),
        Text(f"{found.cohort}: {found.cases} cases of {found.patients} patients, audited for this report."),
        Table("Sites", tuple(header), tuple(map(tuple, rows))),
    ]
    blocks += [Text(f"{line}.") for line in (split_line(found), association_line(found)) if line is not None]
    if found.findings:
        blocks.append(
            Table(
                "Findings",
                ("check", "severity", "finding", "cases"),
                tuple(
                    (each.check, each.severity, each.message, some(each.cases, _CASES_SHOWN))
                    for each in found.findings
                ),
            )
        )
    return blocks
