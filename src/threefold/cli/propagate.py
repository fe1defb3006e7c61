"""`threefold propagate`: transfer of atlas labels to every case."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold import __version__
from threefold.cli.options import AllowOutside
from threefold.cli.progress import count, interruptible, progress_of

if TYPE_CHECKING:
    from threefold.cohorts.cohort import Cohort


def propagate(
    cohort: Annotated[
        Path, typer.Argument(help="Folder with cohort.yaml (which declares atlases) and cases.csv.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the new cohort.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings of the propagation, for example epochs=30 or mask_weight=0.1.",
        ),
    ] = None,
    atlases: Annotated[
        str | None,
        typer.Option(help="NAME,...: the atlases to use. [default: all in cohort.yaml]"),
    ] = None,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            help="Refer to the original files instead of copying them (later commands need --allow-outside).",
        ),
    ] = False,
    match_by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="A column of numbers, age for example: use the atlases nearest to each case in it. Same as "
            "match_by=COLUMN.",
        ),
    ] = None,
    save_transforms: Annotated[
        bool,
        typer.Option(
            "--save-transforms",
            help="Keep the affine maps and displacement fields, in ITK's formats. Same as "
            "save_transforms=true.",
        ),
    ] = False,
    allow_outside: AllowOutside = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Register atlases to every case and create a new cohort with their labels as structures.

    The same command resumes an interrupted propagation, and after a change of the cohort repeats only the
    affected steps. A case that cannot be used is skipped and reported; the exit status is then 1.

    Example: `threefold propagate my-cohort --out my-propagated-cohort --atlases CoA,RAA,DAA epochs=30`
    """
    from threefold.atlases.pairing import pair_cases
    from threefold.atlases.spec import load_propagation
    from threefold.cohorts.cohort import read_cohort

    # Report errors in the arguments before importing anything slow.
    asked: dict[str, Any] = {"save_transforms": True} if save_transforms else {}
    if match_by is not None:
        asked["match_by"] = match_by
    spec = load_propagation(asked, settings or [])
    names = None if atlases is None else [name.strip() for name in atlases.split(",")]
    cases = read_cohort(cohort, allow_outside=allow_outside)
    pair_cases(cases, spec, names)

    from threefold.allocation import tune_allocation
    from threefold.atlases.outcome import left_out_of
    from threefold.atlases.propagation import propagate as run
    from threefold.cohorts.failures import listed
    from threefold.reporting.propagation_report import write_propagation_report

    tune_allocation()
    with interruptible(), progress_of("Propagating labels") as progress:
        made = run(
            cases,
            out,
            spec,
            atlases=names,
            copy=not reference,
            progress=progress,
            say=lambda line: typer.echo(line, err=True),
        )
    left_out = left_out_of(made)
    footer = f"Made by threefold {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Not a medical device."
    write_propagation_report(made, footer)
    summary = _summary(made, left_out)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        for line in (*_lines(summary), *listed(left_out)):
            typer.echo(line)
    if left_out:
        typer.echo(
            f"Skipped {count(len(left_out), 'case')} that could not be used. Correct the files or the table "
            "and repeat the command: only the changed cases are done.",
            err=True,
        )
        raise typer.Exit(1)


def _summary(cohort: Cohort, left_out: Mapping[str, str]) -> dict[str, Any]:
    """Count the outcomes, and average quality.csv over the registrations that did not fail."""
    from threefold.atlases.outcome import QUALITY_NAME
    from threefold.errors import CohortError
    from threefold.validation import read_table

    remedy = "It is of the propagation: put it back, or propagate into another folder."
    table = read_table(cohort.folder / QUALITY_NAME, CohortError, remedy)
    if not {"case_id", "registration", "reason"} <= {*table}:
        raise CohortError(f"{cohort.folder / QUALITY_NAME}: not a table of registrations. {remedy}")
    rows = table.to_dict("records")
    doubtful = {
        status: {
            row["case_id"]: row["reason"]
            for row in rows
            if row["registration"] == status and row["case_id"] not in left_out
        }
        for status in ("failed", "check")
    }
    well = [row for row in rows if row["registration"] in ("ok", "check")]
    measures = ("mask_dice_affine", "mask_dice", "folding_share", "dice_unregistered", "dice_affine", "dice")
    means = {}
    for name in measures:
        try:
            values = [float(row[name]) for row in well if row.get(name)]
        except ValueError as error:
            raise CohortError(f"{cohort.folder / QUALITY_NAME}: column {name}: {error}. {remedy}") from None
        if values:
            means[name] = {"mean": sum(values) / len(values), "n": len(values)}
    return {
        "cohort": str(cohort.folder),
        "cases": len(cohort.cases),
        "propagated": len(well) - len(doubtful["check"]),
        **doubtful,
        "left_out": left_out,
        "kept": len(cohort.cases) - len(well) - len(doubtful["failed"]),
        "means": means,
    }


def _lines(summary: dict[str, Any]) -> list[str]:
    number = summary["propagated"] + len(summary["check"])
    lines = [f"{summary['cohort']}: structures propagated to {count(number, 'case')}"]
    if summary["kept"]:
        lines.append(f"{count(summary['kept'], 'case')} had structures and kept them")
    for status in ("failed", "check"):
        lines += [f"{status}: {case_id}: {reason}" for case_id, reason in summary[status].items()]
    if summary["failed"]:
        lines.append(
            "Those that failed have no structures, so training leaves them out; their labels are in "
            f"{summary['cohort']}/not-used."
        )
    if summary["check"]:
        lines.append(
            "Those to check have structures, and training uses them: look at them in report.html, and empty "
            "the structures cell of those that are wrong."
        )
    means = summary["means"]
    if "mask_dice" in means:
        before, after = means["mask_dice_affine"], means["mask_dice"]
        lines.append(
            f"Dice with the mask: {before['mean']:.3f} affine, {after['mean']:.3f} registered "
            f"(mean of {count(after['n'], 'case')})"
        )
    if "dice" in means:
        lines.append(
            f"Dice with the reference structures: {means['dice_unregistered']['mean']:.3f} unregistered, "
            f"{means['dice_affine']['mean']:.3f} affine, {means['dice']['mean']:.3f} registered "
            f"(mean of {count(means['dice']['n'], 'case')})"
        )
    if "folding_share" in means:
        lines.append(f"Folding voxels: {means['folding_share']['mean']:.3%}")
    lines.append(f"Case by case: {summary['cohort']}/quality.csv, with pictures: report.html")
    lines.append(f"Next: threefold check {summary['cohort']}")
    return lines
