"""A cohort folder in the making: it appears under its name when it is whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import (
    SHORT_KINDS,
    SPEC_NAME,
    Case,
    Cohort,
    CohortSpec,
    read_cohort,
    write_cohort,
)
from threefold.cohorts.failures import Failures, listed, sparing_others
from threefold.cohorts.table import case_id_problems
from threefold.core.targets import DENSE, ClassTarget, MultilabelTarget, TargetValue
from threefold.errors import CohortError, ImageError
from threefold.file_names import case_stem, folded
from threefold.images.reading import read_header
from threefold.paths import Boundary
from threefold.run import copy_new, whole_folder, write_atomically

PROVENANCE_NAME = "provenance.json"
FOLDERS = {"image": "images", "mask": "masks", "structures": "structures", "reference": "reference"}


def file_columns(spec: CohortSpec) -> tuple[str, ...]:
    """Return the columns of cases.csv that hold paths."""
    further = [name for name, target in spec.targets.items() if target.kind in DENSE]
    known = [name for name in FOLDERS if name != "image"]
    return tuple(dict.fromkeys((*spec.image_columns, *known, *further)))


@dataclass
class Staging:
    """A folder beside the one to be made.

    Attributes:
        folder: where files are written for now.
        out: the name that the folder gets at the end.
        home: the folder that the sources are to lie in; None: anywhere.
        linked: names of folders in `home` that may be links to another disk.
        failed: why a case could not be made, by its id; it is left out.
    """

    folder: Path
    out: Path
    home: Path | None = None
    linked: tuple[str, ...] = ()
    failed: Failures = field(default_factory=dict)
    _placed: dict[Path, Path] = field(default_factory=dict)
    _owners: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _boundary(self) -> Boundary | None:
        return None if self.home is None else Boundary(self.home, linked=self.linked)

    @contextmanager
    def sparing(self, case_id: str) -> Iterator[None]:
        """Make one case in this context: where it can't be made, it is left out and the others go on."""
        before = len(self._placed)
        with sparing_others(self.failed, case_id):
            yield
        if case_id in self.failed:
            for source in list(self._placed)[before:]:
                target = self._placed.pop(source)
                self._owners.pop(folded(str(target)), None)
                self._remove(target)

    def place(self, source: Path, column: str, case_id: str, *, copy: bool) -> Path:
        """Bring a file or a folder (a DICOM series) into the cohort.

        Args:
            source: the file; one that was placed before keeps its first name.
            column: one of `file_columns`.
            case_id: names the copy.
            copy: whether to copy; else the cohort refers to the source where it is.

        Returns:
            What the table says: the path relative to the cohort's folder.

        Raises:
            ImageError: the source does not exist, lies outside of `home` or can't be copied; as `new_file`.
            CohortError: the case can't name a file.
        """
        check_case_id(case_id)
        source = Path(os.path.normpath(source.absolute()))
        if source in self._placed:
            return self._placed[source]
        _require_regular(source)
        self.require_inside(source)
        target = Path(os.path.relpath(source, self.out.absolute()))
        if copy:
            target = self._target(column, case_id, ending(source))
            self._copy(source, target)
        self._placed[source] = target
        return target

    def new_file(self, column: str, case_id: str, suffix: str) -> Path:
        """Return where a file that is made of a case is to be written; where the case fails, it is removed.

        Args:
            column: one of `file_columns`.
            case_id: names the file.
            suffix: its ending, for example .nii.gz.

        Returns:
            The path relative to the cohort's folder, as the table says it; the folder of the file is there.

        Raises:
            ImageError: on Windows and macOS the file would be another case's: their ids differ in case alone.
            CohortError: the case can't name a file.
        """
        check_case_id(case_id)
        target = self._target(column, case_id, suffix)
        (self.folder / target).parent.mkdir(parents=True, exist_ok=True)
        self._placed[self.folder / target] = target
        return target

    def _target(self, column: str, case_id: str, suffix: str) -> Path:
        target = Path(FOLDERS.get(column, f"files-{column}")) / f"{case_stem(case_id)}{suffix}"
        owner = self._owners.setdefault(folded(str(target)), case_id)
        if owner != case_id:
            raise ImageError(
                f"'{case_id}' and '{owner}' differ in case alone, or in how an accent is stored: Windows and "
                "macOS take their files for one. Rename one of them."
            )
        return target

    def require_inside(self, source: Path) -> None:
        """Refuse a file that a table names and that lies outside of `home`.

        Raises:
            ImageError: naming it.
        """
        how = None if self._boundary is None else self._boundary.leaves(source)
        if how is not None:
            raise ImageError(
                f"{how} {self.home}. Copy the file there, or allow it where the command lets you "
                "(--allow-outside)."
            )

    def place_atlases(self, spec: CohortSpec, folder: Path, *, copy: bool) -> CohortSpec:
        """Bring the files of a description's atlases into the cohort.

        Args:
            spec: what is to become cohort.yaml.
            folder: that its atlases' paths are relative to.
            copy: whether to copy; else the cohort refers to the files where they are.

        Returns:
            The description with the new paths.

        Raises:
            CohortError: naming the atlas, if a file does not exist or can't be copied.
        """
        moved = []
        for number, atlas in enumerate(spec.atlases):
            paths = {}
            file_name = f"atlas-{number}" if case_id_problems(atlas.name) else atlas.name
            for key in ("image", "structures"):
                source = Path(os.path.normpath((folder / getattr(atlas, key)).absolute()))
                try:
                    _require_regular(source)
                    self.require_inside(source)
                except ImageError as error:
                    raise CohortError(f"{SPEC_NAME}: atlas '{atlas.name}', {key}: {error}") from error
                target = Path(os.path.relpath(source, self.out.absolute()))
                if copy:
                    target = Path("atlases") / f"{file_name}-{key}{ending(source)}"
                    try:
                        self._copy(source, target)
                    except ImageError as error:
                        raise CohortError(f"{SPEC_NAME}: atlas '{atlas.name}', {key}: {error}") from error
                paths[key] = target.as_posix()
            moved.append(atlas.model_copy(update=paths))
        return spec.model_copy(update={"atlases": tuple(moved)})

    def _copy(self, source: Path, target: Path) -> None:
        into = self.folder / target
        try:
            into.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                _copy_series(source, into)
            else:
                copy_new(source, into)
        except (OSError, shutil.Error) as error:
            self._remove(target)
            raise ImageError(f"{source}: can't be copied to {self.out / target} ({error}).") from error

    def _remove(self, target: Path) -> None:
        """Remove what was copied of a case that failed; what is only referred to stays."""
        copied = self.folder / target
        if target.parts[:1] == ("..",) or target.is_absolute():
            return
        if copied.is_dir():
            shutil.rmtree(copied, ignore_errors=True)
        else:
            copied.unlink(missing_ok=True)

    def finish(
        self,
        spec: CohortSpec,
        rows: Iterable[Mapping[str, Any]],
        provenance: Mapping[str, Any],
        *,
        allow_outside: bool,
    ) -> None:
        """Write cohort.yaml, cases.csv and provenance.json (where the cases come from, what was assumed).

        Raises:
            CohortError: no case could be made, or the rows do not make a valid table.
        """
        rows = list(rows)
        if self.failed and not rows:
            raise CohortError(f"{self.out}: no case could be made.\n  " + "\n  ".join(listed(self.failed)))
        write_cohort(self.folder, spec, rows, allow_outside=allow_outside)
        if self.failed:
            provenance = {**provenance, "failed": self.failed}
        write_atomically(self.folder / PROVENANCE_NAME, json.dumps(provenance, indent=2) + "\n")


def _require_regular(source: Path) -> None:
    """Refuse what is no file and no folder; opening a FIFO, for example, would wait for ever."""
    try:
        mode = source.stat().st_mode
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        what = "no such file" if missing else f"can't be read ({error.strerror})"
        raise ImageError(f"{source}: {what}. Correct the path.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ImageError(f"{source}: is neither a file nor a folder. Correct the path.")


def _copy_series(source: Path, target: Path) -> None:
    """Copy the files of a DICOM series: those in the folder itself."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file():
            copy_new(path, target / path.name)


def check_case_id(case_id: str) -> None:
    """Raise a CohortError unless the case's name can name a file."""
    problems = case_id_problems(case_id)
    if problems:
        raise CohortError(f"{problems[0]}.")


@contextmanager
def staging(out: Path, home: Path | None = None, linked: tuple[str, ...] = ()) -> Iterator[Staging]:
    """Make a cohort folder: renamed to `out` at the end, removed where anything but a case fails.

    Args:
        out: the new folder.
        home: the folder that files are taken from; None: from anywhere.
        linked: names of folders in it that may be links to another disk.

    Raises:
        CohortError: if `out` exists and is not an empty folder, is the current folder, or can't be made.
    """
    out = Path(out)
    with whole_folder(out, CohortError) as folder:
        yield Staging(folder, out, home, linked)


def finished(out: Path, *, allow_outside: bool) -> Cohort:
    """Read the cohort that was just made."""
    return read_cohort(Path(out), allow_outside=allow_outside)


def row_of(case: Case, spec: CohortSpec) -> dict[str, Any]:
    """Return a case as a row of a table; paths are absolute."""
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "site": case.site,
        **({spec.channels[name]: path for name, path in case.channels.items()} or {"image": case.image}),
        "split": case.split,
        "slice": case.slice_index,
        **dict.fromkeys(SHORT_KINDS),
        "reference": case.reference,
        **{
            column: value for name, told in case.targets.items() for column, value in _cells(name, told, spec)
        },
        **case.extra,
    }


def _cells(name: str, value: TargetValue, spec: CohortSpec) -> Iterator[tuple[str, Any]]:
    """Yield column and cell of what is known of a target."""
    target = spec.all_targets[name]
    if isinstance(target, ClassTarget):
        yield name, target.classes[value]
    elif isinstance(target, MultilabelTarget):
        for finding, there in zip(target.classes, value, strict=True):
            yield target.column(name, finding), None if there is None else int(there)
    else:
        yield name, value


def axes_of(images: Iterable[Path]) -> int:
    """Return the number of axes of the first image whose header can be read.

    Raises:
        ImageError: none can be; why the first one can't.
    """
    first: ImageError | None = None
    for path in images:
        try:
            return len(read_header(path).shape)
        except ImageError as error:
            first = first or error
    raise first or ImageError("no image. Expected one at least.")


def ending(path: Path) -> str:
    """Return a file's ending, .nii.gz in one piece; empty for a folder."""
    if path.is_dir():
        return ""
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()
