"""`threefold check`: problems of a cohort that would stop training or make its results misleading."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from threefold.cli.options import AllowOutside
from threefold.cli.progress import progress_of
from threefold.errors import CohortError, UsageError
from threefold.experiment import SplitSpec
from threefold.experiments import load_experiment
from threefold.reporting.audit_texts import association_line, shown_findings, site_rows, split_line, verdict
from threefold.tasks.resolve import targets_of
from threefold.validation import did_you_mean

if TYPE_CHECKING:
    from threefold.audits.audit import Audit
    from threefold.cohorts.cohort import Cohort

_WORDS = {"refuse": "REFUSED", "warn": "warning", "note": "note"}
_COLOURS = {"refuse": "bold red", "warn": "yellow", "note": "dim"}


class SplitKind(StrEnum):
    """The kinds of split that `check` can make."""

    PATIENT = "patient"
    SITE = "site"
    SLICE = "slice"
    COLUMN = "column"


def check(
    cohort: Annotated[Path, typer.Argument(help="The cohort's folder, with cohort.yaml and cases.csv.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the recipe in --recipe: key.path=value ...")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the audit as JSON.")] = False,
    allow_outside: AllowOutside = False,
    split: Annotated[
        SplitKind | None,
        typer.Option(help="The split to check. [default: column if the table has one, else patient]"),
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            help="A site or site group for testing; repeatable. [default: the group external, if any]"
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A target that training needs; repeatable. [default: all targets of the cohort]"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe or YAML file whose split and tasks to check. `key.path=value` after the cohort "
            "overrides its settings."
        ),
    ] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Fast: read only tables and headers, no voxels.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for audit.json, the ranked confounders (confounders.md, .csv) and pictures of "
            "their extremes (extremes.png)."
        ),
    ] = None,
) -> None:
    """Check a cohort before training: files, geometry, labels, leaks, near duplicates, confounders.

    A confounder is a column, or a property of the acquisition (size, format, header, noise, marks), that
    predicts a target. The exit status is 1 if training would be refused.

    Example: `threefold check my-cohort --split site --hold-out north`
    """
    from threefold.audits.audit import audit
    from threefold.cohorts.cohort import read_cohort

    if recipe is None and overrides:
        raise UsageError(f"'{overrides[0]}' overrides a recipe: add --recipe.")
    if recipe is not None and (split or hold_out or target):
        raise UsageError(
            "--recipe defines the split and the targets; override them there: "
            "data.split.kind=site 'data.split.hold_out=[north]'."
        )
    experiment = None if recipe is None else load_experiment(recipe, overrides or [])
    try:
        cases = read_cohort(cohort, allow_outside=allow_outside)
    except CohortError as error:
        if not as_json:
            raise
        finding = {"severity": "refuse", "check": "table", "message": str(error), "cases": []}
        typer.echo(json.dumps({"cohort": str(cohort), "refused": True, "findings": [finding]}, indent=2))
        raise typer.Exit(1) from None
    if experiment is not None:
        asked: tuple[str, ...] | None = tuple(dict.fromkeys(targets_of(experiment, cases.spec).values()))
        parts = experiment.data.split
    else:
        asked = None if target is None else _known_targets(cases, target)
        parts = _split(cases, split, hold_out or [])
    with progress_of("Checking cases") as progress:
        result = audit(
            cases,
            split=parts,
            targets=asked,
            read_voxels=not headers_only,
            progress=progress,
        )
    if out is not None:
        from threefold.reporting.audit_report import write_audit

        files = write_audit(result, cases, out)
        typer.echo(f"Audit: {', '.join(file.name for file in files)} in {out}", err=as_json)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    elif sys.stdout.isatty():
        _print_rich(result)
    else:
        _print_plain(result)
    raise typer.Exit(1 if result.refused else 0)


def _known_targets(cohort: Cohort, asked: Sequence[str]) -> tuple[str, ...]:
    from threefold.cohorts.cohort import SHORT_KINDS

    for name in asked:
        if name not in (*cohort.spec.all_targets, *SHORT_KINDS):
            hint = did_you_mean(name, tuple(cohort.spec.all_targets))
            raise UsageError(f"--target {name}: {cohort.folder} has no such target.{hint}")
    return tuple(asked)


def _split(cohort: Cohort, kind: SplitKind | None, hold_out: Sequence[str]) -> SplitSpec:
    """Return the split to check: the kind asked for, else the table's own where it fills the column."""
    if kind is None:
        filled = all(case.split is not None for case in cohort.cases)
        kind = SplitKind.COLUMN if filled else SplitKind.PATIENT
    return SplitSpec(kind=kind.value, hold_out=tuple(hold_out) or None)


def _print_plain(result: Audit) -> None:
    typer.echo(f"{result.cohort}: {result.cases} cases of {result.patients} patients")
    header, rows = site_rows(result)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for text in (split_line(result), association_line(result)):
        if text is not None:
            typer.echo(text)
    for finding in shown_findings(result.findings):
        typer.echo(f"{_WORDS[finding.severity]} [{finding.check}] {finding.message}")
    typer.echo(verdict(result))


def _print_rich(result: Audit) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    header, rows = site_rows(result)
    table = Table(title=f"{result.cohort}: {result.cases} cases of {result.patients} patients")
    for name in header:
        table.add_column(Text(name), justify="left" if name in ("site", "group") else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for text in (split_line(result), association_line(result)):
        if text is not None:
            console.print(Text(text))
    for finding in shown_findings(result.findings):
        mark = (_WORDS[finding.severity], _COLOURS[finding.severity])
        console.print(Text.assemble(mark, f" [{finding.check}] {finding.message}"))
    console.print(Text(verdict(result), style="bold red" if result.refused else "bold green"))
