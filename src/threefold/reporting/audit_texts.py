"""An audit in words: its sites, its split, the association of site and label, and its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from threefold.audits.audit import Audit
from threefold.cohorts.findings import SEVERITIES, Finding, Severity

_SHOWN = 20
"""Findings of one severity and check."""


def site_rows(result: Audit) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of sites, without empty columns."""
    classes = list(result.sites[0].labels)
    grouped = any(site.group for site in result.sites)
    header = ["site", *(["group"] if grouped else []), "cases", "patients"]
    further = list(result.sites[0].targets)
    header += [*classes, *(["unlabelled"] if classes else []), "masks", "structures", *further]
    rows: list[list[str]] = []
    for site in result.sites:
        labelled = list(site.labels.values())
        numbers = [site.cases, site.patients, *labelled]
        numbers += [*([site.cases - sum(labelled)] if classes else []), site.masks, site.structures]
        numbers += [site.targets[name] for name in further]
        rows.append([site.site, *([site.group or ""] if grouped else []), *map(str, numbers)])
    keep = [
        i
        for i, name in enumerate(header)
        if name not in ("masks", "structures", "unlabelled") or any(row[i] != "0" for row in rows)
    ]
    return [header[i] for i in keep], [[row[i] for i in keep] for row in rows]


def split_line(result: Audit) -> str | None:
    """Return the sizes of the parts; None if no split was audited."""
    if result.split is None:
        return None
    parts: dict[str, Any] = result.split["parts"]
    shown = ", ".join(f"{part} {n['cases']} ({n['patients']})" for part, n in parts.items())
    return f"Split by {result.split['kind']}, cases (patients): {shown}"


def association_line(result: Audit) -> str | None:
    """Return the association of site and label; None if not estimable."""
    measured = result.association
    if measured is None:
        return None
    auc = "" if measured.auc is None else f", AUC {measured.auc:.2f}"
    return (
        f"Prediction of the label from the site alone: Cramér's V {measured.cramers_v:.2f}, "
        f"balanced accuracy {measured.balanced_accuracy:.2f}{auc} ({measured.patients} patients)"
    )


def shown_findings(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings for the terminal: the first of each check, and the number of others."""
    counts: Counter[tuple[Severity, str]] = Counter((each.severity, each.check) for each in findings)
    shown: Counter[tuple[Severity, str]] = Counter()
    for finding in findings:
        kind = finding.severity, finding.check
        shown[kind] += 1
        if shown[kind] <= _SHOWN:
            yield finding
        elif shown[kind] == counts[kind]:
            yield Finding(*kind, f"and {counts[kind] - _SHOWN} more of these; `--json` lists all.")


def verdict(result: Audit) -> str:
    """Return whether training could start, and the number of findings."""
    counts = {word: sum(f.severity == word for f in result.findings) for word in SEVERITIES}
    verdict = "Training would be refused" if result.refused else "Training can start"
    looked = "" if result.voxels_read else " (headers only; voxels were not read)"
    found = f"{counts['refuse']} to correct, {counts['warn']} warnings, {counts['note']} notes"
    return f"{verdict}: {found}{looked}"
