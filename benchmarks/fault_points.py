"""Let every write of every command fail in every way, and damage every file that a command reads.

The first table compares what the command, repeated, leaves with what an unbroken one does; the second says
what a command did on a damaged folder. Rows go into docs/results/fault-points.md when they are done; a row
that is there is left, unless it is named.

Run: python benchmarks/fault_points.py [NAME ...]
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked processes have no threads of their parent's
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.acceptance import damages, faults  # noqa: E402
from tests.acceptance.places import Places  # noqa: E402

PAGE = ROOT / "docs" / "results" / "fault-points.md"
WRITES, ARRAYS = 60, 20
"""How many of the faults at a command's writes and arrays are tried at most, spread from first to last."""
LONG = {"chain": (8, 2), "study run": (20, 4), "demo hematoma": (20, 4), "demo aortic-arch": (6, 2)}
"""The same of commands that train several times."""


def fail_everywhere(name: str, places: Places) -> str:
    """Return the row of a command, and print what went wrong."""
    start, command = time.monotonic(), faults.COMMANDS[name]
    recorded, left = faults.record(command, places)
    writes = faults.write_faults(recorded)
    most = LONG.get(name, (WRITES, ARRAYS))
    asked = faults.spread(writes, most[0])
    arrays = faults.memory_faults(recorded, most[1])
    wrong = 0
    for fault, what in faults.trials(command, places, left, [*asked, *arrays]):
        if what:
            wrong += 1
            print(f"{name}: {fault}: {what}", flush=True)
    seconds = time.monotonic() - start
    return f"| {name} | {len(asked)} of {len(writes)} | {len(arrays)} | {wrong} | {seconds:.0f} |"


def damage_everything(name: str, places: Places) -> str:
    """Return the row of a command that reads a folder, and print what it said, and what is wrong with it."""
    start, reader = time.monotonic(), damages.READERS[name]
    read, left = damages.record(reader, places)
    asked = damages.all_damages(read)
    ends: Counter[str] = Counter()
    for damage, said, what in damages.trials(reader, places, left, asked):
        ends["wrong" if what else "refused" if said else "done"] += 1
        if what:
            print(f"{name}: {damage}: WRONG: {what}", flush=True)
        elif said:
            print(f"{name}: {damage}: {said.strip()}", flush=True)
    numbers = f"{len(asked)} | {ends['refused']} | {ends['done']} | {ends['wrong']}"
    return f"| {name} | {reader.folder} | {len(read)} | {numbers} | {time.monotonic() - start:.0f} |"


TABLES: dict[str, tuple[Callable[[str, Places], str], tuple[str, ...]]] = {
    "| command | faults at its writes |": (fail_everywhere, (*faults.COMMANDS,)),
    "| command | folder |": (damage_everything, (*damages.READERS,)),
}
"""How the header of each table begins; what gives a row; the names of the rows, in order."""


def main() -> None:
    asked = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THREEFOLD_CACHE"] = str(Path(folder) / "cache")
        places = Places(Path(folder) / "places")
        for header, (measure, names) in TABLES.items():
            for name in names:
                if name in asked or not (asked or name in _rows(header)):
                    row = measure(name, places)
                    print(row, flush=True)
                    _put(header, name, row, names)


def _rows(header: str) -> dict[str, str]:
    """Return the rows of a table of the page, by name."""
    table = PAGE.read_text(encoding="utf-8").partition(header)[2].partition("\n\n")[0]
    return {row.split(" | ")[0].removeprefix("| "): row for row in table.splitlines()[2:]}


def _put(header: str, name: str, row: str, names: tuple[str, ...]) -> None:
    """Put a row into its table, in its place."""
    rows = {**_rows(header), name: row}
    text = PAGE.read_text(encoding="utf-8")
    lines = "".join(f"{rows[each]}\n" for each in names if each in rows)
    table = re.compile(rf"({re.escape(header)}.*\n\|[ |-]+\|\n)(?:\|.*\n)*")
    PAGE.write_text(table.sub(lambda found: found[1] + lines, text), encoding="utf-8")


if __name__ == "__main__":
    main()
