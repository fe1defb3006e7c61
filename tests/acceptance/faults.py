"""Every write of a command as a place where it can fail: half written and killed, refused, interrupted.

A command is run in forked processes, so that a kill is a kill and a command's state is its own. All files of
the program are written through three functions of `threefold.run`, which count here and fail where told to.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Imported once and not in each forked process.
import numpy as np
import torch

import threefold.inference.predictor
import threefold.partials
import threefold.phantoms.registry
import threefold.run
import threefold.studies.reports
import threefold.training.run
from threefold.cli.app import main
from threefold.cohorts.cohort import CohortSpec, IntensitySpec, MaskSpec, write_cohort
from threefold.images.writing import write_nifti

KILLED = 137
_REAL: Mapping[str, Callable[..., None]] = {
    name: getattr(threefold.run, name) for name in ("_store", "_copy", "_rename")
}
KINDS = {
    "_store": ("torn", "ENOSPC", "interrupt"),
    "_copy": ("torn", "ENOSPC", "interrupt"),
    "_rename": ("killed before", "killed after", "EIO", "interrupt"),
}
_TIME = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?")
_ALLOCATORS = ("empty", "zeros", "ones", "stack", "concatenate", "ascontiguousarray", "asarray", "full")


@dataclass(frozen=True)
class Fault:
    """What fails: the n-th write of a command (or the n-th array, `MemoryError`), and how."""

    number: int
    operation: str
    kind: str
    file: str = ""


@dataclass(frozen=True)
class Outcome:
    """A command's exit code, what it printed, and its writes: function and file, in order; its arrays."""

    code: int
    said: str
    writes: tuple[tuple[str, str], ...]
    arrays: int


@dataclass(frozen=True)
class Command:
    """A command whose writes are made to fail.

    Attributes:
        arguments: run in `home`.
        out: what it leaves, relative to `home`.
        again: how it is repeated; empty: the same.
    """

    arguments: Sequence[str]
    out: str
    again: Sequence[str] = ()


_SMALL = (
    "training.epochs=2",
    "training.batch_size=4",
    "training.selection.metric=loss",
    "network.encoder.embed_dim=8",
    "data.preprocessing.size=[32, 32]",
    "data.split.kind=column",
    "evaluation.replicates=10",
)
_FEW = ("patients_per_site=1", "external_patients_per_site=1", "sites=2", "mask_sites=[1]", "size=64")
_TRAIN = ("train", "hematoma/demo", *_SMALL, "--cohort", "cohort", "--out")
COMMANDS = {
    "train": Command((*_TRAIN, "new", "--resume"), "new"),
    "finish": Command(("finish", "stopped"), "stopped"),
    "evaluate": Command(("evaluate", "run"), "run"),
    "evaluate --cohort": Command(("evaluate", "run", "--cohort", "cohort"), "run"),
    "predict": Command(("predict", "run", "cohort", "--out", "predicted"), "predicted"),
    "report": Command(("report", "run"), "run"),
    "import": Command(
        ("import", "table", "cohort/cases.csv", "--meaning", "cohort/cohort.yaml", "--out", "imported"),
        "imported",
    ),
    "phantom": Command(("phantom", "head-ct", "pictures", "--preset", "demo", *_FEW), "pictures"),
    "export": Command(("export", "decathlon", "cohort", "--out", "dataset.json"), "."),
}
"""By name; chain, study and propagate are for the benchmark, since they train."""
_PARTS = ("train", "train", "validation", "test")


def run(arguments: Sequence[str], home: Path, fault: Fault | None = None) -> Outcome:
    """Run a command in a forked process in the folder `home`."""
    told = home.parent / "told.json"
    told.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside threads; nothing of theirs is used here
        process = os.fork()
    if process == 0:
        code = 71
        try:
            code = _command(arguments, home, fault, told)
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    said = (home.parent / "said.txt").read_text(encoding="utf-8", errors="replace")
    known = json.loads(told.read_text()) if told.exists() else {"writes": [], "arrays": 0}
    writes = tuple((operation, file) for operation, file in known["writes"])
    return Outcome(os.waitstatus_to_exitcode(status), said, writes, known["arrays"])


def all_faults(recorded: Outcome) -> list[Fault]:
    """Return every way in which every write of a command can fail."""
    return [
        Fault(number, operation, kind, file)
        for number, (operation, file) in enumerate(recorded.writes)
        for kind in KINDS[operation]
    ]


def spread(faults: Sequence[Fault], count: int) -> list[Fault]:
    """Return at most `count` of them, of every kind of failure and from the first write to the last."""
    count = min(count, len(faults))
    return [faults[(2 * place + 1) * len(faults) // (2 * count)] for place in range(count)]


def check(command: Command, prepared: Path, home: Path, faults: Callable[[Outcome], Sequence[Fault]]) -> int:
    """Let a command fail in each way, repeat it, and compare what it leaves with what an unbroken one does.

    Args:
        command: the command.
        prepared: a folder with what it needs, copied to `home` for each attempt.
        home: where it runs, always the same path.
        faults: which of its faults, given the unbroken run.

    Returns:
        The number of faults.
    """
    _fresh(prepared, home)
    unbroken = run(command.arguments, home)
    assert unbroken.code == 0, unbroken.said
    expected = contents(home / command.out)
    assert expected
    asked = faults(unbroken)
    for fault in asked:
        _fresh(prepared, home)
        broken = run(command.arguments, home, fault)
        _require_explained(broken, fault)
        if (home / command.out).is_dir() and contents(home / command.out) == expected:
            continue  # all was written before it failed; what is there is not made twice
        repeated = run(command.again or command.arguments, home)
        assert repeated.code == 0, f"{fault}: {repeated.said}"
        found = contents(home / command.out)
        differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        assert not differing, f"{fault}: other than unbroken: {', '.join(differing)}"
    return len(asked)


def contents(folder: Path) -> dict[str, bytes]:
    """Return each file of a folder by name, without times, durations, commands and logs."""
    return {
        path.relative_to(folder).as_posix(): _comparable(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and path.suffix != ".log"
    }


def _comparable(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "metrics.csv" and content.startswith(b"epoch"):
        rows = [_lasting(row) for row in csv.DictReader(io.StringIO(content.decode()))]
        return repr(rows).encode()
    if path.suffix == ".ckpt":
        state = torch.load(path, weights_only=True)
        state["history"] = [_lasting(row) for row in state.get("history", [])]
        return repr(_plain(state)).encode()
    if path.name == "environment.json":
        return json.dumps({**json.loads(content), "started": "", "command": ""}).encode()
    if path.suffix in (".json", ".html"):
        return _TIME.sub(b"TIME", content)
    return content


def _lasting(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("seconds")}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _fresh(prepared: Path, home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(prepared, home)


def _require_explained(broken: Outcome, fault: Fault) -> None:
    expected = {
        "torn": (KILLED,),
        "killed before": (KILLED,),
        "killed after": (KILLED,),
        "interrupt": (130,),
        "ENOSPC": (0, 1),  # what a command can do without, as a cache, it does without
        "EIO": (0, 1),
        "memory": (0, 1),
    }[fault.kind]
    assert broken.code in expected, f"{fault}: exit code {broken.code}: {broken.said}"
    assert "Traceback" not in broken.said, f"{fault}: {broken.said}"


def _command(arguments: Sequence[str], home: Path, fault: Fault | None, told: Path) -> int:
    """Run a command in this process, which ends with it; return the exit code."""
    said = os.open(home.parent / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1)
    os.chdir(home)
    threefold.partials._remove_abandoned.cache_clear()
    writes: list[tuple[str, str]] = []
    arrays = [0]
    for name in _REAL:
        setattr(threefold.run, name, _seam(name, writes, fault))
    for name in _ALLOCATORS:
        setattr(np, name, _allocator(getattr(np, name), arrays, fault))
    sys.argv = ["threefold", *arguments]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stdout.flush()
    told.write_text(json.dumps({"writes": writes, "arrays": arrays[0]}))
    return code


def _seam(name: str, writes: list[tuple[str, str]], fault: Fault | None) -> Callable[..., None]:
    """Return one of the functions that write, which counts, and fails where it is told to."""

    def write(first: Path, second: Any) -> None:
        number = len(writes)
        file = re.sub(r"\.\d+@[^/]*\.partial", "", str(first if name == "_store" else second))
        writes.append((name, file))
        if fault is None or fault.number != number or fault.operation not in _REAL:
            _REAL[name](first, second)
            return
        if fault.kind in ("torn", "ENOSPC", "interrupt") and name != "_rename":
            whole = second if name == "_store" else first.read_bytes()
            (first if name == "_store" else second).write_bytes(whole[: len(whole) // 2])
        elif fault.kind in ("killed after", "interrupt"):
            _REAL[name](first, second)
        if fault.kind == "interrupt":
            raise KeyboardInterrupt
        if fault.kind in ("ENOSPC", "EIO"):
            number = getattr(errno, fault.kind)
            raise OSError(number, os.strerror(number), str(first))
        os._exit(KILLED)

    return write


def _allocator(real: Callable[..., Any], arrays: list[int], fault: Fault | None) -> Callable[..., Any]:
    """Return a function of numpy that makes an array, which counts, and has no memory where it is told so."""

    def allocate(*arguments: Any, **options: Any) -> Any:
        arrays[0] += 1
        if fault is not None and fault.operation == "array" and arrays[0] == fault.number:
            raise MemoryError("Unable to allocate 9.99 TiB for an array")
        return real(*arguments, **options)

    return allocate


def memory_faults(recorded: Outcome, count: int) -> Sequence[Fault]:
    """Return arrays, from the first to the last that a command makes, for which there is no memory."""
    places = np.unique(np.linspace(1, recorded.arrays, count + 2).round().astype(int))[1:-1]
    return [Fault(int(place), "array", "memory") for place in places]


def prepare(folder: Path, home: Path) -> None:
    """Make a cohort, a finished run and one that a kill stopped, in `home`, and copy them to `folder`."""
    home.mkdir(parents=True)
    _write_cases(home / "cohort")
    finished = run((*_TRAIN, "run"), home)
    assert finished.code == 0, finished.said
    last = [
        number for number, (_, file) in enumerate(finished.writes) if file.endswith("weights.safetensors")
    ]
    stopped = run((*_TRAIN, "stopped"), home, Fault(last[0], "_store", "torn"))
    assert stopped.code != 0
    shutil.copytree(home, folder)


def _write_cases(folder: Path) -> None:
    """Eight patients of two sites, a slice each, all with a mask and a label."""
    folder.mkdir()
    rng, affine = np.random.default_rng(0), np.diag([-1.0, -1.0, 5.0, 1.0])
    rows = []
    for number in range(8):
        image = rng.normal(35, 4, (32, 32)).astype(np.float32)
        image[:4] = -1000
        image[8:20, 8:20] = 65
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = 1
        write_nifti(folder / f"c{number}.nii.gz", image, affine)
        write_nifti(folder / f"c{number}-mask.nii.gz", mask, affine)
        rows.append(
            {
                "case_id": f"c{number}",
                "patient_id": f"p{number}",
                "site": "ab"[number % 2],
                "split": _PARTS[number // 2],
                "image": f"c{number}.nii.gz",
                "mask": f"c{number}-mask.nii.gz",
                "label": ("plain", "holed")[(number // 2 + number) % 2],
            }
        )
    spec = CohortSpec(
        name="squares",
        modality="ct",
        dimensions=2,
        classes=("plain", "holed"),
        mask=MaskSpec(name="square"),
        intensity=IntensitySpec(unit="HU", window=(0, 80)),
    )
    write_cohort(folder, spec, rows)
