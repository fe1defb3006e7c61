"""The unfinished propagation beside the cohort to be: steps that are in it need not be done again.

.OUT.unfinished/
  progress/KEY.json         what a step gave, and what decided it
  progress/KEY.nii.gz       a registration's label map
  progress/KEY.ckpt         the state of a network's training
  progress/KEY.safetensors  a trained network

A KEY is a hash of everything that decides a step (`threefold.atlases.steps`), so nothing stale is ever found,
and what is the same is found after any change of the cohort. The finished cohort keeps the steps in
steps.json, for the propagation of the same cohort once it has changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from threefold.atlases.steps import Step
from threefold.cohorts.cohort import SPEC_NAME, TABLE_NAME
from threefold.cohorts.failures import lacked_memory
from threefold.cohorts.staging import FOLDERS, PROVENANCE_NAME
from threefold.errors import CohortError
from threefold.file_names import case_stem
from threefold.locks import LOCK_NAME, alone_in
from threefold.paths import open_file
from threefold.run import copy_new, put_in_place, refuse_current_folder, write_atomically

STEPS_NAME = "steps.json"
WEIGHTS_NAME = "registration/weights.safetensors"
TRANSFORMS = "transforms"
"""Folder of the registrations' affine maps and fields."""
UNUSED = "not-used"
"""Folder of the labels of registrations that failed."""
MADE_BY = "threefold propagate"


@dataclass(frozen=True)
class Record:
    """A step that was done.

    Attributes:
        kind, of, parts: of the step.
        values: what it gave, JSON values.
    """

    kind: str
    of: str
    parts: Mapping[str, Any]
    values: Mapping[str, Any]


@dataclass
class Workplace:
    """A hidden folder beside OUT that is renamed to OUT at the end.

    Attributes:
        folder: the hidden folder.
        out: the cohort's folder to be.
        known: the steps done before, by key.
    """

    folder: Path
    out: Path
    known: dict[str, Record] = field(default_factory=dict)

    def remember(self, step: Step, values: Mapping[str, Any]) -> None:
        """Keep what a step gave."""
        record = Record(step.kind, step.of, step.parts, values)
        write_atomically(self.file(step, ".json"), json.dumps(_sealed(record)) + "\n")
        self.known[step.key] = record

    def recall(self, step: Step) -> Mapping[str, Any] | None:
        """Return what a step gave; None if it was not done."""
        record = self.known.get(step.key)
        return None if record is None else record.values

    def file(self, step: Step, ending: str) -> Path:
        """Return where a step's file lies."""
        return self.folder / "progress" / f"{step.key[:32]}{ending}"

    def has_transforms(self, step: Step) -> bool:
        """Whether the displacement fields that a registration left are there, as they were written."""
        kept = (self.recall(step) or {}).get("transforms", [])
        return all(
            is_whole(self.file(step, f".{number}.nii.gz"), one, "sha256") for number, one in enumerate(kept)
        )

    def write_steps(self, steps: Mapping[str, Step]) -> None:
        """Keep the steps that the finished cohort was made of, for the time when its source has changed.

        Args:
            steps: by key.
        """
        content = {
            "tables": _tables(self.folder),
            "steps": [
                _sealed(replace(self.known[key], of=step.of))
                for key, step in steps.items()
                if key in self.known
            ],
        }
        write_atomically(self.folder / STEPS_NAME, json.dumps(content) + "\n")

    def become_the_cohort(self) -> None:
        """Rename the folder to OUT, in place of an earlier propagation, and remove what only going on needs.

        Raises:
            CohortError: the disk refuses.
        """
        earlier = _earlier(self.out)
        try:
            if self.out.is_dir() and any(self.out.iterdir()):
                put_in_place(self.out, earlier)
            put_in_place(self.folder, self.out)
        except OSError as error:
            raise CohortError(
                f"{self.out}: can't be made ({error}); the work is in {self.folder}. Repeat the command."
            ) from error
        shutil.rmtree(self.out / "progress", ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


def is_finished(out: Path, identity: str, settings: str, *, renew: bool) -> bool:
    """Whether OUT is that propagation, finished.

    False where there is nothing yet or other cases' results, and where cases are left out for want of memory,
    which may suffice now.

    Args:
        out: the cohort's folder to be.
        identity: a hash of everything that decides it.
        settings: a hash of what decides it beside its cohort.
        renew: take for unfinished what was made with the same settings, of the cohort before it changed, and
            is as it was made.

    Raises:
        CohortError: OUT is something else, or the current folder.
    """
    refuse_current_folder(out, CohortError)
    _restore(out)
    if not (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        return False
    note = _read(out / PROVENANCE_NAME)
    if note.get("identity") == identity:
        return not (renew and _lacked_memory(note) and _touched(out) is None)
    if note.get("made_by") != MADE_BY or note.get("settings") != settings:
        raise CohortError(
            f"{out}: exists already, and by its {PROVENANCE_NAME} is not this propagation: it was made with "
            "other settings, by an earlier version or by something else, or that file was damaged. Nothing "
            "was overwritten: name another folder."
        )
    if not renew:
        raise CohortError(
            f"{out}: was propagated from the cohort as it was before it changed, and runs were trained on "
            "it. Nothing was overwritten: name another folder."
        )
    touched = _touched(out)
    if touched is not None:
        raise CohortError(
            f"{out}: the cohort that it was propagated from has changed, and {touched} is not as it was "
            "written: someone changed it, or it was damaged. Nothing was overwritten: name another folder."
        )
    return False


@contextmanager
def open_workplace(out: Path) -> Iterator[Workplace]:
    """Make or find the workplace of a propagation, alone; what an earlier one left in OUT is taken over.

    Raises:
        CohortError: the disk refuses.
        RunError: another process is propagating into OUT.
    """
    folder = out.with_name(f".{out.name}.unfinished")
    try:
        (folder / "progress").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CohortError(f"{folder}: can't be made ({error}).") from error
    with alone_in(folder, f"{out}: another process is propagating into it. Wait for it, or stop it first."):
        place = Workplace(folder, out)
        _take_over(place)
        for path in sorted((folder / "progress").glob("*.json")):
            record = _checked(_read(path))
            if record is not None:
                place.known[_step(record).key] = record
        yield place
        (folder / LOCK_NAME).unlink(missing_ok=True)
        (out / LOCK_NAME).unlink(missing_ok=True)


def _take_over(place: Workplace) -> None:
    """Bring the steps of the finished cohort in OUT, with their files, into the workplace.

    Steps that are damaged or whose files are gone are done again.
    """
    for record in _kept(_read(place.out / STEPS_NAME)):
        if record is None:
            continue
        step = _step(record)
        note = place.file(step, ".json")
        try:
            if step.kind == "registration" and "labels_sha256" in record.values:
                copy_new(labels_of(place.out, step.of), place.file(step, ".nii.gz"))
                for number, one in enumerate(record.values.get("transforms", ())):
                    _, field_file = transform_files(place.out, step.of, one["atlas"])
                    copy_new(field_file, place.file(step, f".{number}.nii.gz"))
            if step.kind == "network" and "weights_sha256" in record.values:
                copy_new(place.out / WEIGHTS_NAME, place.file(step, ".safetensors"))
        except OSError:
            continue
        if not note.exists():
            place.remember(step, record.values)


def _touched(out: Path) -> str | None:
    """Return the file of a finished propagation that is not as it was made; None where all are."""
    content = _read(out / STEPS_NAME)
    tables = content.get("tables")
    if not isinstance(tables, dict):
        return STEPS_NAME
    for name, digest in _tables(out).items():
        if tables.get(name) != digest:
            return name
    for record in _kept(content):
        if record is None:
            return STEPS_NAME
        digest = record.values.get("labels_sha256")
        labels = labels_of(out, record.of)
        if digest is not None and digest != _sha256_of(labels):
            return labels.name
    return None


def transform_files(folder: Path, case_id: str, atlas: str) -> tuple[Path, Path]:
    """Return where a propagation has the affine map and the displacement field of a case and an atlas."""
    stem = folder / TRANSFORMS / case_stem(case_id) / case_stem(atlas)
    return stem.with_name(f"{stem.name}_affine.txt"), stem.with_name(f"{stem.name}_field.nii.gz")


def labels_of(out: Path, case_id: str) -> Path:
    """Return where a finished propagation has a case's labels."""
    name = f"{case_stem(case_id)}.nii.gz"
    unused = out / UNUSED / name
    return unused if unused.exists() else out / FOLDERS["structures"] / name


def _lacked_memory(note: Mapping[str, Any]) -> bool:
    """Whether a propagation left out cases for want of memory."""
    cases = note.get("cases")
    left_out = cases.get("left out") if isinstance(cases, dict) else None
    return isinstance(left_out, dict) and any(lacked_memory(str(reason)) for reason in left_out.values())


def _kept(content: Mapping[str, Any]) -> list[Record | None]:
    """Return the steps in what steps.json says, None for each that is damaged."""
    steps = content.get("steps")
    return [_checked(each) for each in steps] if isinstance(steps, list) else [None]


def _tables(folder: Path) -> dict[str, str | None]:
    return {name: _sha256_of(folder / name) for name in (SPEC_NAME, TABLE_NAME)}


def _earlier(out: Path) -> Path:
    return out.with_name(f".{out.name}.before")


def _restore(out: Path) -> None:
    """Put back the finished cohort where a process was killed between the two renamings of a renewal."""
    earlier = _earlier(out)
    if not earlier.is_dir():
        return
    if out.is_dir() and any(out.iterdir()):
        shutil.rmtree(earlier, ignore_errors=True)
    else:
        put_in_place(earlier, out)


def _sealed(record: Record) -> dict[str, Any]:
    """Return a step's record as it is written, with its checksum."""
    content = {"kind": record.kind, "of": record.of, "parts": record.parts, "values": record.values}
    return {"sha256": _sha256(json.dumps(content, sort_keys=True)), **content}


def _checked(content: Any) -> Record | None:
    """Return a step's record; None where it is damaged, and the step is to be done again."""
    content = dict(content) if isinstance(content, dict) else {}
    digest = content.pop("sha256", None)
    if digest != _sha256(json.dumps(content, sort_keys=True)):
        return None
    return Record(**content)


def _step(record: Record) -> Step:
    return Step(record.kind, record.of, record.parts)


def _read(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; nothing where there is none, or it is damaged."""
    try:
        with open_file(path) as stream:
            found = json.loads(stream.read())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file that is there."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_whole(path: Path, known: Mapping[str, Any] | None, digest: str) -> bool:
    """Whether a step was done, and the file that it left is there, as it was written.

    Args:
        path: the file.
        known: what the step gave; None: it was not done.
        digest: the name of the file's checksum in it.
    """
    return known is not None and path.is_file() and sha256_of_file(path) == known.get(digest)


def _sha256_of(path: Path) -> str | None:
    try:
        return sha256_of_file(path)
    except OSError:
        return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
