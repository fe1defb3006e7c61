"""The report of an ensemble, and of the cross-validation that its members are from."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from threefold.cohorts.cohort import fingerprint
from threefold.cohorts.splits import read_split
from threefold.errors import RunError
from threefold.reporting.chapters import sections_of, shown_of
from threefold.reporting.html import Block, Code, Facts, Notice, Page, Section, Text
from threefold.reporting.results import read_results
from threefold.reporting.table import Table
from threefold.run import RunFolder
from threefold.runs.ensembles import EnsembleFolder
from threefold.runs.evaluate import cohort_if_there, of_run
from threefold.runs.page import (
    AUDIT,
    audit_blocks,
    environment_facts,
    headline_table,
    leaks_of_runs,
    other_cohorts,
    task_sections,
)
from threefold.tasks.resolve import targets_of
from threefold.validation import read_yaml

Progress = Callable[[int, int], None]


def ensemble_page(folder: Path, footer: str, *, progress: Progress | None = None) -> Page:
    """Return the page of an ensemble or a cross-validation, whatever of it is there.

    Nothing is predicted or measured anew; the cohort, where it still is what was trained on, is audited
    (headers, not voxels).

    Args:
        folder: of it.
        footer: who made the page, and when.
        progress: told of the cases that are audited.

    Raises:
        RunError: it is damaged, or a member is gone or changed.
    """
    members = EnsembleFolder(folder).members()
    experiment, trained, home = of_run(members[0])
    crossvalidated = RunFolder(folder).predictions.is_file()
    results = read_results(folder)
    headline = headline_table(results)
    found = shown_of(results, RunFolder(folder).figures)
    by_fold = found.tables.pop("folds", None)
    shown = [section for _, section in sections_of(found) if section.blocks]
    if rest := found.rest():
        shown.append(Section("Further tables and figures", rest))
    targets = tuple(dict.fromkeys(targets_of(experiment, trained).values()))
    cohort = cohort_if_there(home)
    if cohort is not None and fingerprint(cohort) != members[0].read_cohort()["fingerprint"]:
        cohort = None
    what = "A cross-validation" if crossvalidated else "An ensemble"
    return Page(
        title=f"{what.split()[1].capitalize()}: {folder.resolve().name}",
        lead=f"{what} of {len(members)} runs ({experiment.name}) for {', '.join(experiment.tasks)}.",
        opening=(
            *_opening(folder, members, crossvalidated=crossvalidated),
            *((headline,) if headline is not None else ()),
        ),
        sections=(
            Section("Members", (_members_table(members), Text(_AS_ONE))),
            *((Section("Folds", (by_fold,)),) if by_fold is not None else ()),
            *shown,
            *task_sections(RunFolder(folder)),
            *other_cohorts(RunFolder(folder)),
            Section(AUDIT, audit_blocks(cohort, home, None, targets, progress)),
            Section("Environment of the first member", (Facts(tuple(environment_facts(members[0]))),)),
            Section(
                "How to reproduce",
                tuple(_reproduction(folder, members, home)),
            ),
        ),
        footer=footer,
    )


_AS_ONE = (
    "The ensemble predicts the mean of the members' probabilities, numbers and, voxel by voxel, label "
    "probabilities, and decides by the mean of their thresholds. With each prediction it reports how far the "
    "members are apart."
)


def _opening(folder: Path, members: Sequence[RunFolder], *, crossvalidated: bool) -> Iterator[Block]:
    if crossvalidated:
        yield Notice(
            "note",
            "The results are out of fold: each case is predicted by the network of its fold, which was not "
            "trained on its patient. They are of the single networks, not of the ensemble; `threefold "
            f"evaluate {folder} --cohort COHORT` evaluates the ensemble on a cohort that no fold has seen.",
        )
    elif not (folder / "evaluations").is_dir():
        yield Notice(
            "note",
            f"The ensemble has not been evaluated. `threefold evaluate {folder}` evaluates it on the test "
            "part that its members have in common, `--cohort COHORT` on another cohort.",
        )
    yield leaks_of_runs({run.path.name: read_split(run.split) for run in members})


def _members_table(members: Sequence[RunFolder]) -> Table:
    rows = []
    for run in members:
        status, (experiment, _, _) = run.read_status(), of_run(run)
        split = experiment.data.split
        fold = f", fold {split.fold}" if split.folds or split.kind == "leave-one-site-out" else ""
        best = status.get("best_value")
        threshold = status.get("threshold")
        rows.append(
            (
                str(run.path),
                experiment.name,
                f"{split.kind}{fold}",
                str(experiment.training.seed),
                f"{status.get('epoch')} of {status.get('epochs')}",
                "" if best is None else f"{status['metric']} {best:.4g}",
                "" if threshold is None else f"{threshold:.4g}",
            )
        )
    return Table(
        title="The runs that predict together",
        columns=("run", "experiment", "split", "seed", "epochs", "best on validation", "threshold"),
        rows=tuple(rows),
    )


def _reproduction(folder: Path, members: Sequence[RunFolder], home: Path) -> Iterator[Block]:
    again = str(folder.with_name(f"{folder.resolve().name}-again"))
    study = folder / "folds" / "study.yaml"
    if study.is_file():
        content = read_yaml(study, RunError)
        (variant,) = content["variants"].values()
        first = content["splits"][0]
        how = ["--folds", str(first["folds"])] if first.get("folds") else ["--by", "site"]
        words = ["crossvalidate", variant["recipe"], "--cohort", str(home), *how, "--out", again]
        words += content["overrides"]
    else:
        words = ["ensemble", *(str(run.path) for run in members), "--out", again]
    yield Code(shlex.join(["threefold", *words]))
    yield Text("Each member's own report says how it was trained: `threefold report RUN`.")
