"""Creating, checking and locking a run folder."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import Cohort, fingerprint
from threefold.cohorts.splits import Split, write_split
from threefold.cohorts.trained_on import describe_training
from threefold.core.foreign_code import verify_code, write_code
from threefold.errors import RunError
from threefold.experiment import Experiment
from threefold.experiments import experiment_yaml, read_experiment
from threefold.locks import LOCK_NAME, alone_in, lock_of
from threefold.run import (
    RunFolder,
    refuse_current_folder,
    whole_folder,
    write_atomically,
)
from threefold.threads import available_cores
from threefold.training.history import progress_summary
from threefold.training.progress import TrainingProgress
from threefold.validation import read_json

# How cases reach the network, not which or in what order: a resumed run may differ in these.
_MAY_CHANGE = ("data.workers", "data.cache")
_PACKAGES = ("threefold", "torch", "lightning", "numpy", "scipy", "pandas", "nibabel", "pydicom", "pillow")


def create_folder(run: RunFolder, experiment: Experiment, cohort: Cohort, split: Split) -> None:
    """Create a run folder with everything that is known before the first step, atomically.

    Raises:
        RunError: the path exists, or writing fails.
        ImageError: with the training case that is unreadable.
    """
    refuse_existing(run)
    trained_on = describe_training(split.cases(cohort, "train"), cohort.spec)
    with whole_folder(run.path, RunError) as folder:
        beside = RunFolder(folder)
        beside.last_checkpoint.parent.mkdir()
        write_atomically(beside.experiment, experiment_yaml(experiment))
        write_atomically(beside.cohort, _json(_describe(cohort)))
        write_atomically(beside.trained_on, _json(trained_on.model_dump(mode="json")))
        write_split(beside.split, split)
        write_code(beside, experiment)
        write_atomically(beside.environment, _json(environment()))
        beside.write_status(
            state="interrupted", **progress_summary([], experiment)
        )  # until the training starts


def refuse_existing(run: RunFolder) -> None:
    """Refuse an existing path, except an empty folder.

    Raises:
        RunError: with how to resume the run, if it is one; or that it is the current folder.
    """
    if not run.path.exists() or (run.path.is_dir() and not any(run.path.iterdir())):
        refuse_current_folder(run.path, RunError)
        return
    if run.status.is_file():
        state = run.read_status().get("state")
        raise RunError(
            f"{run.path}: there is a run already (state: {state}). Go on with it by --resume, or choose "
            "another --out; a run is never overwritten."
        )
    raise RunError(f"{run.path}: exists and is not a run folder. Choose another --out.")


def check_resumable(run: RunFolder, experiment: Experiment, cohort: Cohort) -> None:
    """Refuse to resume a run of another experiment or cohort.

    Raises:
        RunError: with the keys that differ.
    """
    check_same_experiment(run, experiment)
    verify_code(run, experiment)
    known = run.read_cohort()
    if known["fingerprint"] != fingerprint(cohort):
        raise RunError(
            f"{run.path}: was started on cohort '{known['name']}' with fingerprint "
            f"{known['fingerprint'][:12]}; found '{cohort.spec.name}' with {fingerprint(cohort)[:12]} in "
            f"{cohort.folder}. Its cohort.yaml or cases.csv differ: resume with the cohort as it was, or "
            "choose another --out."
        )


def check_same_experiment(run: RunFolder, experiment: Experiment) -> None:
    """Refuse a run of another experiment.

    Raises:
        RunError: with the keys that differ.
    """
    run.read_status()
    before, now = read_experiment(run.experiment).model_dump(mode="json"), experiment.model_dump(mode="json")
    differing = [
        f"{key}: {old!r} in the run, {new!r} now"
        for key, old, new in _differences(before, now)
        if not key.startswith(_MAY_CHANGE)
    ]
    if differing:
        raise RunError(
            f"{run.path}: was started with another experiment:\n  " + "\n  ".join(differing) + "\n"
            f"Resume it as it was (`threefold train {run.experiment} --resume ...`), or choose another --out."
        )


def locked(run: RunFolder) -> AbstractContextManager[None]:
    """Hold a run's lock, so that two processes never train into one folder; a killed process holds none.

    Raises:
        RunError: if another process holds it.
    """
    return alone_in(run.path, f"{run.path}: another process is training this run.")


def is_held(run: RunFolder) -> bool:
    """Whether a process is training a run now."""
    from filelock import Timeout

    if not (run.path / LOCK_NAME).is_file():  # asking makes none
        return False
    try:
        with lock_of(run.path):
            return False
    except Timeout:
        return True
    except OSError:  # not ours to write, or a file system without locks
        return False


def threads_of(run: RunFolder, progress: TrainingProgress) -> int:
    """Return how many threads a run computes with: as many as it began with, since sums depend on it in their
    last bits; where this machine has not as many cores, what PyTorch would take, which is then said."""
    import torch

    now = torch.get_num_threads()
    try:
        began: Any = read_json(run.environment, RunError, "")["threads"]
    except (RunError, KeyError):  # written by hand, or cut; resuming needs no more of it
        return now
    if not isinstance(began, int) or began < 1 or began == now:
        return now
    if began > available_cores():
        progress.say(
            f"{run.path}: began with {began} threads, but only {available_cores()} core(s) are available. It "
            f"continues with {now}, so its weights can differ from an uninterrupted run's in the last bits."
        )
        return now
    return began


def environment() -> dict[str, Any]:
    """Return versions, machine and command."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _describe(cohort: Cohort) -> dict[str, Any]:
    return {
        "name": cohort.spec.name,
        "fingerprint": fingerprint(cohort),
        "folder": str(Path(cohort.folder).resolve()),
        "spec": cohort.spec.model_dump(mode="json"),
    }


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
