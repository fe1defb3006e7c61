"""A case that can't be used harms only itself: what loops over cases do with the error of one."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from threefold.csv_tables import table_text
from threefold.errors import ImageError, RunError, WriteError
from threefold.run import write_atomically
from threefold.validation import read_table

Failures = dict[str, str]
"""Why by case id."""

_EVERYONES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE})
"""What the system refuses to every case alike: a full disk, no more open files."""
_NO_MEMORY = "not enough memory"
_SHOWN = 10
_LONGEST = 500


@contextmanager
def sparing_others(failed: Failures, case_id: str) -> Iterator[None]:
    """Do one case's work in this context: what makes this case unusable is noted, and nothing is raised.

    A full disk, a file that can't be written and whatever else would stop the next case as well is raised,
    and so are mistakes of this program.

    Args:
        failed: gets the reason.
        case_id: of the case.
    """
    try:
        yield
    except (ImageError, MemoryError, OSError, RuntimeError) as error:
        reason = reason_of(error)
        if reason is None:
            raise
        failed[case_id] = reason


def reason_of(error: BaseException) -> str | None:
    """Return why one case can't be used; None where the error is not of that case alone."""
    if _is_everyones(error):
        return None
    if any(map(is_out_of_memory, _chain(error))):
        return f"{_NO_MEMORY} ({_short(error) or 'for its arrays'})"
    if isinstance(error, ImageError):
        return _short(error)
    if isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror or error}"
    return None


def lacked_memory(reason: str) -> bool:
    """Whether memory was why a case could not be used: then it may be used the next time."""
    return reason.startswith(_NO_MEMORY)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python, numpy or torch (whose error is a RuntimeError)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )


def listed(failed: Mapping[str, str]) -> list[str]:
    """Return a line for each of the first few failed cases, and how many more there are."""
    lines = [f"failed: {case_id}: {reason}" for case_id, reason in list(failed.items())[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"failed: {len(failed) - _SHOWN} more")
    return lines


def none_left(where: str, failed: Mapping[str, str]) -> ImageError:
    """Return the error for inputs of which none can be used; `where` is where they are from."""
    return ImageError(f"{where}: none of its cases can be used.\n  " + "\n  ".join(listed(failed)))


def left_out_notes(failed: Mapping[str, str], cases: int) -> tuple[str, ...]:
    """Return what stands beside numbers that failed cases are left out of: how many of all, and which.

    Args:
        failed: why, by case id.
        cases: how many were asked for.
    """
    if not failed:
        return ()
    return (f"{len(failed)} of {cases} cases are left out: they could not be used.", *listed(failed))


def write_failures(path: Path, failed: Mapping[str, str]) -> None:
    """Write a table of the failed cases (case_id, error); remove an earlier one where there are none.

    Raises:
        RunError: the disk refuses.
    """
    if failed:
        write_atomically(path, table_text([["case_id", "error"], *map(list, failed.items())]))
    else:
        path.unlink(missing_ok=True)


def read_failures(path: Path) -> Failures:
    """Return what `write_failures` wrote; empty where there is no such table.

    Raises:
        RunError: it can't be read.
    """
    if not path.is_file():
        return {}
    table = read_table(path, RunError, "Remove it, and repeat the command that made it.")
    if not {"case_id", "error"} <= {*table.columns}:
        raise RunError(f"{path}: expected the columns case_id and error, found {', '.join(table.columns)}.")
    return dict(zip(table["case_id"], table["error"], strict=True))


def _is_everyones(error: BaseException) -> bool:
    return any(
        isinstance(one, WriteError) or (isinstance(one, OSError) and one.errno in _EVERYONES)
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
