"""The run folder: the one place that knows the names of a run's files.

RUN/
  experiment.yaml      the experiment as run, every default written out
  cohort.json          name, fingerprint and meaning (cohort.yaml) of the cohort trained on
  trained_on.json      what the training images stated and held (cohorts.meaning.TrainedOn)
  split.csv            case_id, part
  environment.json     versions, machine, command
  status.json          state, epoch, best metric, threshold
  settings.sha256      of a finished run: checksums of all that its predictions rest on (runs.finished)
  metrics.csv          one row an epoch
  checkpoints/         last.ckpt, best.ckpt (torch, loadable with weights_only=True)
  weights.safetensors  the weights that it predicts with, with weights.json beside it
  weights-last.safetensors  (or -best) the other epoch's, with weights-last.json; absent where one is both
  calibration.json     what the validation cases say of its predictions (inference.calibration)
  features.safetensors  of training cases, which new images are held against (inference.out_of_distribution)
  predictions.csv      one row a case (evaluation.predictions)
  structures.csv       one row a case and structure (evaluation.structures)
  failed.csv           validation and test cases that could not be predicted, and why; absent without such
  evidence.csv         one row a test case: where the network looks, what turns its decision
  masks/               predicted masks of the test cases, on each image's own grid
  results.json         every number of `evaluate`, `explain` and `probe` (reporting.results)
  engines/             the network for other engines, from the first `predict --engine` on
  tables/  figures/    the same as Markdown and CSV, and the pictures
  report.html          what `report` made of all this
  card.md              written by hand, of few: what the model is for, and its warning (models.store)
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from threefold.errors import RunError, ThreefoldError, some
from threefold.partials import partial_of, remove_abandoned
from threefold.validation import parse_spec, read_json

RESULTS_NAME = "results.json"
"""Of a run, an evaluation and a study."""
ENSEMBLE_NAME = "ensemble.json"
"""Of the folder of an ensemble of runs (`runs.ensembles`)."""
PROPAGATION = "propagation"
"""The folder of what propagated labels alone come to, beside trainings on them."""
State = Literal["running", "interrupted", "failed", "finished"]
Epoch = Literal["best", "last"]
"""Of a training, one whose weights are kept."""
_NAMED = 5
COPY_AGAIN = "Expected what `threefold train` wrote: copy the run folder again."
_Content = TypeVar("_Content")


class _StoppedEarly(BaseModel):
    """After how many epochs of how many `threefold finish` finished a training, and how that had ended."""

    epochs: Annotated[int, Field(ge=1)]
    of: Annotated[int, Field(ge=1)]
    state: str

    model_config = ConfigDict(strict=True)


class _Status(BaseModel):
    """What later verbs trust of status.json; other fields are told and not computed with."""

    state: State
    epoch: Annotated[int, Field(ge=0)] | None = None
    epochs: Annotated[int, Field(ge=0)] | None = None
    metric: str | None = None
    best_epoch: Annotated[int, Field(ge=1)] | None = None
    best_value: float | None = None
    threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]] = {}
    message: str = ""
    stopped_early: _StoppedEarly | None = None

    model_config = ConfigDict(strict=True)


class _TrainedOn(BaseModel):
    """What later verbs trust of cohort.json; its `spec` is read as the meaning of a cohort is."""

    name: str
    fingerprint: str
    folder: str
    spec: dict[str, Any] = Field(default_factory=dict)

    model_config = ConfigDict(strict=True)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files; creating or checking them is the caller's explicit act."""

    path: Path

    @property
    def experiment(self) -> Path:
        """The experiment as run (YAML)."""
        return self.path / "experiment.yaml"

    @property
    def cohort(self) -> Path:
        """Name, fingerprint and meaning of the cohort (JSON)."""
        return self.path / "cohort.json"

    @property
    def trained_on(self) -> Path:
        """What the training images stated and held (JSON); runs of earlier versions have none."""
        return self.path / "trained_on.json"

    @property
    def split(self) -> Path:
        """Which case is in which part (CSV)."""
        return self.path / "split.csv"

    @property
    def environment(self) -> Path:
        """Versions, machine and command (JSON)."""
        return self.path / "environment.json"

    @property
    def status(self) -> Path:
        """State of the run (JSON)."""
        return self.path / "status.json"

    @property
    def settings(self) -> Path:
        """Checksums of what a finished run's predictions rest on (`runs.finished`)."""
        return self.path / "settings.sha256"

    @property
    def engines(self) -> Path:
        """The network for other engines, a folder for each (`interchange.exports`)."""
        return self.path / "engines"

    @property
    def results(self) -> Path:
        """Every number, table and picture that was made of the predictions (JSON)."""
        return self.path / RESULTS_NAME

    @property
    def metrics(self) -> Path:
        """Losses, metrics and times per epoch (CSV)."""
        return self.path / "metrics.csv"

    @property
    def last_checkpoint(self) -> Path:
        """Everything that `--resume` needs."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The epoch with the best validation metric."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def weights(self) -> Path:
        """The weights that it predicts with (safetensors)."""
        return self.path / "weights.safetensors"

    def other_weights(self, epoch: Epoch) -> Path:
        """The weights of the best or the last epoch (safetensors), where it predicts with the other's."""
        return self.path / f"weights-{epoch}.safetensors"

    @property
    def calibration(self) -> Path:
        """What the validation cases say of its predictions (JSON); runs of earlier versions have none."""
        return self.path / "calibration.json"

    @property
    def features(self) -> Path:
        """The encoder's features of training cases (safetensors); absent where the network gives none."""
        return self.path / "features.safetensors"

    @property
    def predictions(self) -> Path:
        """One row a case."""
        return self.path / "predictions.csv"

    @property
    def structures(self) -> Path:
        """One row a case and structure: overlap, distances, topology."""
        return self.path / "structures.csv"

    @property
    def failed(self) -> Path:
        """Validation and test cases that could not be predicted, and why."""
        return self.path / "failed.csv"

    @property
    def evidence(self) -> Path:
        """One row a test case: attention and counterfactuals."""
        return self.path / "evidence.csv"

    @property
    def masks(self) -> Path:
        """Predicted masks of the test cases."""
        return self.path / "masks"

    @property
    def tables(self) -> Path:
        """Tables made by evaluation."""
        return self.path / "tables"

    @property
    def figures(self) -> Path:
        """Figures made by evaluation."""
        return self.path / "figures"

    @property
    def card(self) -> Path:
        """What the model is for, how good it is, what to be warned of (Markdown); most runs have none."""
        return self.path / "card.md"

    def read_status(self) -> dict[str, Any]:
        """Return status.json.

        Raises:
            RunError: if the folder is not a run, or a field is not what it can be.
        """
        if not self.status.is_file() and (self.path / ENSEMBLE_NAME).is_file():
            raise RunError(
                f"{self.path}: is an ensemble, which `predict`, `evaluate` and `report` take; this asks for "
                f"a single run. Name one of its members ({ENSEMBLE_NAME} lists them)."
            )
        if not self.status.is_file():
            raise RunError(
                f"{self.path}: not a run folder (no {self.status.name}). Expected a folder that "
                f"`threefold train ... --out RUN` left.{runs_below(self.path)}"
            )
        content = read_json(self.status, RunError, COPY_AGAIN)
        parse_spec(_Status, content, where=str(self.status), error=RunError, remedy=COPY_AGAIN)
        return content

    def read_cohort(self) -> dict[str, Any]:
        """Return cohort.json: name, fingerprint and folder of the cohort, and its meaning as plain data.

        Raises:
            RunError: it is not there, or a field is not what it can be.
        """
        content = read_json(self.cohort, RunError, COPY_AGAIN)
        parse_spec(_TrainedOn, content, where=str(self.cohort), error=RunError, remedy=COPY_AGAIN)
        return content

    def write_status(self, **fields: Any) -> None:
        """Replace status.json in one step."""
        write_atomically(self.status, status_text(**fields))


def status_text(**fields: Any) -> str:
    """Return what status.json says."""
    return json.dumps(fields, indent=2) + "\n"


def write_atomically(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Write `content`, a whole or piece by piece, beside `path`, flush it to disk, rename it into place.

    A reader sees the old file or the new one, never a part. What processes that were killed left half-written
    in that folder is removed. A name that is no UTF-8 is written with a backslash for each byte that is none.

    Raises:
        RunError: the disk refuses; the file that was there is untouched.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    remove_abandoned(path.parent)
    beside = partial_of(path)
    try:
        _store(beside, data)
        put_in_place(beside, path)
    except OSError as error:
        raise RunError(
            f"{path}: could not be written ({error.strerror or error}). The previous file, if there was "
            "one, is untouched. Free space or fix the permission, then repeat the command (a training with "
            "--resume)."
        ) from error
    finally:
        with suppress(OSError):  # the folder itself may be what is missing
            beside.unlink(missing_ok=True)


def write_new(path: Path, content: str | bytes) -> None:
    """Write a file of a folder that is not in place yet (`whole_folder`).

    Raises:
        OSError: the disk refuses, which `whole_folder` explains.
    """
    _store(path, content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def copy_new(source: Path, target: Path) -> None:
    """Copy a file into a folder that is not in place yet (`whole_folder`).

    Raises:
        OSError: the disk refuses, which `whole_folder` explains.
    """
    _copy(source, target)


def append(path: Path, line: bytes) -> None:
    """Write at the end of a file whose reader leaves out a last line that is not whole.

    Raises:
        OSError: the disk refuses, and a part of the line may be there.
    """
    _append(path, line)


def put_in_place(source: Path, target: Path) -> None:
    """Rename a file or folder that is whole, and flush the folder that it is in.

    Raises:
        OSError: the disk refuses.
    """
    _rename(source, target)
    with suppress(OSError):  # not every system can flush a folder; the name is then as durable as it can be
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# Every byte that the program leaves, but for logs, goes through these four; tests let each fail, one call at
# a time.
def _store(path: Path, data: bytes | Iterable[bytes]) -> None:
    with path.open("wb") as stream:
        stream.writelines([data] if isinstance(data, bytes) else data)
        stream.flush()
        os.fsync(stream.fileno())


def _append(path: Path, line: bytes) -> None:
    with path.open("ab", buffering=0) as stream:
        if stream.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _copy(source: Path, target: Path) -> None:
    shutil.copy2(source, target)


def _rename(source: Path, target: Path) -> None:
    source.replace(target)


def or_removed(
    folder: Path, suffix: str, content: Mapping[str, _Content | None]
) -> Iterator[tuple[Path, _Content]]:
    """Yield the file of each content that is there; remove the earlier file of one that isn't.

    So what a command leaves is of its last call alone.

    Args:
        folder: where the files are.
        suffix: of their names.
        content: by name without suffix; None: there is none this time.
    """
    for name, value in content.items():
        path = folder / f"{name}{suffix}"
        if value is not None:
            yield path, value
        else:
            path.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, error: type[ThreefoldError]) -> Iterator[Path]:
    """Make a folder that appears under its name when it is whole, or not at all.

    Args:
        path: does not exist, or is an empty folder.
        error: what to raise.

    Yields:
        A folder beside it, to be filled; renamed at the end, removed where anything fails.

    Raises:
        error: there is something at `path`, it is the current folder, or the disk refuses.
    """
    refuse_current_folder(path, error)
    remove_abandoned(path.parent, path.name)
    beside = partial_of(path)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise error(
                f"{path}: exists and is not empty. Nothing was overwritten: name a new or empty folder, or "
                "remove it."
            )
        beside.mkdir(parents=True)
        yield beside
        put_in_place(beside, path)
    except OSError as problem:
        raise error(
            f"{path}: can't be made ({problem.strerror or problem}); nothing was left there. Free space, "
            "fix the permission or name another folder."
        ) from problem
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def runs_below(folder: Path) -> str:
    """Return ' Runs below it: ...', the first few and how many more; empty where there are none.

    Args:
        folder: of runs, of runs by name, or of a study.
    """
    depths = ("*", "*/*", "*/*/*/*")  # a study's are runs/COHORT/VARIANT/SPLIT
    below = sorted({path.parent for depth in depths for path in folder.glob(f"{depth}/status.json")})
    if not below:
        return ""
    return f" Runs below it: {some([*map(str, below)], _NAMED)}."


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there yet.

    Raises:
        RunError: there is a file, or the disk refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{path}: the folder can't be made ({error.strerror or error}). Choose another --out, or fix the "
            "permission of the folder above it."
        ) from error


def refuse_current_folder(path: Path, error: type[ThreefoldError]) -> None:
    """Refuse to make the folder that the program runs in: a folder is made by renaming one into place.

    Raises:
        error: saying what to do.
    """
    if path.resolve() == Path.cwd().resolve():
        raise error(f"{path}: is the current folder. Name a folder to be made.")
