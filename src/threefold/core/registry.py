"""What is found by name: networks, tasks, metrics, phantoms and readers.

A name is one of the program's own; or one that an installed package gives in the entry-point group
`threefold.networks`, `.tasks`, `.metrics`, `.phantoms` or `.readers`; or MODULE:NAME, which is imported from
the working folder or the environment. Nothing is registered by being imported, and nothing is imported before
it is asked for. This module imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from threefold.errors import ExperimentError, bounded
from threefold.validation import did_you_mean

Group = Literal["networks", "tasks", "metrics", "phantoms", "readers"]
GROUPS: tuple[Group, ...] = get_args(Group)

_PHANTOMS = {
    "head-ct": "threefold.phantoms.head_ct:HEAD_CT",
    "varied-head": "threefold.phantoms.varied_head:VARIED_HEAD",
    "fetal-heart": "threefold.phantoms.fetal_heart:FETAL_HEART",
    "object-background": "threefold.phantoms.object_background:OBJECT_BACKGROUND",
}


@dataclass(frozen=True)
class Code:
    """Where foreign code is, and what it was when it was used.

    Attributes:
        name: as asked for.
        file: of the module; empty where it has none.
        sha256: of the file.
        distribution, version: of the installed package that the module belongs to; empty where it is none's.
    """

    name: str
    file: str
    sha256: str
    distribution: str = ""
    version: str = ""


@dataclass(frozen=True)
class Plugin:
    """A name that can be asked for.

    Attributes:
        group, name: of what.
        place: module:name.
        source: built in, or the package that gives it, with its version.
        problem: why it can't be loaded; empty where it can, and where it was not tried.
    """

    group: Group
    name: str
    place: str
    source: str
    problem: str = ""


def find(group: Group, name: str) -> tuple[Any, Code | None]:
    """Return what a name stands for, and where it comes from; None: it is the program's own.

    Raises:
        ExperimentError: there is no such name (the nearest is told), or it can't be imported (and why).
    """
    own = _built_in(group)
    if name in own:
        return _load(own[name], group, name)[0], None
    points = _entry_points(group)
    if name in points:
        point = points[name]
        value, module = _load(point.value, group, name)
        return value, _code(name, module, point.dist)
    if name.partition(":")[0] and ":" in name:
        value, module = _load(name, group, name)
        return value, _code(name, module, None)
    known = (*own, *points)
    raise ExperimentError(
        f"there is no {_one(group)} '{bounded(name)}'.{did_you_mean(name, known)} One of your own is "
        "MODULE:NAME, for example my_code:Mine, imported from the working folder or the environment."
    )


def built_in(group: Group) -> tuple[str, ...]:
    """Return the names of a group that are the program's own."""
    return tuple(_built_in(group))


def is_built_in(group: Group, name: str) -> bool:
    """Whether a name is one of the program's own."""
    return name in _built_in(group)


def load(place: str) -> Any:
    """Return what the program has at module:name."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _built_in(group: Group) -> Mapping[str, str]:
    """Return where the program's own are, module:name by name.

    Networks and tasks are listed where their settings are. Formats of files are told by their bytes, and all
    metrics stand in one module, so that neither has names here.
    """
    if group == "networks":
        from threefold.experiment.networks import BUILT_IN_NETWORKS

        return {name: spec.code for name, spec in BUILT_IN_NETWORKS.items()}
    if group == "tasks":
        from threefold.experiment.tasks import KINDS

        return {name: spec.code for name, spec in KINDS.items()}
    return _PHANTOMS if group == "phantoms" else {}


def listed(group: Group, *, load: bool = False) -> Iterator[Plugin]:
    """Yield what can be asked for by a short name; with `load`, each is tried."""
    for name, place in _built_in(group).items():
        yield Plugin(group, name, place, "built in", _problem(place, group, name) if load else "")
    for name, point in _entry_points(group).items():
        source = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "?"
        problem = _problem(point.value, group, name) if load else ""
        yield Plugin(group, name, point.value, source, problem)


def forget() -> None:
    """Look anew for installed packages and for files that were written since modules were last imported."""
    _entry_points.cache_clear()
    importlib.invalidate_caches()


def _problem(place: str, group: Group, name: str) -> str:
    try:
        _load(place, group, name)
    except ExperimentError as error:
        return str(error)
    return ""


@lru_cache(maxsize=len(GROUPS))
def _entry_points(group: Group) -> dict[str, importlib.metadata.EntryPoint]:
    own = _built_in(group)
    points = importlib.metadata.entry_points(group=f"threefold.{group}")
    return {point.name: point for point in points if point.name not in own}


def _load(place: str, group: Group, name: str) -> tuple[Any, ModuleType]:
    module_name, _, attribute = place.partition(":")
    where = f"{_one(group)} '{bounded(name)}'"
    if module_name.startswith("."):
        raise ExperimentError(
            f"{where}: '{bounded(place)}' names no module. Name it from its outermost package, as in "
            "package.module:Name."
        )
    try:
        with _working_folder_first():
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        raise ExperimentError(
            f"{where}: can't import {module_name} ({type(error).__name__}: {bounded(str(error))}). "
            f"{_advice(error, module_name)}"
        ) from error
    value: Any = module
    for part in attribute.split("."):
        if not part or not hasattr(value, part):
            names = [one for one in vars(module) if not one.startswith("_")]
            raise ExperimentError(
                f"{where}: {module_name} has no '{bounded(attribute)}'.{did_you_mean(attribute, names)}"
            )
        value = getattr(value, part)
    return value, module


def _advice(error: BaseException, module: str) -> str:
    """Return what to do about an import that failed."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return "Correct the module."
    if f"{module}.".startswith(f"{error.name}."):
        return "Install it, or run the command in the folder that holds it."
    return f"{module} imports {error.name}: install that."


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """Let modules of the working folder be imported, as `python -m` does."""
    folder = str(Path.cwd())
    if folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _code(name: str, module: ModuleType, dist: importlib.metadata.Distribution | None) -> Code:
    file = inspect.getsourcefile(module) if getattr(module, "__file__", None) else None
    digest = ""
    if file is not None:
        with Path(file).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if dist is None:
        dist = _distribution(module)
    version = ("", "") if dist is None else (str(dist.name), str(dist.version))
    return Code(name, file or "", digest, *version)


def _distribution(module: ModuleType) -> importlib.metadata.Distribution | None:
    """Return the installed package that a module belongs to, where it can be told."""
    top = module.__name__.partition(".")[0]
    names = importlib.metadata.packages_distributions().get(top, [])
    return importlib.metadata.distribution(names[0]) if names else None


def _one(group: Group) -> str:
    return group.removesuffix("s")
