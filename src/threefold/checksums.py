"""Checksums (SHA-256) of the files that results rest on, so that a flipped bit is refused, not computed with.

Each kind of file stays what it is for other programs, and no order of writing can leave a good file refused:

- a checkpoint, a zip archive, carries its checksum as the archive's comment;
- weights, safetensors, carry theirs in the metadata of the header;
- a table (CSV) has it beside it, in NAME.sha256, as `sha256sum` writes it and `sha256sum --check` reads it.
  It is removed before the table is replaced and written after: a kill between leaves a table without one;
- JSON has its own under the key `sha256`.

Masks need none: PNG and gzip check their own content when they are read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from threefold.errors import ThreefoldError, bounded
from threefold.paths import open_file
from threefold.run import write_atomically

_MARK = b"sha256:"
_COMMENT = re.compile(rb"sha256:(.{64})", re.DOTALL)
_COMMENT_LENGTH = len(_MARK) + 64
_LENGTH_FIELD = 2
_LONGEST_HEADER = 100_000_000
"""Of a safetensors file, bytes; the format's own limit."""
_CHUNK = 1 << 20
_KEY = "sha256"


def seal_archive(archive: bytes) -> bytes:
    """Return a zip archive with its checksum as its comment.

    Args:
        archive: without a comment, as `torch.save` writes it.
    """
    body = archive[:-_LENGTH_FIELD]
    comment = _MARK + hashlib.sha256(body).hexdigest().encode()
    return body + struct.pack("<H", len(comment)) + comment


def verify_archive(path: Path, error: type[ThreefoldError], remedy: str) -> bool:
    """Hold a zip archive against the checksum in its comment.

    Args:
        path: of the archive, or of anything else.
        error: what to raise.
        remedy: what to do where it differs.

    Returns:
        False where it carries none.

    Raises:
        error: the file is not the one that was written.
        OSError: it can't be read.
    """
    size = path.stat().st_size
    tail = _LENGTH_FIELD + _COMMENT_LENGTH
    if size < tail:
        return False
    with open_file(path) as stream:
        stream.seek(size - tail)
        found = _COMMENT.fullmatch(stream.read()[_LENGTH_FIELD:])
        if found is None:
            return False
        stream.seek(0)
        digest, left = hashlib.sha256(), size - tail
        while left > 0 and (chunk := stream.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    _compare(path, found[1].decode(errors="replace"), digest.hexdigest(), error, remedy)
    return True


def refuse_compressed(path: Path, error: type[ThreefoldError]) -> None:
    """Refuse a zip archive with compressed members: torch writes none, and a small one may fill the memory.

    Args:
        path: of the archive, or of anything else.
        error: what to raise.

    Raises:
        error: naming the first such member.
        zipfile.BadZipFile, OSError: it can't be read.
    """
    with open_file(path) as stream:
        if not zipfile.is_zipfile(stream):
            return
        archive = zipfile.ZipFile(stream)
        packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise error(
            f"{path}: a compressed archive ('{bounded(packed[0])}'); expected one as torch.save writes it, "
            "which is not compressed. Unpack it, and save its tensors again."
        )


def seal_tensors(content: bytes) -> bytes:
    """Return a safetensors file with its checksum in its metadata, as `sha256`.

    The checksum is that of the file with zeros in its place. The metadata's names are sorted, so that the
    same weights are the same bytes.
    """
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = dict(header.pop("__metadata__", {}), sha256=f"{_MARK.decode()}{'0' * 64}")
    described = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = struct.pack("<Q", len(text)) + text + content[8 + length :]
    return whole.replace(b"0" * 64, hashlib.sha256(whole).hexdigest().encode(), 1)


def verify_tensors(path: Path, error: type[ThreefoldError], remedy: str) -> bool:
    """Hold a safetensors file against the checksum in its metadata, as `verify_archive` does an archive."""
    with open_file(path) as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_LONGEST_HEADER, path.stat().st_size):
            return False
        header = stream.read(length)
        found = _COMMENT.search(header)
        if found is None:
            return False
        digest = hashlib.sha256(start + header[: found.start(1)] + b"0" * 64 + header[found.end(1) :])
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    _compare(path, found[1].decode(errors="replace"), digest.hexdigest(), error, remedy)
    return True


def seal_object(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be written as JSON, with the checksum of the rest as `sha256`."""
    return {**content, _KEY: _text_digest(json.dumps(content, sort_keys=True))}


def verify_object(
    content: Mapping[str, Any], path: Path, error: type[ThreefoldError], remedy: str
) -> dict[str, Any]:
    """Return what was read of JSON without its checksum; the same where it carries none.

    Raises:
        error: it is not what was written.
    """
    rest = {key: value for key, value in content.items() if key != _KEY}
    if _KEY in content:
        found = _text_digest(json.dumps(rest, sort_keys=True))
        _compare(path, str(content[_KEY]), found, error, remedy)
    return rest


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


def checksum_of(path: Path) -> Path:
    """Return where a table's checksum lies."""
    return path.with_name(f"{path.name}.sha256")


def write_table(path: Path, content: str) -> None:
    """Write a table, and its checksum beside it.

    Raises:
        RunError: the disk refuses; the table that was there is untouched, without a checksum.
    """
    beside = checksum_of(path)
    beside.unlink(missing_ok=True)
    data = content.encode(errors="backslashreplace")
    write_atomically(path, data)
    write_atomically(beside, f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")


def remove_table(path: Path) -> None:
    """Remove a table and its checksum, where they are there."""
    checksum_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def verify_table(path: Path, error: type[ThreefoldError], remedy: str) -> bool:
    """Hold a table against the checksum beside it, as `verify_archive` does an archive.

    A table that is not there, though its checksum is, was lost.
    """
    beside = checksum_of(path)
    text = _text(beside, error, remedy)
    if text is None:
        return False
    if not path.is_file():
        raise error(f"{path}: expected a table, whose checksum is in {beside.name}; found no file. {remedy}")
    expected = text.split(maxsplit=1)[0] if text.strip() else "nothing"
    with open_file(path) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _compare(path, expected, digest, error, f"The checksum is in {beside.name}. {remedy}")
    return True


def _text(path: Path, error: type[ThreefoldError], remedy: str) -> str | None:
    """Return the start of a file of checksums; None where there is none."""
    try:
        with open_file(path) as stream:
            return stream.read(_CHUNK).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise error(f"{path}: can't be read ({problem.strerror or problem}). {remedy}") from problem


def verify_listed(listing: Path, files: Iterable[Path], error: type[ThreefoldError], remedy: str) -> bool:
    """Hold files against a list of checksums, as `sha256sum` writes one, of files in its folder.

    Args:
        listing: the list.
        files: each is in the list, or neither in it nor there.
        error: what to raise.
        remedy: what to do where one differs.

    Returns:
        False where there is no list.

    Raises:
        error: a file is not the one that was listed, is not listed, or is gone; or the list can't be read.
    """
    text = _text(listing, error, remedy)
    if text is None:
        return False
    lines = (line.split("  ", 1) for line in text.splitlines())
    known = {line[1]: line[0] for line in lines if len(line) > 1}
    for path in files:
        expected = known.get(path.name)
        if expected is None and path.exists():
            raise error(f"{path}: expected its checksum in {listing.name}, found none there. {remedy}")
        if expected is None:
            continue
        if not path.is_file():
            raise error(f"{path}: expected the file that {listing.name} lists; found none. {remedy}")
        with open_file(path) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        _compare(path, expected, digest, error, f"The checksum is in {listing.name}. {remedy}")
    return True


def note_unchecked(path: Path) -> None:
    """Say that a file carries no checksum, so that damage to it would not be seen."""
    logging.getLogger("threefold").warning(
        "%s has no checksum (an earlier version wrote it, or it was copied without it): not verified.",
        os.fspath(path),
    )


def _compare(path: Path, expected: str, found: str, error: type[ThreefoldError], remedy: str) -> None:
    if expected != found:
        raise error(
            f"{path}: is not what was written: expected SHA-256 {expected[:64]}, found {found}. It was "
            f"damaged or changed. {remedy}"
        )
