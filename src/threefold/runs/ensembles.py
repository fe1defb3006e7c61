"""The folder of an ensemble: the runs that predict together, named by path and checksum.

ENSEMBLE/
  ensemble.json        the members, in order, each with its folder and the checksum of what it predicts with
  evaluations/COHORT   what `evaluate --cohort` made, as in a run
  report.html          what `report` made of all this

A member whose folder lies beside the ensemble's, or in it, is named by its path from there, so that both can
be moved together; any other by its full path. The members stay what they are, runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from threefold import __version__
from threefold.checksums import seal_object, verify_object
from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.splits import read_split
from threefold.cohorts.trained_on import trained_on_together
from threefold.core.targets import ClassTarget, MultilabelTarget, NumberTarget
from threefold.errors import CohortError, RunError, UsageError
from threefold.inference.ensemble import Ensemble, Member
from threefold.inference.predictor import Predictor, weights_of
from threefold.interchange.engines import Engine
from threefold.interchange.exports import with_engine
from threefold.models.store import name_of, run_path
from threefold.run import ENSEMBLE_NAME, Epoch, RunFolder, whole_folder, write_atomically, write_new
from threefold.runs.evaluate import cohort_of_run
from threefold.runs.finished import identity_of
from threefold.tasks.questions import Question
from threefold.validation import parse_spec, read_json

_COMPARED = 4
_AGAIN = "Make the ensemble again: `threefold ensemble RUN RUN ... --out ENSEMBLE`."


class _Member(BaseModel):
    """A member as ensemble.json names it."""

    path: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Content(BaseModel):
    version: Literal[1]
    members: Annotated[list[_Member], Field(min_length=2)]

    model_config = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class EnsembleFolder:
    """The folder of an ensemble."""

    path: Path

    @property
    def file(self) -> Path:
        """The members (JSON)."""
        return self.path / ENSEMBLE_NAME

    @property
    def exists(self) -> bool:
        """Whether there is an ensemble."""
        return self.file.is_file()

    def members(self) -> tuple[RunFolder, ...]:
        """Return the runs, each verified to be the one that the ensemble was made of.

        Raises:
            RunError: ensemble.json is damaged, or a member is gone or another run now.
        """
        content = verify_object(read_json(self.file, RunError, _AGAIN), self.file, RunError, _AGAIN)
        known = parse_spec(_Content, content, where=str(self.file), error=RunError, remedy=_AGAIN)
        runs = []
        for member in known.members:
            run = RunFolder(Path(os.path.normpath(self.path.resolve() / member.path)))
            if not run.status.is_file():
                raise RunError(
                    f"{self.file}: its member {member.path} is not a run any more: expected one in "
                    f"{run.path}. Put it back there. {_AGAIN}"
                )
            found = _identity(run)
            if found != member.sha256:
                raise RunError(
                    f"{run.path}: is not the run that {self.file} was made of: expected SHA-256 "
                    f"{member.sha256}, found {found}. Put that run back. {_AGAIN}"
                )
            runs.append(run)
        return tuple(runs)


def member_runs(folder: Path) -> tuple[RunFolder, ...]:
    """Return the members of an ensemble, or a run alone.

    Raises:
        RunError: as `EnsembleFolder.members`.
    """
    ensemble = EnsembleFolder(folder)
    return ensemble.members() if ensemble.exists else (RunFolder(folder),)


def make_ensemble(runs: Sequence[Path], out: Path) -> EnsembleFolder:
    """Make an ensemble of finished runs that were trained for the same targets.

    Where `out` is an ensemble of just these runs already, nothing is done.

    Args:
        runs: two or more; an ensemble among them stands for its members.
        out: the new folder.

    Raises:
        UsageError: fewer than two different runs.
        RunError: a run has not finished or is damaged, two differ in what they were trained for, or the
            folder holds something else or can't be made.
    """
    members = [member for run in runs for member in member_runs(run)]
    identities = [_identity(member) for member in members if member.read_status()]
    repeated = next((n for n, one in enumerate(identities) if one in identities[:n]), None)
    if repeated is not None:
        raise UsageError(
            f"{members[repeated].path}: is named twice, or is a copy of another member. Leave it out."
        )
    if len(members) < 2:
        raise UsageError("an ensemble needs at least two runs. Name further ones.")
    _members(members, device="cpu", weights=None, flips=False)
    text = _content(members, identities, out)
    ensemble = EnsembleFolder(out)
    if ensemble.exists and ensemble.file.read_text(encoding="utf-8") == text:
        return ensemble
    with whole_folder(out, RunError) as beside:
        write_new(EnsembleFolder(beside).file, text)
    return ensemble


def write_members(members: Sequence[RunFolder], ensemble: EnsembleFolder) -> None:
    """Write ensemble.json into a folder that is there.

    Raises:
        RunError: as `make_ensemble`.
    """
    _members(members, device="cpu", weights=None, flips=False)
    text = _content(members, [_identity(member) for member in members], ensemble.path)
    write_atomically(ensemble.file, text)


def load_predictor(
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    weights: Epoch | None = None,
    flips: bool = False,
    maps: bool = False,
    engine: Engine | None = None,
) -> Predictor:
    """Return what predicts with a run or an ensemble.

    An ensemble decides by the mean of its members' thresholds, and holds images against what its members were
    trained on, taken together.

    Args:
        folder: of a run or an ensemble, or the name of a model that the package ships.
        device: for example cpu, cuda, cuda:1.
        weights: of the best or the last epoch; None: as each experiment says.
        flips: predict mirror images too, along the axes that the recipe's augmentation mirrors, and average.
        maps: return how far the members are apart at each voxel.
        engine: what computes a run's network in place of PyTorch.

    Raises:
        RunError, WeightsError: as `Predictor.from_run` and `EnsembleFolder.members`; or two members differ in
            what they were trained for; or the engine does not answer as PyTorch does.
        UsageError: there is no such device; or `flips`, and no recipe mirrors; or `maps` of a single run; or
            `engine` of several passes or on another device than the CPU.
    """
    path = run_path(folder)
    ensemble = EnsembleFolder(path)
    if not ensemble.exists and maps:
        raise UsageError(f"{path}: is one run, which has no members to be apart. Name an ensemble.")
    if engine is not None:
        if ensemble.exists or flips or device != "cpu":
            raise UsageError(
                "--engine computes one run on the CPU: not an ensemble, mirror images or another device. "
                "Leave it out."
            )
        alone = Predictor.from_run(path, weights=weights)
        return with_engine(alone, RunFolder(path), engine, comparison_cases(RunFolder(path)))
    if not ensemble.exists and not flips:
        return Predictor.from_run(path, device=device, weights=weights)
    members = _members(member_runs(path), device=device, weights=weights, flips=flips)
    if flips and all(len(member.mirrored) == 1 for member in members):
        raise UsageError(
            f"{path}: was trained without mirror images (data.augmentation.flip is 0), so it is not asked "
            "about them. Leave --flips out."
        )
    first = members[0].about
    return replace(
        first,
        network=Ensemble(members, maps=maps),
        calibration=None,  # the first member's is of its own predictions
        training=None,
        version=_version(members) + ("+flips" if flips else ""),
        run=name_of(path),
        seen=trained_on_together([member.about.seen for member in members]),
        threshold=_mean([member.about.threshold for member in members]),
        thresholds={
            name: fmean(member.about.thresholds[name] for member in members) for name in first.thresholds
        },
    )


def comparison_cases(run: RunFolder) -> tuple[Case, ...]:
    """Return a few test cases of the cohort that a run was trained on; none where that is not there any more.

    Raises:
        RunError: not a run.
    """
    try:
        cohort = cohort_of_run(run)
    except CohortError:
        return ()
    return read_split(run.split).cases(cohort, "test")[:_COMPARED]


def _members(runs: Sequence[RunFolder], *, device: str, weights: Epoch | None, flips: bool) -> list[Member]:
    """Return the members, each loaded once and let go, all trained for the same."""
    found: list[Member] = []
    for run in runs:
        loaded = Predictor.from_run(run.path, device=device, weights=weights)
        member = Member.of(run.path.name, loaded, str(run.path), weights, flips=flips)
        del loaded  # one network's weights at a time
        if found:
            _require_alike(found[0], member)
        found.append(member)
    return found


def _require_alike(first: Member, other: Member) -> None:
    """Refuse members that were trained for different things.

    Raises:
        RunError: naming both, what differs, and how.
    """
    one, two = _trained_for(first.about), _trained_for(other.about)
    for what in dict.fromkeys((*one, *two)):
        if one.get(what) != two.get(what):
            raise RunError(
                f"{other.folder}: {what} is {_told(two.get(what))}, but that of {first.folder} is "
                f"{_told(one.get(what))}. The members of an ensemble are runs of the same targets, classes "
                "and units: leave one of the two out."
            )


def _trained_for(about: Predictor) -> dict[str, Any]:
    """Return what has to be the same of all members, by what it is called in messages."""
    spec = about.cohort
    shared: dict[str, Any] = {
        "the number of axes": spec.dimensions,
        "the modality": spec.modality,
        "the intensity unit": spec.intensity.unit,
        "the list of channels": tuple(spec.channels),
    }
    for question in about.questions:
        if question.kind != "image":
            shared[f"the target of task {question.head}"] = _asked(question, spec)
    return shared


def _asked(question: Question, spec: CohortSpec) -> str:
    """Return what a question asks, in words; values of a mask's voxels do not matter, its meaning does."""
    known = None if question.target is None else spec.all_targets.get(question.target)
    said = ""
    if isinstance(known, ClassTarget | MultilabelTarget):
        said = ", ".join(known.classes)
    elif isinstance(known, NumberTarget):
        said = known.unit
    elif question.kind == "labels":
        said = ", ".join(question.names)
    if question.positive_class is not None:
        said += f"; positive {question.classes[question.positive_class]}"
    return f"{question.target}{f' ({said})' if said else ''}"


def _told(value: Any) -> str:
    return "none" if value in (None, ()) else str(value)


def _mean(thresholds: Sequence[float | None]) -> float | None:
    known = [one for one in thresholds if one is not None]
    return fmean(known) if known else None


def _version(members: Sequence[Member]) -> str:
    versions = "\n".join(member.about.version for member in members)
    return f"{__version__}+{hashlib.sha256(versions.encode()).hexdigest()[:12]}"


def _content(members: Sequence[RunFolder], identities: Sequence[str], out: Path) -> str:
    """Return what ensemble.json says."""
    named = [
        {"path": _path_from(out, member.path), "sha256": identity}
        for member, identity in zip(members, identities, strict=True)
    ]
    content: Mapping[str, Any] = seal_object({"version": 1, "members": named})
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _path_from(out: Path, member: Path) -> str:
    """Return a member's path from the ensemble where it lies beside or in it, else the full one."""
    here, there = out.resolve(), member.resolve()
    if there.is_relative_to(here.parent):
        return Path(os.path.relpath(there, here)).as_posix()
    return there.as_posix()


def _identity(run: RunFolder) -> str:
    """Return the checksum of what a run predicts with (`identity_of`).

    Of a run without settings.sha256, as of earlier versions, it is that of its weights.
    """
    known = identity_of(run)
    if known is not None:
        return known
    file = weights_of(run, None)
    if not file.is_file():
        state = run.read_status()["state"]
        raise RunError(
            f"{run.path}: has no {file.name} yet (state: {state}). Let its training finish: `threefold train "
            "... --resume`."
        )
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
