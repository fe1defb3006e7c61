"""Turn whatever a decoder throws at a damaged file into one error, and its warnings into notes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from threefold.errors import ImageError

_LONGEST = 200
_MOST_NOTES = 8


def short(text: object, longest: int = _LONGEST) -> str:
    """Return text that came out of a file on one line and cut: a header may hold a megabyte of it."""
    words = " ".join(str(text)[: 4 * longest].split())
    return words if len(words) <= longest else f"{words[: longest - 3]}..."


@contextmanager
def decoding(path: Path, kind: str) -> Iterator[list[str]]:
    """Decode a file with a foreign library inside this context.

    Yields:
        A list that holds, after the context, the library's warnings as notes.

    Raises:
        ImageError: for anything that the library raised. Decoders raise nearly any exception on damaged
            bytes (SyntaxError, struct.error, KeyError, RecursionError, ...), so all of them are caught.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield notes
        except (ImageError, MemoryError):
            raise
        except Exception as error:
            reason = short(error) or type(error).__name__
            raise ImageError(
                f"{path}: truncated, damaged or not {kind} ({reason}). Copy it again."
            ) from error
    said = list(dict.fromkeys(f"{kind} reader: {short(w.message)}" for w in caught))
    notes.extend(said[:_MOST_NOTES])
    if len(said) > _MOST_NOTES:
        notes.append(f"{kind} reader: {len(said) - _MOST_NOTES} more warnings")
