"""What a run was trained with, and how to train it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import read_cohort
from threefold.errors import CohortError, RunError
from threefold.experiment import Experiment
from threefold.reporting.html import Block, Code, Folded, Heading, Text
from threefold.run import RunFolder
from threefold.studies.evaluations import cohort_if_there
from threefold.validation import read_json, read_text

_STUDY_AND_RUN = 3
"""Words of a study's own process: the program, the study, the run."""


def environment_facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Yield what a run's training ran with: versions and machine."""
    found = _environment(run)
    if not found:
        yield "environment", f"{run.environment.name} is not there or can't be read."
        return
    yield "started", str(found.get("started", ""))
    yield "python", str(found.get("python", ""))
    packages = found.get("packages")
    for name, version in packages.items() if isinstance(packages, dict) else ():
        if version is not None:
            yield str(name), str(version)
    yield "platform", str(found.get("platform", ""))
    cores, threads = found.get("cores"), found.get("threads")
    yield "processor", f"{found.get('processor', '')}, {cores} cores, {threads} threads"
    gpus = found.get("gpus")
    yield "GPUs", ", ".join(map(str, gpus if isinstance(gpus, list) else ())) or "none"


def reproduction(run: RunFolder, experiment: Experiment, home: Path) -> Iterator[Block]:
    """Yield the commands and the experiment that give the same run again.

    Args:
        run: the folder.
        experiment: as run.
        home: where the cohort was.
    """
    command = _environment(run).get("command")
    command = command if isinstance(command, list | str) else None
    if command:
        yield Heading("As it was run")
        yield Code(typed(command))
    yield Heading("The same again")
    again = run.path.with_name(f"{run.path.resolve().name}-again")
    words = ["threefold", "train", str(run.experiment), "--cohort", str(home), "--out", str(again)]
    if "--allow-outside" in (command or ()) or leaves_its_folder(home):
        words.append("--allow-outside")
    verbs = ("evaluate", "explain", "report") if run.evidence.is_file() else ("evaluate", "report")
    lines = [shlex.join(words), *(shlex.join(["threefold", verb, str(again)]) for verb in verbs)]
    yield Code("\n".join(lines))
    yield Text(
        f"With the versions above, on the cohort with the fingerprint above; the seed "
        f"{experiment.training.seed} of the training and {experiment.data.split.seed} of the split are in "
        "the experiment. On the CPU with as many threads, the weights are the same."
    )
    try:
        written = read_text(run.experiment, RunError)
    except RunError:
        return
    yield Folded("The experiment as run, every default written out", (Code(written),))


def leaves_its_folder(home: Path) -> bool:
    """Whether a cohort is there, and can be read only where its paths may leave its folder."""
    try:
        read_cohort(home)
    except CohortError:
        return cohort_if_there(home) is not None
    return False


def typed(command: object) -> str:
    """Return what a user types for it, from the arguments of the process: not where the program lies."""
    words = [str(word) for word in command] if isinstance(command, list) else [str(command)]
    program = Path(words[0]).name if words else ""
    if program == "study_worker.py" and len(words) == _STUDY_AND_RUN:
        study, run = words[1:]
        words[1:] = ["study", "run", f"{study}/study.yaml", "--out", study, "--only", run]
    return shlex.join(["threefold", *words[1:]])


def _environment(run: RunFolder) -> dict[str, Any]:
    try:
        return read_json(run.environment, RunError, "")
    except RunError:
        return {}
