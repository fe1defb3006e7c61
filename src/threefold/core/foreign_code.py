"""The foreign code that a run was made with: RUN/code.json, and what a later verb demands of it. No torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from threefold.core.registry import Code, Group, find, is_built_in
from threefold.errors import ExperimentError, RunError
from threefold.experiment import Experiment
from threefold.run import COPY_AGAIN, RunFolder, write_atomically
from threefold.validation import read_json


def write_code(run: RunFolder, experiment: Experiment) -> None:
    """Write which foreign code an experiment uses, where it lies, its package's version and its file's hash.

    Of an experiment that uses none, nothing is written.

    Raises:
        ExperimentError: the code can't be loaded.
    """
    found = [{"group": group, **asdict(code)} for group, code in _used(experiment)]
    if found:
        write_atomically(_path(run), json.dumps({"code": found}, indent=2) + "\n")


def verify_code(run: RunFolder, experiment: Experiment) -> None:
    """Refuse to go on with a run whose foreign code is not there, or is not what it was made with.

    Raises:
        RunError: naming the code, what was expected and found, and what to do.
    """
    path = _path(run)
    expected = {one["name"]: one for one in _read(path)} if path.is_file() else {}
    try:
        now = dict(_by_name(experiment))
    except ExperimentError as error:
        known = " ".join(f"{one['name']}: {_described(one)}." for one in expected.values())
        raise RunError(
            f"{run.path}: was made with code that can't be loaded here. {error} {known}"
        ) from error
    for name, code in now.items():
        before = expected.get(name)
        if before is None:
            logging.getLogger("threefold").warning(
                "%s: was made with %s; no %s says what that was, so it is taken as it is now",
                run.path,
                name,
                path.name,
            )
        elif before["sha256"] != code.sha256:
            raise RunError(
                f"{run.path}: {name} is not the code that it was made with: expected {_described(before)}, "
                f"found {_described(asdict(code))}. Put that file or version back; or, where what changed "
                f"does not bear on the run, delete {path}."
            )


def _used(experiment: Experiment) -> Iterator[tuple[Group, Code]]:
    """Yield the foreign code of an experiment's network and tasks."""
    asked: list[tuple[Group, str]] = [("networks", experiment.network.kind)]
    asked += [("tasks", task.kind) for task in experiment.tasks.values()]
    for group, name in dict.fromkeys(asked):
        code = None if is_built_in(group, name) else find(group, name)[1]
        if code is not None:
            yield group, code


def _by_name(experiment: Experiment) -> Iterator[tuple[str, Code]]:
    yield from ((code.name, code) for _, code in _used(experiment))


def _read(path: Path) -> list[dict[str, Any]]:
    content = read_json(path, RunError, COPY_AGAIN).get("code")
    listed = content if isinstance(content, list) else []
    return [one for one in listed if isinstance(one, dict) and {"name", "sha256"} <= {*one}]


def _described(code: dict[str, Any]) -> str:
    package = f"{code['distribution']} {code['version']}, " if code.get("distribution") else ""
    return f"{package}{code.get('file') or 'no file'} with SHA-256 {str(code['sha256'])[:12]}"


def _path(run: RunFolder) -> Path:
    return run.path / "code.json"
