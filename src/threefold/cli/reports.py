"""Printing the evaluations of a chain's stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from threefold.reporting.run_report import Report


def show_reports(reports: Mapping[str, Report], *, as_json: bool) -> None:
    """Print the stages side by side and where their files are; with `as_json` every number as JSON alone."""
    from threefold.reporting.table import show
    from threefold.reporting.tables import comparison_tables, evaluation_json

    if as_json:
        content = {stage: evaluation_json(report.evaluation) for stage, report in reports.items()}
        typer.echo(json.dumps(content, indent=2))
        return
    for table in comparison_tables({stage: report.evaluation for stage, report in reports.items()}):
        show(table)
    for stage, report in reports.items():
        typer.echo(f"{stage}: tables in {report.tables[0].parent}")
        if report.figures:
            typer.echo(f"{stage}: figures in {report.figures[0].parent}")
