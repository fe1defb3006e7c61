"""The process's allocator."""

from __future__ import annotations

import subprocess
import sys


def test_tune_allocation_in_a_process_of_its_own() -> None:
    code = "from threefold.allocation import tune_allocation; print(tune_allocation())"
    environments = {"": str(sys.platform.startswith("linux")), "1": "False"}
    for variable, expected in environments.items():
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"THREEFOLD_DEFAULT_ALLOCATION": variable},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected
