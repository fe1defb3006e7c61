"""Let every write of every command fail in every way; compare what a repetition leaves with an unbroken run.

Run: python benchmarks/fault_points.py [COMMAND ...]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forked processes have no threads of their parent's
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "acceptance"))

import faults


def main() -> None:
    names = sys.argv[1:] or [*faults.COMMANDS]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        os.environ["THREEFOLD_CACHE"] = str(base / "cache")
        faults.prepare(base / "prepared", base / "home")
        print(
            "| command | faults at its writes | at its arrays | seconds |\n| --- | --- | --- | --- |",
            flush=True,
        )
        for name in names:
            start, places = time.monotonic(), (base / "prepared", base / "home")
            writes = faults.check(faults.COMMANDS[name], *places, faults.all_faults)
            arrays = faults.check(faults.COMMANDS[name], *places, lambda run: faults.memory_faults(run, 20))
            print(f"| {name} | {writes} | {arrays} | {time.monotonic() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
