"""Every write of a command as a place where it can fail: half written and killed, refused, interrupted.

All files of the program are written through four functions of `threefold.run`, which count here and fail
where told to; so do the functions of numpy that make arrays.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import threefold.run

from .contents import contents
from .forked import Answer, in_one_process, run
from .places import CHAIN, PROPAGATE, SMALL, STUDY, TRAIN, Places

KILLED = 137
_REAL: Mapping[str, Callable[..., None]] = {
    name: getattr(threefold.run, name) for name in ("_store", "_append", "_copy", "_rename")
}
KINDS = {
    "_store": ("torn", "ENOSPC", "interrupt"),
    "_append": ("torn", "ENOSPC", "interrupt"),
    "_copy": ("torn", "ENOSPC", "interrupt"),
    "_rename": ("killed before", "killed after", "EIO", "interrupt"),
}
_ENDS = {
    "torn": (KILLED,),
    "killed before": (KILLED,),
    "killed after": (KILLED,),
    "interrupt": (130,),
    "ENOSPC": (0, 1),  # what a command can do without, as a cache, it does without
    "EIO": (0, 1),
    "memory": (0, 1),
}
_ALLOCATORS = ("empty", "zeros", "ones", "stack", "concatenate", "ascontiguousarray", "asarray", "full")


@dataclass(frozen=True)
class Fault:
    """What fails: the n-th write of a command (or the n-th array, `MemoryError`), and how."""

    number: int
    operation: str
    kind: str
    file: str = ""


@dataclass(frozen=True)
class Recorded:
    """What an unbroken command does: its writes, function and file, in order; the number of its arrays."""

    writes: tuple[tuple[str, str], ...]
    arrays: int


@dataclass(frozen=True)
class Command:
    """A command whose writes are made to fail.

    Attributes:
        arguments: of `threefold`.
        needs: names of places.
        out: what it leaves, a folder or a file.
    """

    arguments: Sequence[str]
    needs: tuple[str, ...]
    out: str


_IMPORT_SERIES = (
    *("import", "dicom", "series", "--meaning", "series/cohort.yaml"),
    *("--site", "s", "--patient", "p"),
)
_FEW = ("patients_per_site=1", "external_patients_per_site=1", "sites=2", "mask_sites=[1]")
COMMANDS = {
    "train": Command((*TRAIN, "new", "--resume"), ("cohort",), "new"),
    "finish": Command(("finish", "stopped"), ("cohort", "stopped"), "stopped"),
    "evaluate": Command(("evaluate", "run"), ("cohort", "run"), "run"),
    "evaluate --cohort": Command(("evaluate", "run", "--cohort", "cohort"), ("cohort", "run"), "run"),
    "evaluate a table": Command(
        ("evaluate", "run/predictions.csv", "--out", "evaluated"), ("run",), "evaluated"
    ),
    "explain": Command(("explain", "run"), ("cohort", "run"), "run"),
    "probe": Command(("probe", "run", "--shortcut", "site"), ("cohort", "run"), "run"),
    "similarity": Command(
        ("similarity", "run", "other", "--out", "alike"), ("cohort", "run", "other"), "alike"
    ),
    "predict": Command(("predict", "run", "cohort", "--out", "predicted"), ("cohort", "run"), "predicted"),
    "ensemble": Command(("ensemble", "run", "second", "--out", "together"), ("run", "second"), "together"),
    "crossvalidate": Command(
        (
            *("crossvalidate", "hematoma/demo", *SMALL, "training.epochs=1", "--cohort", "cohort"),
            *("--folds", "2", "--workers", "1", "--out", "crossed"),
        ),
        ("cohort",),
        "crossed",
    ),
    "report": Command(("report", "run"), ("run",), "run"),
    "propagate": Command(PROPAGATE, ("balls",), "propagated"),
    "propagate a changed cohort": Command(
        ("propagate", "changed", *PROPAGATE[2:]), ("changed", "propagated"), "propagated"
    ),
    "degrade": Command(
        ("degrade", "balls", "--out", "degraded", "--displacement", "2"), ("balls",), "degraded"
    ),
    "chain": Command(
        ("chain", "aortic-arch-demo", *CHAIN, "--cohort", "hearts", "--out", "chained"),
        ("hearts",),
        "chained",
    ),
    "study run": Command(STUDY, ("cohort", "tiny.yaml"), "study"),
    "study compare": Command(("study", "compare", "study"), ("cohort", "study"), "study"),
    "study pack": Command(("study", "pack", "study", "--out", "study.tar.xz"), ("study",), "study.tar.xz"),
    "report of a study": Command(("report", "study"), ("cohort", "study"), "study"),
    "import table": Command(
        ("import", "table", "cohort/cases.csv", "--meaning", "cohort/cohort.yaml", "--out", "imported"),
        ("cohort",),
        "imported",
    ),
    "import decathlon": Command(
        ("import", "decathlon", "listed.json", "--out", "imported"), ("balls", "listed.json"), "imported"
    ),
    "import dicom": Command(
        (*_IMPORT_SERIES, "--out", "imported"),
        ("series",),
        "imported",
    ),
    "import merge": Command(
        ("import", "merge", "balls", "changed", "--prefix", "--out", "imported"),
        ("balls", "changed"),
        "imported",
    ),
    "export onnx": Command(("export", "onnx", "run", "--out", "network"), ("cohort", "run"), "network"),
    "export decathlon": Command(
        ("export", "decathlon", "cohort", "--out", "dataset.json"), ("cohort",), "dataset.json"
    ),
    "phantom head-ct": Command(
        ("phantom", "head-ct", "made", "--preset", "demo", "size=64", *_FEW), (), "made"
    ),
    "phantom fetal-heart": Command(
        ("phantom", "fetal-heart", "made", "--preset", "demo", "--patients", "1", "1", "1"), (), "made"
    ),
    "phantom object-background": Command(
        ("phantom", "object-background", "made", "--preset", "demo", *_FEW), (), "made"
    ),
    "demo hematoma": Command(("demo", "hematoma", "--out", "demo", *SMALL, "training.epochs=1"), (), "demo"),
    "demo aortic-arch": Command(("demo", "aortic-arch", "--out", "demo", *CHAIN), (), "demo"),
}
"""By name: all that leave a file. The importers of public sets copy as `import table` does."""


def record(command: Command, places: Places) -> tuple[Recorded, dict[str, bytes]]:
    """Run a command that nothing breaks; return what it did and what it left."""
    places.fresh(*command.needs)
    answer, recorded = _run(command.arguments, places.home, None)
    assert answer.code == 0, answer.said
    left = contents(places.home / command.out)
    assert left
    return recorded, left


def trials(
    command: Command, places: Places, left: Mapping[str, bytes], faults: Iterable[Fault]
) -> Iterator[tuple[Fault, str]]:
    """Let a command fail in each way, repeat it, and compare what it leaves with what an unbroken one does.

    Args:
        command: the command.
        places: where it runs.
        left: by the unbroken one.
        faults: some of its faults.

    Yields:
        Each fault, and what went wrong: empty where nothing did.
    """
    for fault in faults:
        places.fresh(*command.needs)
        yield fault, _wrong(command, places, left, fault)


def _wrong(command: Command, places: Places, left: Mapping[str, bytes], fault: Fault) -> str:
    out = places.home / command.out
    broken, _ = _run(command.arguments, places.home, fault)
    if broken.code not in _ENDS[fault.kind]:
        return f"exit code {broken.code}: {broken.said}"
    if "Traceback" in broken.said:
        return broken.said
    differing = _differing(left, contents(out))
    if not differing:
        return ""  # all was written before it failed; what is there is not made twice
    if "To retry the failed cases, remove" in broken.said:
        shutil.rmtree(out)
    if broken.code == 0 and fault.kind != "memory":
        return f"ended well, with other files than unbroken: {differing}"
    repeated, _ = _run(command.arguments, places.home, None)
    if repeated.code != 0:
        return f"repeated: exit code {repeated.code}: {repeated.said}"
    differing = _differing(left, contents(out))
    if not differing or (broken.code == 0 and _is_named(out)):
        return ""
    return f"repeated: other files than unbroken: {differing}"


def _is_named(out: Path) -> bool:
    """Whether a table says of a case that it could not be measured whole."""
    return any(b"not_measured" in path.read_bytes() for path in out.rglob("predictions.csv"))


def _differing(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> str:
    return ", ".join(sorted(name for name in {*one, *other} if one.get(name) != other.get(name)))


def write_faults(recorded: Recorded) -> list[Fault]:
    """Return every way in which every write of a command can fail."""
    return [
        Fault(number, operation, kind, file)
        for number, (operation, file) in enumerate(recorded.writes)
        for kind in KINDS[operation]
    ]


def memory_faults(recorded: Recorded, count: int) -> list[Fault]:
    """Return arrays, from the first to the last that a command makes, for which there is no memory."""
    places = np.unique(np.linspace(1, recorded.arrays, count + 2).round().astype(int))[1:-1]
    return [Fault(int(place), "array", "memory") for place in places]


def spread(faults: Sequence[Fault], count: int) -> list[Fault]:
    """Return at most `count` of them, of every kind of failure and from the first write to the last."""
    count = min(count, len(faults))
    return [faults[(2 * place + 1) * len(faults) // (2 * count)] for place in range(count)]


def _run(arguments: Sequence[str], home: Path, fault: Fault | None) -> tuple[Answer, Recorded]:
    """Run a command with a fault; return its answer and, where it was not killed, what it did."""
    told = home.parent / "told.json"
    told.unlink(missing_ok=True)
    answer = run(arguments, home, partial(_failing, fault, told))
    known = json.loads(told.read_text()) if told.exists() else {"writes": [], "arrays": 0}
    return answer, Recorded(tuple((name, file) for name, file in known["writes"]), known["arrays"])


@contextmanager
def _failing(fault: Fault | None, told: Path) -> Iterator[None]:
    """Count writes and arrays, let one fail, and write down how many there were; of a process that ends."""
    writes: list[tuple[str, str]] = []
    arrays = [0]
    for name in _REAL:
        setattr(threefold.run, name, _seam(name, writes, fault))
    for name in _ALLOCATORS:
        setattr(np, name, _allocator(getattr(np, name), arrays, fault))
    with in_one_process():
        yield
    told.write_text(json.dumps({"writes": writes, "arrays": arrays[0]}))


def _seam(name: str, writes: list[tuple[str, str]], fault: Fault | None) -> Callable[..., None]:
    """Return one of the functions that write, which counts, and fails where it is told to."""

    def write(first: Path, second: Any) -> None:
        number = len(writes)
        target = second if name in ("_copy", "_rename") else first
        writes.append((name, re.sub(r"\.\d+@[^/]*\.partial", "", str(target))))
        if fault is None or fault.number != number or fault.operation not in _REAL:
            _REAL[name](first, second)
            return
        if name == "_rename":
            if fault.kind in ("killed after", "interrupt"):
                _REAL[name](first, second)
        elif name == "_copy":
            _half(target, first.read_bytes(), "wb")
        else:
            _half(target, second if isinstance(second, bytes) else b"".join(second), _MODES[name])
        if fault.kind == "interrupt":
            raise KeyboardInterrupt
        if fault.kind in ("ENOSPC", "EIO"):
            number = getattr(errno, fault.kind)
            raise OSError(number, os.strerror(number), str(first))
        os._exit(KILLED)

    return write


_MODES = {"_store": "wb", "_append": "ab"}


def _half(path: Path, whole: bytes, mode: str) -> None:
    with path.open(mode) as stream:
        stream.write(whole[: len(whole) // 2])


def _allocator(real: Callable[..., Any], arrays: list[int], fault: Fault | None) -> Callable[..., Any]:
    """Return a function of numpy that makes an array, which counts, and has no memory where it is told so."""

    def allocate(*arguments: Any, **options: Any) -> Any:
        arrays[0] += 1
        if fault is not None and fault.operation == "array" and arrays[0] == fault.number:
            raise MemoryError("Unable to allocate 9.99 TiB for an array")
        return real(*arguments, **options)

    return allocate
