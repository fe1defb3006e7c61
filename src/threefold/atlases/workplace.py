"""The unfinished propagation beside the cohort to be: what is in it need not be done again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from threefold.cohorts.staging import PROVENANCE_NAME
from threefold.errors import CohortError, RunError
from threefold.run import refuse_current_folder, write_atomically


@dataclass(frozen=True)
class Workplace:
    """A hidden folder beside OUT that is renamed to OUT at the end.

    Attributes:
        folder: the hidden folder.
        out: the cohort's folder to be.
        identity: hash of what is propagated and how.
    """

    folder: Path
    out: Path
    identity: str

    @property
    def structures(self) -> Path:
        """Propagated label maps."""
        return self.folder / "structures"

    @property
    def weights(self) -> Path:
        """The registration network."""
        return self.folder / "registration" / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The state of the network's training; removed at the end."""
        return self.folder / "progress" / "last.ckpt"

    def remember(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep plain values under a name."""
        write_atomically(self._file(name), json.dumps(values) + "\n")

    def recall(self, name: str) -> dict[str, Any] | None:
        """Return what was kept under a name; None if nothing was."""
        path = self._file(name)
        try:
            return dict(json.loads(path.read_text())) if path.exists() else None
        except ValueError as error:
            raise CohortError(f"{path}: is damaged ({error}). Delete it and repeat the command.") from error

    def at(self, folder: Path) -> Workplace:
        """Return the same workplace in another folder."""
        return replace(self, folder=folder)

    def clear(self) -> None:
        """Remove what only going on needs, and the weights' folder where there are none."""
        shutil.rmtree(self.checkpoint.parent, ignore_errors=True)
        if not self.weights.exists():
            shutil.rmtree(self.weights.parent, ignore_errors=True)

    def _file(self, name: str) -> Path:
        # A hash, since atlas names may hold what file names may not.
        return self.folder / "progress" / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"


def is_finished(out: Path, identity: str) -> bool:
    """Whether OUT is that propagation, finished; false where there is nothing yet.

    Raises:
        CohortError: OUT is something else, or the current folder.
    """
    refuse_current_folder(out, CohortError)
    if not (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        return False
    if _identity_of(out / PROVENANCE_NAME) == identity:
        return True
    raise CohortError(
        f"{out}: exists already, and is not this propagation. Nothing was overwritten: name another folder."
    )


def open_workplace(out: Path, identity: str) -> Workplace:
    """Make or find the workplace of a propagation.

    Raises:
        CohortError: the unfinished propagation beside OUT is another one; the disk refuses.
    """
    place = Workplace(out.with_name(f".{out.name}.unfinished"), out, identity)
    note = place.folder / PROVENANCE_NAME
    try:
        for folder in (place.structures, place.weights.parent, place.checkpoint.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if not note.exists():
            write_atomically(note, json.dumps({"identity": identity}) + "\n")
    except (OSError, RunError) as error:
        raise CohortError(f"{place.folder}: can't be made ({error}).") from error
    if _identity_of(note) != identity:
        raise CohortError(
            f"{place.folder}: an unfinished propagation of other cases or with other settings. Repeat its "
            "own command to finish it, or delete that folder."
        )
    return place


def _identity_of(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text()).get("identity")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None
