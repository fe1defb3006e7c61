"""One file that shows a run, an ensemble or a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from threefold import __version__
from threefold.errors import RunError, UsageError
from threefold.reporting.html import render
from threefold.run import RunFolder, runs_below, write_atomically
from threefold.runs.checklists import Checklist
from threefold.runs.ensemble_page import ensemble_page
from threefold.runs.ensembles import EnsembleFolder
from threefold.runs.page import run_page
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_page import REPORT_NAME, study_page


def report(
    folder: Path,
    out: Path | None = None,
    *,
    checklists: Sequence[Checklist] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the report of a run, an ensemble or a study, one HTML file with all of it; return its path.

    Nothing is computed but the audit of the cohorts: the report shows what evaluation, explanation and
    comparison left, and says what is missing.

    Args:
        folder: of one of these.
        out: the file; None: report.html in the folder. One that is there is replaced.
        checklists: of reporting guidelines, to be filled from a run.
        progress: told of the cases that are audited.

    Raises:
        UsageError: a checklist is asked for, and the folder is no run.
        RunError: the folder is none of these, its description is damaged, or the disk refuses.
    """
    out = folder / REPORT_NAME if out is None else out
    is_run, is_study = RunFolder(folder).status.is_file(), StudyFolder(folder).study.is_file()
    is_ensemble = EnsembleFolder(folder).exists
    if not (is_run or is_study or is_ensemble):
        raise RunError(_neither(folder))
    if out.is_dir():
        raise RunError(f"{out}: is a folder. Name the file to be written, {out / REPORT_NAME} for example.")
    if not out.resolve().parent.is_dir():
        raise RunError(f"{out}: there is no folder {out.parent}. Make it, or name another file.")
    if checklists and not is_run:
        raise UsageError(f"{folder}: is no run. A checklist is filled from one run: name its folder.")
    footer = f"Made by threefold {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Not a medical device."
    if is_ensemble:
        page = ensemble_page(folder, footer, progress=progress)
    elif is_run:
        page = run_page(RunFolder(folder), footer, checklists=checklists, progress=progress)
    else:
        page = study_page(StudyFolder(folder), out, footer, progress=progress)
    write_atomically(out, render(page))
    return out


def _neither(folder: Path) -> str:
    if not folder.is_dir():
        found = "a file" if folder.is_file() else "nothing"
        return f"{folder}: expected the folder of a run or a study; found {found}."
    return (
        f"{folder}: neither a run (no status.json), a study (no study.yaml) nor an ensemble. Expected a "
        f"folder that `threefold train` or `threefold study run` left.{runs_below(folder)}"
    )
