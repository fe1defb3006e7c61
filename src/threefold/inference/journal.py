"""What was done, a line an input: written as it goes, so that a process killed at any moment can go on.

A line is a checksum and JSON. Lines are only appended; one that a kill left half written, and whatever
follows a damaged one, does not count and is written again.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from threefold.errors import RunError
from threefold.paths import open_file
from threefold.run import append, write_atomically

Content = dict[str, Any]


class Journal:
    """A journal's file: a line that says whose it is, and a line an input.

    Attributes:
        path: of the file.
        places: where the line of each input begins, by its name; the last one counts.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is read."""
        self.path = path
        self.places: dict[str, int] = {}
        self._end = 0

    def head(self) -> Content | None:
        """Return the first line; None where there is no journal, or it is damaged from the start."""
        return next((content for _, _, content in self._lines()), None)

    def begin(self, head: Mapping[str, Any]) -> None:
        """Open the journal: a new one with this first line, or the one there, up to its last whole line.

        Raises:
            RunError: the disk refuses.
        """
        if self.head() is None:
            write_atomically(self.path, _line(head))
        self.places = {}
        for number, (start, end, content) in enumerate(self._lines()):
            if number:
                self.places[content["source"]] = start
            self._end = end
        if self._end < self.path.stat().st_size:
            os.truncate(self.path, self._end)

    def append(self, name: str, content: Mapping[str, Any]) -> None:
        """Add the line of an input.

        Raises:
            RunError: the disk refuses; the journal is as it was.
        """
        line = _line({"source": name, **content})
        try:
            append(self.path, line)
        except OSError as error:
            os.truncate(self.path, self._end)
            raise RunError(
                f"{self.path}: could not be written ({error.strerror or error}). What was done is kept. "
                "Free space or fix the permission, then repeat the command to resume."
            ) from error
        self.places[name] = self._end
        self._end += len(line)

    def read(self, name: str) -> Content | None:
        """Return the line of an input; None where it has none."""
        start = self.places.get(name)
        if start is None:
            return None
        with self.path.open("rb") as stream:
            stream.seek(start)
            return _content(stream.readline())

    def entries(self, names: Iterable[str]) -> Iterator[tuple[str, Content]]:
        """Yield the lines of those inputs that have one, in the order of the names."""
        with self.path.open("rb") as stream:
            for name in names:
                start = self.places.get(name)
                if start is not None:
                    stream.seek(start)
                    content = _content(stream.readline())
                    if content is not None:
                        yield name, content

    def settle(self, names: Iterable[str]) -> None:
        """Leave the lines of these inputs, in their order, and no others, in one step.

        Raises:
            RunError: the disk refuses.
        """
        if list(self.places) == list(names) and sum(1 for _ in self._lines()) == len(self.places) + 1:
            return
        head = self.head()
        assert head is not None
        contents = chain([head], (content for _, content in self.entries(names)))
        write_atomically(self.path, map(_line, contents))
        self.begin(head)

    def _lines(self) -> Iterator[tuple[int, int, Content]]:
        """Yield each whole line with where it begins and ends, up to the first that is not whole."""
        try:
            stream = open_file(self.path)
        except FileNotFoundError:
            return
        with stream:
            end = 0
            for number, line in enumerate(stream):
                content = _content(line)
                if content is None or (number and not _is_entry(content)):
                    return
                start, end = end, end + len(line)
                yield start, end, content


def _line(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=True, allow_nan=False).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _content(line: bytes) -> Content | None:
    """Return what a line says; None where it is not whole."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _is_entry(content: Content) -> bool:
    """Whether a line says what was done of an input, with files in the folders that are written."""
    kinds = {"source": str, "stamp": str, "rows": list, "failed": list, "masks": dict}
    return all(isinstance(content.get(name), kind) for name, kind in kinds.items()) and all(
        re.fullmatch(r"((masks|disagreement)/([A-Za-z][\w-]*/)?|dicom/)[^/\\]+", name)
        for name in content["masks"]
    )
