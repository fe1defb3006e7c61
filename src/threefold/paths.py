"""Paths that texts name: whether they stay in a folder, and whether a name can be a part of a path."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from threefold.errors import RunError
from threefold.file_names import unportable


def open_file(path: Path) -> BufferedReader:
    """Open a file to read its bytes; to open a pipe would wait for a writer, to read a device never end.

    Raises:
        OSError: it is a pipe, a socket or a device, or the system refuses.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder the system says what it is
        raise OSError(errno.EINVAL, "a pipe, a socket or a device; expected a file", str(path))
    return path.open("rb")


PART_PATTERN = r"^[A-Za-z0-9](-?[A-Za-z0-9_.+=])*-?$"


def _held_anywhere(name: str) -> str:
    if (why := unportable(name)) is not None:
        raise ValueError(f"'{name}' can't name a file on Windows ({why}). Choose another")
    return name


PathPart = Annotated[str, Field(pattern=PART_PATTERN, max_length=80), AfterValidator(_held_anywhere)]
"""A name that is a part of a path on every system. Two dashes in a row part names in the names of logs."""


def is_path_part(name: str) -> bool:
    """Whether a name can be a part of a path anywhere: no separator, no dot in front, no space."""
    return re.fullmatch(PART_PATTERN.strip("^$"), name) is not None and unportable(name) is None


class Boundary:
    """A folder that paths are to stay in, by their text and by the links that they go through."""

    def __init__(self, folder: Path, name: str = "the folder", *, linked: Iterable[str] = ()) -> None:
        """Look at nothing yet but where the folder really is.

        Args:
            folder: it may itself be a link.
            name: what errors call it.
            linked: names of folders in it that may be links to elsewhere; what they lead to counts as inside.
        """
        self._name = name
        self._folder = Path(folder).absolute()
        real = _real(self._folder)
        self._inside = (real, *(_real(self._folder / each) for each in linked))
        self._real_of = {self._folder: real}

    def leaves(self, path: str | Path) -> str | None:
        """Say how a path leaves the folder; None where it stays in it.

        Of a folder (a DICOM series) the links among its files are followed too. What is not there stays in
        the folder as far as its text says.

        Args:
            path: absolute, or relative to the folder.
        """
        try:
            return self._leaves(path)
        except (OSError, ValueError):  # a name too long, a null character: no such path, which reading says
            return None

    def _leaves(self, path: str | Path) -> str | None:
        whole = Path(os.path.normpath(self._folder / path))
        if not whole.is_relative_to(os.path.normpath(self._folder)):
            return f"'{path}' leaves {self._name}"
        real = self._resolved(whole)
        if not self._holds(real):
            return f"'{path}' leaves {self._name} through a link, to {real}"
        if real.is_dir():
            with os.scandir(real) as entries:
                links = [Path(entry.path) for entry in entries if entry.is_symlink()]
            outside = [link.name for link in links if not self._holds(_real(link))]
            if outside:
                return f"'{path}' holds the link {min(outside)}, which leaves {self._name}"
        return None

    def _holds(self, real: Path) -> bool:
        return any(real.is_relative_to(folder) for folder in self._inside)

    def _resolved(self, whole: Path) -> Path:
        """As `Path.resolve`, asking where a folder above files is once."""
        above = whole.parent
        if above not in self._real_of:
            self._real_of[above] = _real(above)
        there = self._real_of[above] / whole.name
        return _real(there) if there.is_symlink() else there


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # `Path.resolve` fails at a loop of links


def refuse_links_out(folder: Path) -> None:
    """Refuse to write into a folder whose own folders are links to somewhere else.

    The folder itself may be one: that was named. A file that is a link is replaced; what it leads to stays.

    Raises:
        RunError: naming the link.
    """
    home = folder.resolve()
    for above, names, _ in os.walk(folder):
        for inner in (Path(above, name) for name in names):
            if inner.is_symlink() and not inner.resolve().is_relative_to(home):
                raise RunError(
                    f"{inner}: is a link to {inner.resolve()}, outside of {folder}; nothing was written. "
                    "Put a folder in its place; only the whole may be a link to another disk."
                )
