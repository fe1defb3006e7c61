"""Turn whatever a decoder throws at a damaged file into one error, and its warnings into notes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from threefold.errors import ImageError


@contextmanager
def decoding(path: Path, kind: str) -> Iterator[list[str]]:
    """Decode a file with a foreign library inside this context.

    Yields:
        A list that holds, after the context, the library's warnings as notes.

    Raises:
        ImageError: for anything that the library raised. Decoders raise nearly any exception on damaged
            bytes (SyntaxError, struct.error, KeyError, MemoryError, ...), so all of them are caught.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield notes
        except ImageError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(
                f"{path}: truncated, damaged or not {kind} ({reason}). Copy it again."
            ) from error
    notes.extend(dict.fromkeys(f"{kind} reader: {' '.join(str(w.message).split())}" for w in caught))
