"""What a user sees of an error: one message and an exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from threefold import __version__
from threefold.errors import ThreefoldError, bounded
from threefold.interruption import exit_code_of

FAILED, OURS = 1, 70
"""Exit codes: of what a user can mend, and of a fault of the program (EX_SOFTWARE). Usage errors have 2."""

_DISK_REFUSES = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EPERM, errno.EROFS, errno.EIO)
_TRACEBACK = "THREEFOLD_TRACEBACK"


@contextmanager
def explained() -> Iterator[None]:
    """Print whatever is raised as one message, and exit with its code.

    With THREEFOLD_TRACEBACK=1 in the environment the traceback is printed before it.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a test's, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        yield
    except BrokenPipeError:  # who read has enough, as `head`
        _leave_the_pipe()
    except ThreefoldError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        _end("interrupted.", exit_code_of(stop), prefix="")
    except SystemExit as end:
        # Typer ends its own work, interrupted, without a word and always with Ctrl-C's code.
        cause = getattr(end.__context__, "__cause__", None)
        if not isinstance(cause, KeyboardInterrupt):
            raise
        _end("interrupted.", exit_code_of(cause), prefix="")
    except MemoryError as error:
        what = f" ({error})" if str(error) else ""
        _end(
            f"not enough memory{what}. Close other programs, give fewer or smaller inputs at once, or lower "
            "batch sizes and workers; what was finished is kept.",
            FAILED,
        )
    except RecursionError:
        _end(
            "an input is nested too deeply to be read. Expected a few levels; look at the files named.",
            FAILED,
        )
    except OSError as error:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        refuses = "the disk refuses" if error.errno in _DISK_REFUSES else "the system refuses"
        _end(
            f"{where}{refuses} ({error.strerror or error}). Free space, fix the permission or the path, then "
            "repeat the command.",
            FAILED,
        )
    except Exception as error:  # the last resort: nothing that ends here is the user's
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
        _end(
            f"a fault of the program, not of your data ({bounded(said)}). What was finished is kept. Please "
            f"report it with {_written_down()}; {_TRACEBACK}=1 prints it.",
            OURS,
        )


def _end(message: str, code: int, prefix: str = "error: ") -> NoReturn:
    try:
        if os.environ.get(_TRACEBACK) == "1":
            traceback.print_exc()
        print(f"{prefix}{_printable(message)}", file=sys.stderr)
    except BrokenPipeError:
        _leave_the_pipe()
    sys.exit(code)


def _printable(message: str) -> str:
    """Return a message without what would move a terminal's cursor or colours: file names may hold it."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in message)


def _leave_the_pipe() -> NoReturn:
    """Exit without another word, also of the interpreter, which flushes at its end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(FAILED)


def _written_down() -> str:
    """Write the traceback into a file of its own; return where."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="threefold-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as stream:
            stream.write(f"threefold {__version__}, Python {sys.version}\n{sys.argv}\n\n")
            traceback.print_exc(file=stream)
    except OSError:
        return "its traceback"
    return stream.name
