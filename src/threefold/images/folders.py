"""Go through a folder and those below it: what can't be listed is said, and links are not followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from threefold.file_names import printable


def folders_below(
    folder: Path, unlisted: dict[Path, str], links: list[Path]
) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and each one below it with the names of its files, in order; hidden ones are left out.

    Args:
        folder: where to begin.
        unlisted: gets why, by path, each folder that can't be listed.
        links: gets the links to folders.
    """

    def note(error: OSError) -> None:
        at = Path(str(error.filename or folder))
        unlisted[at] = f"{printable(at)}: can't be listed ({error.strerror}). Mend its permission."

    for at, within, names in os.walk(folder, onerror=note):
        here = Path(at)
        linked = [name for name in within if (here / name).is_symlink()]
        links += (here / name for name in linked)
        within[:] = sorted(name for name in within if name[0] != "." and name not in linked)
        yield here, sorted(name for name in names if name[0] != ".")
