"""A study as one file: what its comparison rests on, without images, masks and weights."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from threefold.checksums import verify_table
from threefold.errors import RunError
from threefold.paths import Boundary
from threefold.run import RunFolder, write_atomically
from threefold.runs.finished import verify_made, verify_settings
from threefold.studies.protocol import read_protocol
from threefold.studies.reliance import TABLES
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import plan_runs
from threefold.validation import read_json, read_yaml

_OF_STUDY = ("study.yaml", "protocol.json", "cohorts/*.json", "labels/*.json", "labels/*/*.csv")


@dataclass(frozen=True)
class Packed:
    """What `pack_study` wrote.

    Attributes:
        runs: ids of the runs in the file.
        missing: ids of those that have not finished, and are not in it.
        bytes: size of the file.
    """

    runs: tuple[str, ...]
    missing: tuple[str, ...]
    bytes: int


def pack_study(folder: StudyFolder, out: Path) -> Packed:
    """Write what a study's comparison rests on into one file.

    Unpacked (`tar xf`), it is a study folder again: `compare_study` says the same of it, and `run_study` goes
    on with the runs that had not finished. The same study gives the same bytes. Paths of the machine are cut:
    those in the study to what follows its parent folder, others to their last part. Ids of cases and patients
    are kept.

    Args:
        folder: the study's.
        out: the new file, .tar.xz.

    Raises:
        RunError: not a study, a damaged one, none of its runs has finished, the file exists, or the disk
            refuses.
    """
    runs, missing = _finished(folder)
    if out.exists():
        raise RunError(f"{out}: exists already. Nothing was overwritten: name another file.")
    if out.suffixes[-2:] != [".tar", ".xz"]:
        raise RunError(f"{out}: expected a name that ends in .tar.xz, which is what is written.")
    data = lzma.compress(packed_content(folder), preset=9 | lzma.PRESET_EXTREME)
    write_atomically(out, data)
    return Packed(runs, missing, len(data))


def _finished(folder: StudyFolder) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the runs of a study that have finished, and those that have not."""
    plans = [plan.id for plan in plan_runs(folder.read())]
    runs = tuple(name for name in plans if folder.is_finished(name))
    if not runs:
        raise RunError(
            f"{folder.path}: none of its {len(plans)} runs has finished. Run it: `threefold study run`."
        )
    return runs, tuple(name for name in plans if name not in runs)


def packed_content(folder: StudyFolder) -> bytes:
    """Return what `pack_study` compresses, a tar archive; the same study gives the same bytes.

    Raises:
        RunError: as `pack_study`, but for the file.
    """
    runs, _ = _finished(folder)
    read_protocol(folder)  # a damaged one is not packed
    home = folder.path.resolve()
    boundary = Boundary(home, "the study's folder")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in _files(folder, runs):
            how = boundary.leaves(home / path.relative_to(folder.path))
            if how is not None or not path.is_file():
                raise RunError(
                    f"{path}: {how or 'is no file'}. What is no part of the study is not packed: put the "
                    "file itself there."
                )
            content = _portable(path, home)
            about = tarfile.TarInfo(f"{home.name}/{path.relative_to(folder.path).as_posix()}")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return stream.getvalue()


def _files(folder: StudyFolder, runs: tuple[str, ...]) -> Iterator[Path]:
    for pattern in _OF_STUDY:
        yield from sorted(folder.path.glob(pattern))
    yield from sorted(map(folder.outcome_file, runs))
    for name in runs:
        run = folder.run(name)
        for table in (run.predictions, run.structures, run.evidence):
            verify_table(table, RunError, _AGAIN)
        verify_made(run, run.predictions, run.structures, run.failed, run.metrics)
        verify_settings(run)
    # Alike beside alike: what repeats takes no room.
    for paths in zip(*(_tables(folder.run(name)) for name in runs), strict=True):
        yield from (path for path in paths if path.is_file())


def _tables(run: RunFolder) -> tuple[Path, ...]:
    """Return what is kept of a run; other tables are made of these, but for those that the network makes."""
    return (
        run.experiment,
        run.cohort,
        run.split,
        run.environment,
        run.status,
        run.metrics,
        run.predictions,
        run.structures,
        run.failed,
        run.evidence,
        *(run.tables / f"{name}.csv" for name in TABLES),
    )


_AGAIN = "Put it back, or pack without that run."


def _portable(path: Path, home: Path) -> bytes:
    """Return a file's content, its paths of this machine cut."""
    if path.suffix == ".json":
        content = _cut(read_json(path, RunError, _AGAIN), home)
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    if path.suffix == ".yaml":
        content = _cut(read_yaml(path, RunError), home)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100).encode()
    return path.read_bytes()


def _cut(content: Any, home: Path) -> Any:
    if isinstance(content, dict):
        return {key: _cut(value, home) for key, value in content.items()}
    if isinstance(content, list):
        return [_cut(value, home) for value in content]
    if not isinstance(content, str) or not Path(content).is_absolute():
        return content
    path = Path(content)
    return path.relative_to(home.parent).as_posix() if path.is_relative_to(home) else path.name
