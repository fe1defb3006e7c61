"""Printing the results of a chain."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from threefold.studies.chain import ChainReport


def show_chain(report: ChainReport, *, as_json: bool) -> None:
    """Print a comparison of the stages and the paths of their files; with `as_json` the numbers as JSON."""
    from threefold.reporting.results import plain_value
    from threefold.reporting.table import show
    from threefold.reporting.tables import comparison_tables, evaluation_json, gain_table

    if as_json:
        content = {
            "stages": {stage: evaluation_json(each.evaluation) for stage, each in report.stages.items()},
            "gains": [
                {key: plain_value(value) for key, value in gain.record().items()} for gain in report.gains
            ],
        }
        typer.echo(json.dumps(content, indent=2))
        return
    for table in comparison_tables({stage: each.evaluation for stage, each in report.stages.items()}):
        show(table)
    if report.gains:
        show(gain_table(report.gains, report.spec))
    typer.echo(f"comparison: tables in {report.tables}")
    for stage, each in report.stages.items():
        typer.echo(f"{stage}: tables in {each.tables[0].parent}")
        if each.figures:
            typer.echo(f"{stage}: figures in {each.figures[0].parent}")
