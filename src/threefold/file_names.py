"""Names of files that every system can hold: Windows reserves some."""

from __future__ import annotations

import re

_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])( *\..*)?", re.IGNORECASE)
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


def portable(stem: str) -> str:
    """Return a stem that every system can hold in its place; the same where it is one."""
    stem = _FORBIDDEN.sub("_", stem).rstrip(". ")
    return f"_{stem}" if not stem or _DEVICES.fullmatch(stem) else stem
