"""Names of cases that any file system and any table can hold."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from threefold.file_names import portable

LONGEST_STEM = 160
"""Bytes of a mask's name without its ending: file systems hold 255, and a file under way has more."""


class MaskNames:
    """Gives each case a file name of its own, the same whatever was done before.

    Characters that some system refuses become `_`. A name that is too long is cut, and carries a hash of the
    case's id; so does one that another case has too, upper and lower case being alike.
    """

    def __init__(self, case_ids: Iterable[str]) -> None:
        """Look through the names of all cases."""
        seen: set[int] = set()
        self._plain: set[int] = set()  # hashes: a few bytes a case
        for case_id in case_ids:
            key = _key(_clean(case_id))
            (self._plain.discard if key in seen else self._plain.add)(key)
            seen.add(key)

    def stem(self, case_id: str) -> str:
        """Return a case's name without an ending; of a case not seen before it carries a hash."""
        clean = _clean(case_id)
        if _key(clean) in self._plain and len(clean.encode()) <= LONGEST_STEM:
            return clean
        digest = hashlib.sha256(case_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        short = clean.encode()[: LONGEST_STEM - len(digest) - 1].decode("utf-8", "ignore")
        return f"{short}-{digest}"


def _clean(case_id: str) -> str:
    return portable(re.sub(r"[^\w.+=@# -]+", "_", case_id).strip(" ").lstrip("._") or "image")


def _key(stem: str) -> int:
    return hash(unicodedata.normalize("NFKC", stem).casefold())
