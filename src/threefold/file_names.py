"""Names of files that every system can hold: Windows reserves some."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata

_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])( *\..*)?", re.IGNORECASE)
_LONGEST = 200
"""Bytes of a stem: file systems hold 255, and a file under way has more than its ending."""
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def unportable(stem: str) -> str | None:
    """Return why Windows can hold no file whose name begins with a stem; None where it can."""
    if _DEVICES.fullmatch(stem):
        return "a device there"
    if found := _FORBIDDEN.search(stem):
        return f"no {found[0]!r} there"
    if stem != stem.rstrip(". "):
        return "no dot or space at the end there"
    return None


def case_stem(case_id: str) -> str:
    """Return what a case's files are named by, without an ending: its id, where every system can hold it.

    Else what offends is replaced, and a hash of the id keeps it from another case's name. It is the id's
    alone, so that whoever reads such a file finds it as who wrote it named it.
    """
    if unportable(case_id) is None and len(case_id.encode("utf-8", "surrogatepass")) <= _LONGEST:
        return case_id
    digest = hashlib.sha256(case_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    short = case_id.encode("utf-8", "replace")[: _LONGEST - len(digest) - 2].decode("utf-8", "ignore")
    return f"{portable(short)}-{digest}"


def folded(name: str) -> str:
    """Return what a name is to file systems that tell neither case nor how an accent is stored apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def portable(stem: str) -> str:
    """Return a stem that every system can hold in its place; the same where it is one."""
    stem = _FORBIDDEN.sub("_", stem).rstrip(". ")
    return f"_{stem}" if not stem or _DEVICES.fullmatch(stem) else stem


def printable(name: str | os.PathLike[str]) -> str:
    r"""Return a file's name as text for tables and messages.

    Bytes that are no UTF-8 are written as \xNN; control characters and line breaks as Python writes them.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
