"""Every file that a verb reads of a folder that the program left, damaged: what it then says and does."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .contents import contents
from .forked import in_one_process, run
from .places import PROPAGATE, STUDY, TRAIN, TRAIN_ON_BALLS, Places


@dataclass(frozen=True)
class Reader:
    """A command that reads a folder.

    Attributes:
        folder: of which each file that it opens is damaged.
        arguments: of `threefold`.
        needs: names of places.
    """

    folder: str
    arguments: Sequence[str]
    needs: tuple[str, ...]


_ON_RUN = ("cohort", "run")
_OF_BALLS = ("balls", "propagated")
READERS = {
    "evaluate": Reader("run", ("evaluate", "run"), _ON_RUN),
    "evaluate --cohort": Reader("run", ("evaluate", "run", "--cohort", "cohort"), _ON_RUN),
    "predict": Reader("run", ("predict", "run", "cohort", "--out", "new"), _ON_RUN),
    "finish": Reader("run", ("finish", "run"), _ON_RUN),
    "train --resume": Reader("run", (*TRAIN, "run", "--resume"), _ON_RUN),
    "explain": Reader("run", ("explain", "run"), _ON_RUN),
    "probe": Reader("run", ("probe", "run", "--shortcut", "site"), _ON_RUN),
    "similarity": Reader("run", ("similarity", "other", "run"), (*_ON_RUN, "other")),
    "report": Reader("run", ("report", "run"), ("run",)),
    "start from weights": Reader(
        "run", (*TRAIN, "new", "initial_weights.path=run/weights.safetensors"), _ON_RUN
    ),
    "finish a stopped training": Reader("stopped", ("finish", "stopped"), ("cohort", "stopped")),
    "resume a stopped training": Reader("stopped", (*TRAIN, "stopped", "--resume"), ("cohort", "stopped")),
    "study run": Reader("study", STUDY, ("cohort", "tiny.yaml", "study")),
    "study status": Reader("study", ("study", "status", "study"), ("cohort", "study")),
    "study compare": Reader("study", ("study", "compare", "study"), ("cohort", "study")),
    "study pack": Reader("study", ("study", "pack", "study", "--out", "s.tar.xz"), ("study",)),
    "report of a study": Reader("study", ("report", "study"), ("cohort", "study")),
    "train": Reader("propagated", (*TRAIN_ON_BALLS, "--cohort", "propagated", "--out", "new"), _OF_BALLS),
    "degrade": Reader(
        "propagated", ("degrade", "propagated", "--out", "new", "--displacement", "1"), _OF_BALLS
    ),
    "propagate again": Reader("propagated", PROPAGATE, _OF_BALLS),
    "propagate a changed cohort": Reader(
        "propagated", ("propagate", "changed", *PROPAGATE[2:]), ("changed", "propagated")
    ),
    "predict again": Reader(
        "predicted", ("predict", "run", "cohort", "--out", "predicted"), ("cohort", "run", "predicted")
    ),
    "evaluate a table": Reader("run", ("evaluate", "run/predictions.csv", "--out", "new"), ("run",)),
}
"""By name."""
_ALIKE = "/heads/cls/"
"""A run of the study whose files are as those of the other."""
_PICTURES = ("run/figures/examples.png",)
"""Figures that leave out a case whose mask can't be read."""
SEALED = (
    *(".ckpt", ".safetensors", ".nii.gz", "predictions.csv", "structures.csv", "journal.jsonl"),
    *("run/experiment.yaml", "run/cohort.json", "run/trained_on.json", "run/split.csv", "run/status.json"),
)
"""How the names of those files end whose damage is always seen: nothing else may come of them."""


@dataclass(frozen=True)
class Damage:
    """What is done to a file, by the name of `DAMAGES`."""

    file: str
    kind: str


def _truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(1, max(path.stat().st_size, 2)))


def _flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _make_a_folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _make_a_pipe(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace(path: Path, chance: random.Random) -> None:
    """Give a file what is proper in another kind of file."""
    kinds = [kind for kind in _PROPER if not path.name.endswith(kind)]
    path.write_bytes(_PROPER[chance.choice(kinds)])


_PROPER = {
    "json": b'{"a": [1, null, "b"]}\n',
    "yaml": b"a:\n- b: 1\n",
    "csv": b"a,b\r\n1,2\r\n",
    "png": b"\x89PNG\r\n\x1a\n",
}
DAMAGES: Mapping[str, Callable[[Path, random.Random], None]] = {
    "truncated": _truncate,
    "empty": lambda path, chance: os.truncate(path, 0),
    "a bit flipped": _flip,
    "a folder": _make_a_folder,
    "a pipe": _make_a_pipe,
    "of another type": _replace,
    "gone": lambda path, chance: path.unlink(),
}


def record(reader: Reader, places: Places) -> tuple[list[str], dict[str, bytes]]:
    """Run a command on the whole folder; return the files of it that it reads, and all that is there then."""
    places.fresh(*reader.needs)
    there = {each.relative_to(places.home).as_posix() for each in places.home.rglob("*") if each.is_file()}
    told = places.home.parent / "read.txt"
    answer = run(reader.arguments, places.home, partial(_listening, places.home, told))
    assert answer.code == 0, answer.said
    read = {*told.read_text().splitlines()} & there
    files = [name for name in read if name.startswith(f"{reader.folder}/") and _ALIKE not in name]
    return sorted(files), contents(places.home)


def trials(
    reader: Reader, places: Places, left: Mapping[str, bytes], damages: Sequence[Damage]
) -> Iterator[tuple[Damage, str, str]]:
    """Damage a file, run the command, and judge what it says and leaves.

    Args:
        reader: the command.
        places: where it runs.
        left: by the command on the undamaged folder.
        damages: to be tried.

    Yields:
        Each damage, what the command said where it ended badly, and what is wrong with that: empty where
        nothing is.
    """
    for damage in damages:
        places.fresh(*reader.needs)
        path = places.home / damage.file
        DAMAGES[damage.kind](path, random.Random(f"{damage.file} {damage.kind}"))
        answer = run(reader.arguments, places.home)
        said = "" if answer.code == 0 else answer.said
        yield damage, said, _wrong(answer.code, answer.said, damage, path, left, places.home)


def _wrong(code: int, said: str, damage: Damage, path: Path, left: Mapping[str, bytes], home: Path) -> str:
    if code not in (0, 1, 2) or "Traceback" in said:
        return f"exit code {code}: {said}"
    text = " ".join(said.split())
    if code and path.name not in text and f"({path.name.partition('.')[0]}: " not in text:
        return f"neither the file nor its case is named: {said}"
    if code or not damage.file.endswith(SEALED) or not path.is_file():  # what is gone is not used
        return ""
    now = contents(home)
    others = {*left, *now} - {damage.file, f"{damage.file}.sha256", *_PICTURES}
    differing = sorted(name for name in others if now.get(name) != left.get(name))
    return f"used: other files than of a whole one: {', '.join(differing)}" if differing else ""


def all_damages(files: Sequence[str]) -> list[Damage]:
    """Return every damage to every file."""
    return [Damage(file, kind) for file in files for kind in DAMAGES]


@contextmanager
def _listening(home: Path, told: Path) -> Iterator[None]:
    """Write down which files of the home are opened to be read; of a process that ends."""
    opened: dict[str, None] = {}

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = home / os.fsdecode(arguments[0])
            if path.is_relative_to(home):
                opened[path.relative_to(home).as_posix()] = None

    sys.addaudithook(hear)
    with in_one_process():
        yield
    told.write_text("\n".join(opened))
